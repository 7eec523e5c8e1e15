"""Carries a plan out: each item is looked at again, asked for, and followed in the log until it ends.

Request ids are derived from plan and error, so an item that is asked for twice is repaired once: a run that was cut
short anywhere may be begun again. The journal beside the plan says what was asked for and what became of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from consumers.log_reader import LogReader, record_of
from engine.strategies import MANUAL
from projections.reader import snapshot
from projections.sql import blocks
from schemas.admission import admit
from schemas.codec import Codec, Unknown
from schemas.errors import ConfigError, PoisonError
from schemas.headers import headers_for
from schemas.ids import derive_id
from schemas.records import Record
from schemas.records.events import (
    RecoveryAttemptFinished,
    RecoveryDecided,
    RecoveryRefused,
    RecoveryRequested,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowFailed,
)
from schemas.registry import Registry
from schemas.topics import EVENTS

from .audit import actor
from .publish import Publisher
from .recover_plan import Item, Plan, RefusedError
from .stack import Addresses

#: Every item ends as one of these; the first is the good one.
OUTCOMES = ("recovered", "failed", "refused", "stale", "impossible", "pending", "not_asked")
#: Not final: another run of the plan goes on with them.
_OPEN = ("pending", "not_asked")
#: Requests a second: far below what an engine takes, so that the repairs of others are not held up.
RATE_DEFAULT = 10.0
RATE_MAX = 1_000.0
#: Between two looks at the end of the log.
_LOOK_EVERY_S = 0.5
_STILL_OPEN = ("open", "recovering", "waiting_for_human")
_ENDS = (WorkflowCompleted, WorkflowFailed, WorkflowCancelled)
_QUERIES = blocks("ops", "recover.sql")


@dataclass(slots=True)
class Result:
    """What became of an item. `since`: where in its partition the looking begins."""

    item: Item
    outcome: str = "not_asked"
    detail: str = ""
    since: int = -1
    attempts: set[str] = field(default_factory=set)
    staged: bool = False

    def row(self) -> dict[str, Any]:
        """For people and for other programs."""
        return {
            "error_id": self.item.error_id,
            "workflow_id": self.item.workflow_id,
            "step_id": self.item.step_id,
            "outcome": self.outcome,
            "detail": self.detail,
        }


class Journal:
    """Beside the plan, a line for each item that was asked for, and one for its end. Only ever appended to."""

    def __init__(self, plan: Plan, plan_file: Path) -> None:
        self.path = plan_file.with_name(plan_file.name + ".done.jsonl")
        self._plan = plan
        self.lines: dict[str, dict[str, Any]] = {}
        data = self.path.read_bytes() if self.path.exists() else b""
        self._read(data)
        self._file = self.path.open("ab")
        if data and not data.endswith(b"\n"):  # a run was killed while it wrote
            self._file.write(b"\n")
        if not data:
            self._write({"plan_id": plan.plan_id, "digest": plan.digest})

    def _read(self, data: bytes) -> None:
        for number, line in enumerate(data.splitlines()):
            try:
                found = orjson.loads(line)
            except ValueError:
                continue  # what was cut short was about an item that is asked for again
            if number == 0 and found.get("plan_id") != self._plan.plan_id:
                raise RefusedError(f"{self.path} belongs to another plan")
            if "error_id" in found:
                self.lines[found["error_id"]] = found

    def note(self, result: Result) -> None:
        """How an item stands now."""
        self._write({**result.row(), "since": result.since, "at_us": time.time_ns() // 1000})

    def _write(self, value: dict[str, Any]) -> None:
        self._file.write(orjson.dumps(value) + b"\n")
        self._file.flush()

    def close(self) -> None:
        """No more lines."""
        self._file.close()


class Execution:
    """One run of a plan. Use as a context manager."""

    def __init__(self, at: Addresses, plan: Plan, plan_file: Path, reason: str) -> None:
        self.address = at
        self.plan = plan
        self._reason = reason
        self._actor = actor()
        self._stack = ExitStack()
        self._file = plan_file
        self.results = {item.error_id: Result(item) for item in plan.items}
        self._by_workflow: dict[bytes, list[Result]] = {}
        self._positions: dict[int, int] = {}

    def __enter__(self) -> Execution:
        self._log = self._stack.enter_context(LogReader(self.address.kafka))
        if self._log.cluster_id() != self.plan.cluster:
            raise RefusedError("the plan was made for another Kafka cluster")
        self._codec = Codec(self._stack.enter_context(Registry(self.address.registry)))
        self._publisher = Publisher(self.address.kafka)
        self._journal = Journal(self.plan, self._file)
        self._stack.callback(self._journal.close)
        for result in self.results.values():
            self._take_up(result)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _take_up(self, result: Result) -> None:
        line = self._journal.lines.get(result.item.error_id)
        if line is not None:
            result.outcome, result.detail, result.since = line["outcome"], line["detail"], line["since"]
            if result.outcome == "pending":
                self._follow(result)
        elif not result.item.possible:
            result.outcome, result.detail = "impossible", result.item.why_not or ""

    @property
    def left(self) -> int:
        """Items that were not asked for yet."""
        return sum(result.outcome == "not_asked" for result in self.results.values())

    @property
    def unanswered(self) -> int:
        """Items that were asked for and have not ended."""
        return sum(result.outcome == "pending" for result in self.results.values())

    def totals(self) -> dict[str, int]:
        """Items by outcome; they add up to all."""
        counts = dict.fromkeys(OUTCOMES, 0)
        for result in self.results.values():
            counts[result.outcome] += 1
        return {**counts, "items": len(self.results)}

    # -- asking ---------------------------------------------------------------------------------------------------

    def ask(self, rate: float, on_progress: Callable[[int, int], None]) -> None:
        """Ask for what was not asked for yet, so many a second; in between, see what ended."""
        self.look()  # of what an earlier run asked for
        waiting = [result for result in self.results.values() if self._to_ask(result)]
        begun_s, looked_s = time.monotonic(), time.monotonic()
        for number, result in enumerate(waiting):
            due_s = begun_s + number / rate
            time.sleep(max(0.0, due_s - time.monotonic()))
            self._ask_one(result)
            on_progress(number + 1, len(waiting))
            if time.monotonic() - looked_s > _LOOK_EVERY_S:
                self.look()
                looked_s = time.monotonic()

    def _to_ask(self, result: Result) -> bool:
        """Also what an earlier run wrote down and may not have asked for: asking twice changes nothing."""
        return result.outcome == "not_asked" or (result.outcome == "pending" and not result.attempts)

    def _ask_one(self, result: Result) -> None:
        why = self._changed(result.item)
        if why is not None:
            self._end(result, "stale", why)
            return
        item = result.item
        if result.since < 0:
            result.since = self._log.bounds(EVENTS)[item.partition][1]
        record = self.request(item)
        # In the journal before it is in the log: a run that is cut short in between asks again, which changes nothing.
        result.outcome = "pending"
        self._journal.note(result)
        self._follow(result)
        self._publisher.publish(
            EVENTS, item.workflow_id, self._codec.encode(record), headers=headers_for(record), partition=item.partition
        )

    def request(self, item: Item) -> RecoveryRequested:
        """The request for an item, the same in every run of the plan."""
        request_id = derive_id(self.plan.plan_id, f"recover|{item.error_id}")
        parameters = self.plan.parameters
        return RecoveryRequested(
            event_id=derive_id(request_id, "RecoveryRequested"),
            workflow_id=item.workflow_id,
            workflow_type=item.workflow_type,
            external_id=item.external_id,
            occurred_at=time.time_ns() // 1000,
            producer="kintsugi-cli",
            request_id=request_id,
            error_id=item.error_id,
            strategy=self.plan.strategy,
            parameters=orjson.dumps(parameters, option=orjson.OPT_SORT_KEYS).decode() if parameters else None,
            plan_id=self.plan.plan_id,
            reason=self._reason,
            actor=self._actor,
        )

    def _changed(self, item: Item) -> str | None:
        """What is not as the plan has it; None when all is. The engine has the last word."""
        with snapshot(self.address.postgres) as tables:
            rows = tables.query(_QUERIES["now"], {"ids": [item.error_id]})
        if not rows:
            return "the error is not in the tables any more"
        row = rows[0]
        if row["workflow_status"] in ("completed", "failed", "cancelled"):
            return f"the workflow is {row['workflow_status']}"
        if row["status"] not in _STILL_OPEN:
            return f"the error is {row['status']}"
        if row["attempts"] != item.attempts:
            return f"{row['attempts']} attempts were made, the plan saw {item.attempts}"
        return None

    # -- following ------------------------------------------------------------------------------------------------

    def _follow(self, result: Result) -> None:
        item = result.item
        followed = self._by_workflow.setdefault(item.workflow_id.encode(), [])
        if result not in followed:
            followed.append(result)
        self._positions[item.partition] = min(result.since, self._positions.get(item.partition, result.since))

    def wait(self, timeout_s: float, on_progress: Callable[[int, int], None]) -> None:
        """Follow what was asked for until all of it has ended, or the time is over."""
        total, deadline_s = self.unanswered, time.monotonic() + timeout_s
        while self.unanswered:
            self.look()
            on_progress(total - self.unanswered, total)
            if time.monotonic() >= deadline_s:
                return
            if self.unanswered:
                time.sleep(_LOOK_EVERY_S)

    def look(self) -> None:
        """Read what came since the last look."""
        if not self._positions:
            return
        bounds = self._log.bounds(EVENTS)
        ranges = {p: (at, bounds[p][1]) for p, at in self._positions.items() if at < bounds[p][1]}
        for record, offset in self._news(ranges):
            for result in self._by_workflow.get(record.workflow_id.encode(), ()):
                if result.outcome == "pending" and offset >= result.since:
                    self._read(result, record)
        self._positions.update({p: end for p, (_, end) in ranges.items()})

    def _news(self, ranges: dict[int, tuple[int, int]]) -> Iterator[tuple[Record, int]]:
        for message in self._log.read(EVENTS, ranges):
            found = record_of(message)
            if found.key not in self._by_workflow:
                continue
            try:
                record = admit(self._codec, found.key, found.value)
            except PoisonError:
                continue
            if not isinstance(record, Unknown):
                yield record, found.offset

    def _read(self, result: Result, record: Record) -> None:
        request = self.request(result.item)
        if isinstance(record, RecoveryRefused) and record.request_id == request.request_id:
            self._end(result, "refused", record.reason)
        elif isinstance(record, RecoveryDecided) and record.error_id == result.item.error_id:
            self._decided(result, record, request)
        elif isinstance(record, RecoveryAttemptFinished) and record.attempt_id in result.attempts:
            if result.staged:
                return  # one command of several: the next decision tells how it goes on
            if record.outcome == "succeeded":
                self._end(result, "recovered", f"attempt {record.attempt_number}")
            else:
                self._end(result, "failed", record.error_message or record.outcome)
        elif isinstance(record, _ENDS):
            good = isinstance(record, WorkflowCompleted)
            self._end(result, "recovered" if good else "failed", "the workflow ended")

    def _decided(self, result: Result, record: RecoveryDecided, request: RecoveryRequested) -> None:
        ours = record.causation_id == request.event_id
        if not ours and not result.attempts:
            return  # an earlier decision, or one that was on its way
        if record.strategy == MANUAL:
            self._end(result, "failed", "handed to a human")
            return
        # The next command of a strategy of several; its last one says how the repair ended.
        result.attempts.add(record.attempt_id)
        result.staged = bool(record.stage)

    def _end(self, result: Result, outcome: str, detail: str) -> None:
        result.outcome, result.detail = outcome, detail
        self._journal.note(result)


def check_rate(text: str) -> float:
    """`20/s` or `20`, as requests a second. ConfigError for anything else."""
    try:
        rate = float(text.removesuffix("/s"))
    except ValueError:
        rate = 0.0
    if not 0.0 < rate <= RATE_MAX:
        raise ConfigError(f"--rate {text!r}: one looks like 20/s; up to {RATE_MAX:g}/s")
    return rate
