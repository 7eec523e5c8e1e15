"""What people are asked, what an answer would run again, and the answer itself, in the log.

Of two answers the first in the log counts. Whoever writes one reads the log back, and is told whose it was.
"""

from __future__ import annotations

import json
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import click

from consumers.log_reader import LogReader, record_of
from engine.by_hand import TEXT_CHARS_MAX, object_of
from engine.people import DECISIONS, ESCALATE, KNOWN, plan_for
from engine.state import Case
from engine.strategies import Unavailable
from projections.reader import snapshot
from projections.sql import blocks
from schemas.admission import admit
from schemas.codec import Codec, Unknown
from schemas.errors import ConfigError, PoisonError
from schemas.headers import headers_for
from schemas.ids import derive_id
from schemas.keystore import open_keystore
from schemas.records import Record
from schemas.records.events import (
    InterventionClaimed,
    InterventionRequested,
    InterventionResolved,
    RecoveryDecided,
)
from schemas.registry import Registry
from schemas.sealing import seal_fields
from schemas.topics import EVENTS

from . import reads
from .audit import REASON_CHARS_MAX, actor
from .output import CONFLICT, NotFoundError
from .publish import publish
from .recover_look import Again, Place, Row, Seen, look
from .reveal import policy_of
from .stack import Addresses

_QUERIES = blocks("ops", "interventions.sql")
_PRODUCER = "kintsugi-cli"
#: Between two looks at the end of the log.
_LOOK_EVERY_S = 0.2


class RefusedError(click.ClickException):
    """It is answered already, or this answer cannot be carried out."""

    exit_code = CONFLICT


def listed(postgres: str, *, every: bool, mine: bool, workflow_id: str | None, limit: int) -> list[Row]:
    """Interventions, the newest first."""
    with snapshot(postgres) as tables:
        return tables.query(
            _QUERIES["interventions"],
            {
                "every": every,
                "claimed_by": actor() if mine else None,
                "workflow_id": workflow_id,
                "limit": limit,
            },
        )


