"""From rows to the report: pure functions. What must hold is a list of checks, each with what contradicts it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from examples.development.work import Execution

from .plan import Plan

#: Layout of the JSON report.
VERSION = 1
#: Contradictions that a check names; more are only counted.
NAMED_MAX = 5

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultLine:
    """Workflows by planned fault, and what became of them."""

    fault: str
    workflows: int
    completed: int
    waiting_for_human: int
    other: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorLine:
    """Errors by type and by the strategy that came last. Ignored are those found after their workflow had ended."""

    error_type: str
    strategy: str
    errors: int
    recovered: int
    waiting_for_human: int
    ignored: int
    other: int
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptLine:
    """Attempts by strategy and outcome."""

    strategy: str
    attempts: int
    succeeded: int
    failed: int
    unknown: int
    open: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLine:
    """A duration over all its cases, milliseconds."""

    what: str
    count: int
    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Something that must hold; `detail` says what contradicts it, or what was looked at."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRun:
    """A run of a step as the log has it."""

    workflow_id: str
    command_id: str | None
    step_id: str
    step_run_id: str
    producer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the demo prints."""

    version: int
    run: str
    seed: int
    seconds: float
    workflows: dict[str, int]
    faults: list[FaultLine]
    errors: list[ErrorLine]
    errors_again: int
    attempts: list[AttemptLine]
    times: list[TimeLine]
    waiting: list[dict[str, Any]]
    taken_over: int
    checks: list[Check]

    @property
    def ok(self) -> bool:
        """Whether all checks hold."""
        return all(check.ok for check in self.checks)

    def document(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {**asdict(self), "ok": self.ok}


def outcomes(plan: Plan, workflows: Sequence[Row]) -> dict[str, int]:
    """Workflows by outcome; those of the plan that have no row never started."""
    counts = Counter(str(row["status"]) for row in workflows)
    missing = len(set(plan.ids) - {row["id"] for row in workflows})
    return dict(sorted(counts.items())) | ({"never_started": missing} if missing else {})


def by_fault(plan: Plan, workflows: Sequence[Row]) -> list[FaultLine]:
    """What became of the workflows of each planned fault."""
    status = {row["id"]: row["status"] for row in workflows}
    lines = []
    for kind in sorted({plan.kind(i) for i in plan.ids}):
        found = Counter(status.get(i) for i in plan.ids if plan.kind(i) == kind)
        completed, waiting = found["completed"], found["waiting_for_human"]
        lines.append(
            FaultLine(
                fault=kind,
                workflows=found.total(),
                completed=completed,
                waiting_for_human=waiting,
                other=found.total() - completed - waiting,
            )
        )
    return lines


def by_error(errors: Sequence[Row]) -> list[ErrorLine]:
    """Errors that opened a repair, by type and last strategy."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in errors:
        if row["root"]:
            groups.setdefault((row["error_type"], row["strategy"]), []).append(row)
    lines = []
    for (error_type, strategy), rows in sorted(groups.items()):
        found = Counter(row["status"] for row in rows)
        recovered, waiting, ignored = found["recovered"], found["waiting_for_human"], found["ignored"]
        lines.append(
            ErrorLine(
                error_type=error_type,
                strategy=strategy,
                errors=len(rows),
                recovered=recovered,
                waiting_for_human=waiting,
                ignored=ignored,
                other=len(rows) - recovered - waiting - ignored,
                attempts=sum(row["attempts"] for row in rows),
            )
        )
    return lines


def by_strategy(attempts: Sequence[Row]) -> list[AttemptLine]:
    """Attempts by strategy."""
    groups: dict[str, Counter[str]] = {}
    for row in attempts:
        groups.setdefault(row["strategy"], Counter())[row["status"]] += 1
    return [
        AttemptLine(
            strategy=strategy,
            attempts=found.total(),
            succeeded=found["succeeded"],
            failed=found["failed"],
            unknown=found["unknown"],
            open=found.total() - found["succeeded"] - found["failed"] - found["unknown"],
        )
        for strategy, found in sorted(groups.items())
    ]


def times(attempts: Sequence[Row]) -> list[TimeLine]:
    """How long it took from an error to the first command, and to the end of the repair."""
    first = [r for r in attempts if r["attempt_number"] == 1 and r["command"] and r["error_to_sent_ms"] is not None]
    accepted = [r["sent_to_accepted_ms"] for r in attempts if r["command"] and r["sent_to_accepted_ms"] is not None]
    recovered = [r["error_to_finished_ms"] for r in attempts if r["status"] == "succeeded"]
    lines = (
        time_line("error to command", (r["error_to_sent_ms"] for r in first)),
        time_line(
            "error to command, without the policy's wait",
            (max(0.0, r["error_to_sent_ms"] - r["execute_after_ms"]) for r in first),
        ),
        time_line("command to accepted by a service", accepted),
        time_line("error to recovered", recovered),
    )
    return [line for line in lines if line is not None]


def time_line(what: str, values_ms: Iterable[float]) -> TimeLine | None:
    """Percentiles by nearest rank; None without values."""
    ordered = sorted(values_ms)
    if not ordered:
        return None
    return TimeLine(
        what=what,
        count=len(ordered),
        p50_ms=round(_rank(ordered, 50), 1),
        p99_ms=round(_rank(ordered, 99), 1),
        max_ms=round(ordered[-1], 1),
    )


def _rank(ordered: Sequence[float], percent: int) -> float:
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def taken_over(runs: Sequence[StepRun]) -> int:
    """Workflows whose steps ran in more than one process."""
    producers: dict[str, set[str]] = {}
    for run in runs:
        producers.setdefault(run.workflow_id, set()).add(run.producer)
    return sum(len(found) > 1 for found in producers.values())


# -- checks ---------------------------------------------------------------------------------------------------------


def finished(plan: Plan, workflows: Sequence[Row]) -> Check:
    """Every recoverable workflow was completed."""
    status = {row["id"]: row["status"] for row in workflows}
    wanted = [i for i in plan.ids if plan.recoverable(i)]
    wrong = [f"{i} ({plan.kind(i)}): {status.get(i, 'never started')}" for i in wanted if status.get(i) != "completed"]
    return _check("every recoverable workflow was completed", wrong, f"{len(wanted)} workflows")


def handed_over(plan: Plan, workflows: Sequence[Row], waiting: Sequence[Row]) -> Check:
    """Every workflow beyond repair waits for a human, and an intervention says why."""
    status = {row["id"]: row["status"] for row in workflows}
    asked = {row["workflow_id"] for row in waiting}
    wanted = [i for i in plan.ids if not plan.recoverable(i)]
    wrong = [
        f"{i} ({plan.kind(i)}): {status.get(i, 'never started')}"
        for i in wanted
        if status.get(i) != "waiting_for_human" or i not in asked
    ]
    return _check("every workflow beyond repair waits for a human", wrong, f"{len(wanted)} workflows")


def once_in_log(runs: Sequence[StepRun]) -> Check:
    """No step ran twice for one command."""
    found: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        if run.command_id is not None:
            found.setdefault((run.command_id, run.step_id), set()).add(run.step_run_id)
    wrong = [f"{step} for command {command}: {len(ids)} runs" for (command, step), ids in found.items() if len(ids) > 1]
    return _check("the log has no step that ran twice for one command", wrong, f"{len(found)} steps run for commands")


def once_in_ledger(executions: Sequence[Execution]) -> Check:
    """No deployment was executed twice for one command, or twice by the first run of a workflow."""
    counts = Counter((e.workflow_id, e.command_id) for e in executions)
    wrong = [f"{workflow} for command {command}: {n} times" for (workflow, command), n in counts.items() if n > 1]
    return _check(
        "the services' ledger has no deployment twice for one command", wrong, f"{len(executions)} deployments"
    )


def deployed(workflows: Sequence[Row], executions: Sequence[Execution]) -> Check:
    """What counts as completed was really deployed."""
    done = {e.workflow_id for e in executions}
    completed = [row["id"] for row in workflows if row["status"] == "completed"]
    return _check(
        "every completed workflow was deployed", [i for i in completed if i not in done], f"{len(completed)} workflows"
    )


def _check(name: str, wrong: Sequence[str], looked_at: str) -> Check:
    if not wrong:
        return Check(name=name, ok=True, detail=looked_at)
    more = f" and {len(wrong) - NAMED_MAX} more" if len(wrong) > NAMED_MAX else ""
    return Check(name=name, ok=False, detail="; ".join(wrong[:NAMED_MAX]) + more)
