"""The steps that a workflow completed last, packed: which they were, and by what progress would show.

Each entry holds a step's number, what is known of its run, and a fingerprint of all that is. Two equal entries are two
runs of one step between which nothing is known to have changed.
"""

from __future__ import annotations

import hashlib
import struct

_SHARE = struct.Struct(">d")
#: Number of the step, what is known (flags), fingerprint.
_ENTRY = struct.Struct(">HB8s")
ENTRY_BYTES = _ENTRY.size
#: Completed steps remembered per workflow: 2.8 KB at most. A policy that looks at more is refused.
RECENT_MAX = 256

#: The run's result is known; so is the state the workflow saved when the step completed.
RESULT, STATE = 1, 2
_INPUT, _SAID = 4, 8
_TELLING = RESULT | STATE
#: Stands where a fingerprint cannot be compared with one of another run.
_NO_FINGERPRINT = bytes(8)


def digest(text: str) -> int:
    """8 bytes of a text's digest, as a number; never 0, which stands for "nothing was said"."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big") or 1


def word(progress: float | None, token: str | None) -> int:
    """What a heartbeat said of its run's progress; 0 when it only said that it is alive."""
    if token is not None:
        return digest(f"{progress!r}|{token}")
    return 0 if progress is None else int.from_bytes(_SHARE.pack(progress), "big") or 1


def entry(number: int, *, state: bytes | None, result: str | None, given: int, said: int) -> bytes:
    """The entry of a completed run: digest of the state saved since the completion before, digest of its output, and
    `digest` of its input's digest and of what its heartbeats said last."""
    if state is not None and result is None and not given and not said:  # as most are: it is a digest already
        return _ENTRY.pack(number, STATE, state[:8])
    known, parts = (0, b"") if state is None else (STATE, state)
    if result is not None:
        known |= RESULT
        parts += result.encode("utf-8", "replace")
    if given:
        known |= _INPUT
        parts += given.to_bytes(8, "big")
    if said:
        known |= _SAID
        parts += said.to_bytes(8, "big")
    return _ENTRY.pack(number, known, hashlib.blake2b(parts, digest_size=8).digest())


def add(recent: bytes, last: bytes) -> bytes:
    """Remember a completion, forgetting the oldest beyond the bound."""
    return (recent + last)[-RECENT_MAX * ENTRY_BYTES :]


def steps(recent: bytes) -> list[int]:
    """Numbers of the steps, oldest first."""
    return [number for number, _, _ in _ENTRY.iter_unpack(recent)]


def period_of(recent: bytes, repeats: int, window: int) -> int:
    """Length of the shortest cycle that ends here and has come `repeats` (2 or more) times in a row unchanged; else 0.

    Of a cycle whose state is saved nowhere, each step's result must be known; without either nothing is known of
    progress, and there is no verdict.
    """
    size = len(recent) // ENTRY_BYTES
    last = recent[-ENTRY_BYTES:]
    for period in range(1, min(window, size // repeats) + 1):
        one = period * ENTRY_BYTES
        if recent[-one - ENTRY_BYTES : -one] != last:
            continue
        cycle = recent[-one:]
        if recent.endswith(cycle * repeats) and _tells(cycle):
            return period
    return 0


def rounds_end(recent: bytes, period: int, repeats: int) -> bool:
    """Whether it is the completion at which the cycle has come `repeats` times, or a whole number of times more.

    Between these the cycle has been told of already, by its other steps.
    """
    one = period * ENTRY_BYTES
    size = at = len(recent) - one
    while at > 0 and recent[at - ENTRY_BYTES : at] == recent[at - ENTRY_BYTES + one : at + one]:
        at -= ENTRY_BYTES
    equal = (size - at) // ENTRY_BYTES + period
    return equal % period == 0 and equal >= period * repeats


def _tells(cycle: bytes) -> bool:
    flags = cycle[2::ENTRY_BYTES]
    return any(known & STATE for known in flags) or all(known & RESULT for known in flags)


def restored(loop: bytes) -> bytes:
    """A loop's entries after the workflow began a run anew: a restored state says so in itself, so states of the two
    runs never compare equal, and of an entry that has one only the step is kept."""
    return b"".join(
        _ENTRY.pack(number, known, _NO_FINGERPRINT if known & STATE else fingerprint)
        for number, known, fingerprint in _ENTRY.iter_unpack(loop)
    )


def has_left(loop: bytes, recent: bytes) -> bool:
    """Whether the newest completion shows that the workflow is out of a loop.

    It is when it completes a step that it had not come to before, or one of the loop's with another outcome, or, where
    that cannot be compared, when it has gone on for longer than the run that looped without looping again.
    """
    number, known, fingerprint = _ENTRY.unpack(recent[-ENTRY_BYTES:])
    same = [(k, f) for n, k, f in _ENTRY.iter_unpack(loop) if n == number]
    if not same:
        return True
    if any(f == fingerprint for _, f in same):
        return False
    if known & _TELLING and all(f != _NO_FINGERPRINT for _, f in same):
        return True
    return len(recent) > len(loop) or len(recent) >= RECENT_MAX * ENTRY_BYTES