def row_of(postgres: str, intervention_id: str) -> Row:
    """One intervention. NotFoundError when the tables do not know it."""
    with snapshot(postgres) as tables:
        found = tables.query(_QUERIES["intervention"], {"id": intervention_id})
    if not found:
        raise NotFoundError(f"no intervention {intervention_id}; kintsugi interventions list shows those that are open")
    return found[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a decision would do: the command, the steps that run again, or why it cannot be."""

    decision: str
    action: str = ""
    command: str | None = None
    checkpoint_id: str | None = None
    again: tuple[Again, ...] = ()
    refused: str | None = None

    @property
    def to_accept(self) -> tuple[str, ...]:
        """Steps that run again and are not idempotent: each has to be accepted by name."""
        return tuple(step.step_id for step in self.again if not step.idempotent)


class Desk:
    """One intervention, as the log has it now. Use as a context manager."""

    def __init__(self, at: Addresses, intervention_id: str) -> None:
        self.at = at
        self.row = row_of(at.postgres, intervention_id)
        self.missing: list[Any] = []
        self._unread: deque[Record] = deque()
        self._stack = ExitStack()

    def __enter__(self) -> Desk:
        self._log = self._stack.enter_context(LogReader(self.at.kafka))
        self._codec = Codec(self._stack.enter_context(Registry(self.at.registry)))
        workflow_id, self._partition = str(self.row["workflow_id"]), self.row["log_partition"]
        place = Place(workflow_id, self._partition, self.row["first_offset"])
        self._end = self._log.bounds(EVENTS)[self._partition][1]
        seen = look(self.at, self._log, [place], policy_of(None), on_gap=self.missing.append)
        self.seen: Seen = seen[workflow_id]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def case(self) -> Case:
        """The case that waits for the answer. RefusedError says who answered when none does."""
        case = self.seen.case_of_intervention(str(self.row["id"]))
        if case is None:
            raise RefusedError(self._answered())
        return case

    def _answered(self) -> str:
        found = self.seen.answers.get(str(self.row["id"]))
        if found is not None:
            return f"{found.actor} has answered it already: {found.decision}: {found.reason}"
        if self.seen.state is not None and self.seen.state.terminal:
            return f"the workflow is {self.seen.state.status}: nobody waits for an answer any more"
        return "nobody waits for this answer: kintsugi interventions list shows what is open"

    def preview(self, decision: str, parameters: Mapping[str, Any]) -> Preview:
        """What a decision would do."""
        case = self.case
        if decision == ESCALATE:
            return Preview(decision=decision, action="ask somebody else")
        assert self.seen.state is not None
        plan = plan_for(self.seen.state, case, self.seen.in_force.policy, decision, parameters)
        if isinstance(plan, Unavailable):
            return Preview(decision=decision, refused=plan.reason)
        return Preview(
            decision=decision,
            action=plan.action,
            command=plan.command_type,
            checkpoint_id=None if plan.checkpoint is None else plan.checkpoint.checkpoint_id,
            again=tuple(self.seen.again(case, plan)),
        )

    def previews(self) -> list[Preview]:
        """What each decision that was offered would do."""
        return [self.preview(decision, {}) for decision in self.row["options"] if decision in DECISIONS]

    # -- writing --------------------------------------------------------------------------------------------------

    def claim(self, reason: str | None) -> InterventionClaimed:
        """Say that one looks after it."""
        record: InterventionClaimed = self._record(
            InterventionClaimed, intervention_id=str(self.row["id"]), actor=actor(), reason=reason
        )
        self._publish(record)
        return record

    def answer(
        self, decision: str, reason: str, *, edit: str | None, result: str | None, parameters: Mapping[str, Any]
    ) -> InterventionResolved:
        """The answer as it will be written, its texts sealed where the workflow's states are."""
        record: InterventionResolved = self._record(
            InterventionResolved,
            intervention_id=str(self.row["id"]),
            error_id=self.case.error_id,
            step_id=self.case.step_id,
            decision=decision,
            reason=reason,
            actor=actor(),
            edit=edit,
            result=result,
            parameters=None if not parameters else json.dumps(dict(parameters), sort_keys=True),
        )
        if (edit is None and result is None) or not self.seen.sealed:
            return record
        keystore = open_keystore(None, self.at.objects)
        if keystore is None:
            raise RefusedError(
                "the workflow's states are sealed, so an edit or a result must be too: set KINTSUGI_KEYS for this"
            )
        return seal_fields(record, keystore.current(record.workflow_id))

    def write(self, record: InterventionResolved) -> InterventionResolved:
        """Write the answer; the first one in the log, which may be somebody else's."""
        self._publish(record)
        for found in self._news():
            if isinstance(found, InterventionResolved) and found.intervention_id == record.intervention_id:
                if found.decision in KNOWN:
                    return found
        return record  # acknowledged, so it is there: whatever stood before it was another's intervention

    def follow(self, record: InterventionResolved, timeout_s: float) -> RecoveryDecided | InterventionRequested | None:
        """What the engine made of the answer; None when it said nothing in time."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            for found in self._news():
                if found.causation_id == record.event_id and isinstance(found, RecoveryDecided | InterventionRequested):
                    return found
            if time.monotonic() >= deadline_s:
                return None
            time.sleep(_LOOK_EVERY_S)

    def _record(self, kind: type[Any], **fields: Any) -> Any:
        request_id = str(uuid.uuid4())
        return kind(
            event_id=derive_id(request_id, kind.__name__),
            workflow_id=str(self.row["workflow_id"]),
            workflow_type=self.row["workflow_type"],
            external_id=self.row["external_id"],
            occurred_at=time.time_ns() // 1000,
            producer=_PRODUCER,
            **fields,
        )

    def _publish(self, record: Record) -> None:
        publish(
            self.at.kafka,
            EVENTS,
            record.workflow_id,
            self._codec.encode(record),
            headers=headers_for(record),
            partition=self._partition,
        )

    def _news(self) -> Iterator[Record]:
        """Records of the workflow that came since the last look; who stops in between goes on there next time."""
        self._unread.extend(self._arrived())
        while self._unread:
            yield self._unread.popleft()

    def _arrived(self) -> Iterator[Record]:
        end = self._log.bounds(EVENTS)[self._partition][1]
        start, self._end = self._end, end
        key = str(self.row["workflow_id"]).encode()
        for message in self._log.read(EVENTS, {self._partition: (start, end)}):
            found = record_of(message)
            if found.key != key:
                continue
            try:
                record = admit(self._codec, found.key, found.value)
            except PoisonError:
                continue
            if not isinstance(record, Unknown):
                yield record


def check_reason(reason: str | None) -> str:
    """What goes into the log and the audit log. ConfigError when there is none, or too much."""
    text = (reason or "").strip()
    if not 1 <= len(text) <= REASON_CHARS_MAX:
        raise ConfigError(f"the reason has {len(text)} characters, 1 to {REASON_CHARS_MAX} are allowed")
    return text


def check_object(what: str, text: str) -> str:
    """JSON that a person supplies. ConfigError when it is no object, or too large."""
    if len(text) > TEXT_CHARS_MAX:
        raise ConfigError(f"{what} has {len(text)} characters, {TEXT_CHARS_MAX} allowed")
    if object_of(text) is None:
        raise ConfigError(f"{what} is no JSON object")
    return text


def story(at: Addresses, row: Row) -> Row | None:
    """The error behind an intervention, with every attempt and why it failed; None for an intervention point."""
    if row["error_id"] is None:
        return None
    return reads.error(at.postgres, str(row["error_id"]))
