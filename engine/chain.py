"""The chain of a workflow's checkpoints: which one may come next.

Checkpoints are ordered by (epoch, sequence). A command that begins a run gives it the next epoch, so that what a
replaced run still writes is told apart from the run that replaced it (a fencing token). Within an epoch each checkpoint
has the next sequence and links to the one before: its chain digest is SHA-256(the one before's chain digest, its
digest). The first of a new epoch links to any verified checkpoint, or to none when the workflow began anew.

A broken link leaves the tip unproven: the next checkpoint with a higher sequence is then taken for what it says, so
that one damaged record is one finding, and not the end of the chain.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from schemas.records.events import CheckpointCreated

from .state import WorkflowState

_DIGEST_BYTES = 32
#: What the first checkpoint links to, as `schemas.canonical.chain_digest_of` has it.
BEGINNING = bytes(2 * _DIGEST_BYTES)
#: The epoch has no checkpoint yet.
_NONE_YET = -1


class Verdict(NamedTuple):
    """`reason` is empty when the link holds. `repeated`: the same event again. `stale`: of a run that was replaced.

    Neither of the last two is a fault, or changes anything.
    """

    reason: str = ""
    detail: str = ""
    repeated: bool = False
    stale: bool = False


_SOUND = Verdict()


def judge(state: WorkflowState, record: CheckpointCreated) -> Verdict:
    """Whether a checkpoint may follow what the state knows. Changes nothing."""
    known = state.find_checkpoint(record.checkpoint_id)
    if known is not None:
        if known.is_event(record.event_id):
            return Verdict(repeated=True)
        return Verdict("replayed", f"checkpoint {known.sequence} is there already, from another event")
    if record.epoch < state.epoch:
        return Verdict(stale=True)
    if record.epoch > state.epochs:
        return Verdict("chain_fork", f"epoch {record.epoch} was given to nobody; the newest is {state.epochs}")
    if record.epoch > state.epoch or state.sequence == _NONE_YET:
        return _first_of_epoch(state, record)
    return _next_of_epoch(state, record)


def _first_of_epoch(state: WorkflowState, record: CheckpointCreated) -> Verdict:
    if state.tip is None or _links(state.tip, record) or _links(BEGINNING, record):
        return _SOUND
    if any(_links(ref.link, record) for ref in state.all_checkpoints()):
        return _SOUND
    return Verdict("chain_fork", f"it begins epoch {record.epoch} and links to no verified checkpoint")


def _next_of_epoch(state: WorkflowState, record: CheckpointCreated) -> Verdict:
    last = state.sequence
    if record.sequence <= last:
        return Verdict("replayed", f"sequence {record.sequence} comes after {last}")
    if state.tip is None:
        return _SOUND
    if record.sequence > last + 1:
        return Verdict("chain_gap", f"sequence {record.sequence} comes after {last}")
    if not _links(state.tip, record):
        return Verdict("chain_fork", f"checkpoint {record.sequence} does not link to the one before")
    return _SOUND


def follow(state: WorkflowState, record: CheckpointCreated, verdict: Verdict, *, damaged: bool = False) -> None:
    """Move the tip to a checkpoint whose link holds; a broken one leaves it unproven.

    What a `damaged` record says is believed only when it links to what is known.
    """
    if verdict.repeated or verdict.stale or (damaged and state.tip is None):
        return
    if verdict.reason:
        state.tip = None
        return
    state.epoch = record.epoch
    state.sequence = record.sequence
    state.last_sequence = max(state.last_sequence, record.sequence)
    state.tip = _link_of(record)


def begin_epoch(state: WorkflowState, epoch: int) -> None:
    """A run goes on from a restored state: its first checkpoint may link to any verified one.

    A service that knows no epochs stays in the first, whose numbers begin anew.
    """
    if state.epoch <= epoch <= state.epochs:
        state.epoch = epoch
        state.sequence = _NONE_YET


def _links(parent: bytes, record: CheckpointCreated) -> bool:
    """`parent`: chain digest and digest of a checkpoint."""
    expected = None if parent == BEGINNING else parent[_DIGEST_BYTES:].hex()
    if record.parent_digest != expected:
        return False
    link = _link_of(record)
    if link is None:
        return False
    return hashlib.sha256(parent[:_DIGEST_BYTES] + link[_DIGEST_BYTES:]).digest() == link[:_DIGEST_BYTES]


def _link_of(record: CheckpointCreated) -> bytes | None:
    try:
        link = bytes.fromhex(record.chain_digest) + bytes.fromhex(record.digest)
    except ValueError:
        return None
    return link if len(link) == len(BEGINNING) else None
