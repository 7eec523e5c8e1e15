"""Holds the commands that a replay would send against those that were sent.

Ids are derived from causes, so the two are found by their ids, wherever in `workflow.commands` they stand. That topic
is not archived and has its own retention; what cannot be compared is counted with the reason: `retention` (it may have
been there and is gone), `unread` (more commands than are read), `unproven` (the beginning of the workflow, or the
content of a checkpoint, is not known).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from consumers.log_reader import LogReader, RangeGoneError, record_of
from engine.events import Delivered
from engine.invariants import GRACE_US
from schemas.admission import admit
from schemas.codec import Codec
from schemas.errors import PoisonError
from schemas.records import Command
from schemas.topics import COMMANDS

from .replay_compare import SHOWN_MAX, Compared, judged
from .replay_range import ReplayError

#: Commands read for one replay, each some 2 KB in memory: an engine sends one for some ten events of what fails.
READ_MAX = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Where the commands of a replay are looked for. `ranges`: (partition, first, end). `whole_from_us`: before this
    broker time some may be gone. `now_us`: when the ends were fixed. `cut`: there are more."""

    ranges: tuple[tuple[int, int, int], ...]
    whole_from_us: int
    now_us: int
    cut: bool = False


def window(log: LogReader, since_ms: int) -> Window:
    """The commands sent since a broker time, as the topic has them now."""
    now_us = time.time_ns() // 1000
    bounds, whole_from_us = log.bounds(COMMANDS), 0
    ranges: list[tuple[int, int, int]] = []
    for partition, (low, end) in bounds.items():
        found = log.offset_at(COMMANDS, partition, max(0, since_ms))
        start = end if found is None else max(found, low)
        if low > 0 and start == low:
            whole_from_us = max(whole_from_us, _first_us(log, partition, low, end, now_us))
        ranges.append((partition, start, end))
    each = READ_MAX // len(ranges)
    cut = any(end - start > each for _, start, end in ranges)
    return Window(
        ranges=tuple((p, start, min(end, start + each)) for p, start, end in ranges if start < end),
        whole_from_us=whole_from_us,
        now_us=now_us,
        cut=cut,
    )


def _first_us(log: LogReader, partition: int, low: int, end: int, now_us: int) -> int:
    try:
        first = next(log.read(COMMANDS, {partition: (low, min(end, low + 1))}), None)
    except RangeGoneError:  # retention was faster than we are
        first = None
    return now_us if first is None else record_of(first).timestamp_ms * 1000


def read(log: LogReader, codec: Codec, found: Window, workflow_id: str | None) -> Iterator[Command]:
    """The commands of a window; of one workflow when it is given. ReplayError "missing" when they went meanwhile."""
    wanted = None if workflow_id is None else workflow_id.encode()
    try:
        for message in log.read(COMMANDS, {p: (start, end) for p, start, end in found.ranges}):
            record = record_of(message)
            if wanted is not None and record.key != wanted:
                continue
            try:
                command = admit(codec, record.key, record.value)
            except PoisonError:
                continue
            if isinstance(command, Command):
                yield command
    except RangeGoneError as error:
        raise ReplayError("missing", "retention removed commands meanwhile", hint="run it again") from error


class CommandComparison:
    """Takes the range's records and what they let the engine send, partition by partition."""

    def __init__(self, found: Window, recorded: Iterable[Command]) -> None:
        self.counts: Counter[str] = Counter()
        self.differences: list[Compared] = []
        self._window = found
        #: By id; of one that was sent twice the first counts.
        self._recorded: dict[str, Command] = {}
        self._caused: dict[str, list[str]] = {}
        for command in recorded:
            if command.event_id not in self._recorded:
                self._recorded[command.event_id] = command
                self._caused.setdefault(command.causation_id or "", []).append(command.event_id)
        #: Recorded commands that a record of the range caused, and that record.
        self._expected: dict[str, Delivered] = {}
        #: Asked for, and not found: with their cause.
        self._pending: dict[str, tuple[Command, Delivered]] = {}
        self._judged: set[str] = set()
        self._unreadable: set[str] = set()

    def sees(self, event: Delivered) -> None:
        """A record of the range."""
        if event.unreadable is not None:
            self._unreadable.add(event.record.workflow_id)
        caused = self._caused.get(event.record.event_id)
        if caused is not None:
            self._expected.update((event_id, event) for event_id in caused if event_id not in self._judged)

    def asks(self, command: Command, cause: Delivered) -> None:
        """The engine would send this command."""
        if command.event_id in self._judged:
            return
        recorded = self._recorded.get(command.event_id)
        if recorded is None:
            self._pending.setdefault(command.event_id, (command, cause))
            return
        self._judged.add(command.event_id)
        self._expected.pop(command.event_id, None)
        verdict, fields = judged(command, recorded)
        self._note(verdict, command, cause, fields)

    def finish(self, knows: Callable[[str], bool]) -> None:
        """The end of a partition's range. `knows(workflow_id)`: whether its beginning is known."""
        for command, cause in self._pending.values():
            self._note(self._missing(command, cause, knows), command, cause)
        for event_id, cause in self._expected.items():
            command = self._recorded[event_id]
            self._note("not_asked" if self._proven(command, knows) else "unproven", command, cause)
        self._pending.clear()
        self._expected.clear()

    def _missing(self, command: Command, cause: Delivered, knows: Callable[[str], bool]) -> str:
        if not self._proven(command, knows):
            return "unproven"
        if cause.timestamp_us < self._window.whole_from_us:
            return "retention"
        if self._window.cut:
            return "unread"
        return "open" if self._window.now_us - cause.timestamp_us <= GRACE_US else "not_recorded"

    def _proven(self, command: Command, knows: Callable[[str], bool]) -> bool:
        return knows(command.workflow_id) and command.workflow_id not in self._unreadable

    def _note(
        self, verdict: str, command: Command, cause: Delivered, fields: dict[str, tuple[object, object]] | None = None
    ) -> None:
        self.counts[verdict] += 1
        if verdict != "same" and len(self.differences) < SHOWN_MAX:
            self.differences.append(
                Compared(
                    verdict=verdict,
                    partition=cause.partition,
                    offset=cause.offset,
                    timestamp_us=cause.timestamp_us,
                    record=command,
                    fields=fields or {},
                )
            )


def in_order(found: Sequence[Compared]) -> list[Compared]:
    """As the log has their causes."""
    return sorted(found, key=lambda c: (c.partition, c.offset, c.record.event_id))
