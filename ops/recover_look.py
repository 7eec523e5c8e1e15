"""Workflows as the engine sees them now, folded from the log, with what a repair of each would run again.

Nothing here depends on the tables, which may lag: what is asked for is held against the log itself. No keys are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from consumers.log_reader import LogReader
from consumers.policies import read_policies
from engine.by_hand import plan_of
from engine.events import Delivered
from engine.fold import evolve
from engine.inforce import InForce
from engine.inspection import deliver
from engine.policy import Policy
from engine.state import Case, WorkflowState
from engine.strategies import Plan, Unavailable
from schemas.admission import admit
from schemas.archive_format import Gap
from schemas.codec import Codec, Unknown
from schemas.errors import PoisonError
from schemas.records import Command
from schemas.records.events import CheckpointCreated, InterventionResolved, StepSpec, WorkflowStarted
from schemas.registry import Registry

from .archive import history_of
from .lineage import Lineage
from .stack import Addresses

#: Steps of one repair that are shown and written into a plan; a workflow may have thousands. Of those that have to be
#: accepted by name none is left out.
STEPS_MAX = 200
#: Commands after which the failed step alone runs again.
_ONE_STEP = frozenset({"RetryStep", "ScaleResources"})
#: Commands after which no step runs again.
_NO_STEP = frozenset({"SkipStep", "CancelWorkflow", "PauseWorkflow", "ReconcileStep"})

Row = dict[str, Any]


class Place(NamedTuple):
    """Where a workflow's events are."""

    workflow_id: str
    partition: int
    first_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """A step that would run again. Of a step that was never declared nothing is known: its owner is asked to think."""

    step_id: str
    completed: int
    idempotent: bool
    compensation: str | None


@dataclass(slots=True)
class Seen:
    """One workflow, folded to the end of the log."""

    lineage: Lineage
    in_force: InForce
    state: WorkflowState | None = None
    sealed: bool = False
    #: The first answer of each intervention.
    answers: dict[str, InterventionResolved] = field(default_factory=dict)

    def case(self, error_id: str) -> Case | None:
        """An open case."""
        return None if self.state is None else (self.state.cases or {}).get(error_id)

    def case_of_intervention(self, intervention_id: str) -> Case | None:
        """The case that waits for this answer."""
        cases = () if self.state is None else (self.state.cases or {}).values()
        return next((case for case in cases if case.intervention_id == intervention_id), None)

    def plan(self, case: Case, strategy: str, parameters: Mapping[str, Any]) -> Plan | Unavailable:
        """What the engine would do, or why it would not."""
        assert self.state is not None
        return plan_of(self.state, case, self.in_force.policy, strategy, parameters)

    def again(self, case: Case, plan: Plan) -> list[Again]:
        """Steps that run again when this plan is carried out, the failed one among them."""
        steps = [self._again(step_id) for step_id in self._steps(case, plan)]
        if len(steps) <= STEPS_MAX:
            return steps
        room = STEPS_MAX - sum(not step.idempotent for step in steps)
        plain = {step.step_id for step in [step for step in steps if step.idempotent][: max(0, room)]}
        return [step for step in steps if not step.idempotent or step.step_id in plain]

    def _steps(self, case: Case, plan: Plan) -> Iterable[str]:
        command = plan.command_type
        if command in _NO_STEP or command is None:
            return ()
        if command in _ONE_STEP:
            return (case.step_id,) if case.step_id else ()
        if command == "RestartWorkflow":
            return tuple(self.lineage.ran)
        if command == "RunAlternativePath":
            return (str((plan.parameters or {}).get("alternative_step_id", "")),)
        node = None if plan.checkpoint is None else self.lineage.nodes.get(plan.checkpoint.checkpoint_id)
        if node is not None and node.saved is not None:
            return self.lineage.again(node.saved)
        return ()  # everything is undone, and the workflow ends

    def _again(self, step_id: str) -> Again:
        spec: StepSpec | None = self.lineage.specs.get(step_id)
        ran = self.lineage.ran.get(step_id)
        return Again(
            step_id=step_id,
            completed=0 if ran is None else ran.completed,
            idempotent=spec is not None and spec.idempotent,
            compensation=None if spec is None else spec.compensation,
        )

    def add(self, event: Delivered) -> None:
        """The workflow's next event."""
        record = event.record
        self.lineage.add(event)
        self.state = evolve(self.state, event)
        if isinstance(record, InterventionResolved):
            self.answers.setdefault(record.intervention_id, record)
        elif isinstance(record, CheckpointCreated):
            self.sealed = self.sealed or record.protection == "aes-256-gcm"
        elif isinstance(record, WorkflowStarted):
            self.sealed = self.sealed or record.sealed is not None


def rows_of(steps: Iterable[Again]) -> list[Row]:
    """Steps as rows for people."""
    return [asdict(step) for step in steps]


def look(
    at: Addresses,
    log: LogReader,
    places: Iterable[Place],
    policy: Policy,
    *,
    on_gap: Callable[[Gap], None],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Seen]:
    """Fold these workflows, one pass over each of their partitions. RetriableError when Kafka is away.

    `policy` is the one processes are started with; those that were applied count from their places on.
    """
    by_partition: dict[int, dict[bytes, Seen]] = {}
    first: dict[int, int] = {}
    found: dict[str, Seen] = {}
    for place in places:
        in_force = next((seen.in_force for seen in by_partition.get(place.partition, {}).values()), None) or InForce(
            policy
        )
        seen = found[place.workflow_id] = Seen(Lineage(), in_force)
        by_partition.setdefault(place.partition, {})[place.workflow_id.encode()] = seen
        first[place.partition] = min(place.first_offset, first.get(place.partition, place.first_offset))
    with Registry(at.registry) as registry:
        codec = Codec(registry)
        history = history_of(at, log)
        bounds, applied = history.bounds(), read_policies(log)
        for number, (partition, workflows) in enumerate(sorted(by_partition.items())):
            on_progress(number, len(by_partition))
            before = applied.before(partition, first[partition])
            if before is not None:
                next(iter(workflows.values())).in_force.restore(before.text, before.sequence)
            for record in history.read({partition: (first[partition], bounds[partition].end)}, on_gap=on_gap):
                _take(codec, partition, record, workflows)
    on_progress(len(by_partition), len(by_partition))
    return found


def _take(codec: Codec, partition: int, found: Any, workflows: dict[bytes, Seen]) -> None:
    seen = workflows.get(found.key)
    if seen is None and b"PolicyChanged" not in _kind(found):
        return
    try:
        record = admit(codec, found.key, found.value)
    except PoisonError:
        return
    if isinstance(record, Unknown | Command):
        return
    event = deliver(record, partition, found.offset, found.timestamp_ms * 1000)
    in_force = next(iter(workflows.values())).in_force
    if in_force.take(event) or seen is None:
        return
    seen.add(event)


def _kind(found: Any) -> bytes:
    return next((value for name, value in found.headers if name == "ce_type"), b"")
