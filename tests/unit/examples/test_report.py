"""The demo's report: sums that are right, and checks that bite."""

from __future__ import annotations

from typing import Any

import pytest

from examples.demo import report
from examples.demo.plan import HEALTHY, Plan
from examples.demo.report import AttemptLine, Check, ErrorLine, FaultLine, Report, StepRun
from examples.demo.screen import Screen, describe
from examples.development.faults import CRASH, PERMANENT, Fault
from examples.development.work import Execution

PLAN = Plan(
    run="r",
    seed=1,
    faults={
        "healthy": None,
        "crashing": Fault(kind=CRASH, step_id="build"),
        "hopeless": Fault(kind=PERMANENT, step_id="test", times=None),
    },
)
AS_PLANNED = [
    {"id": "healthy", "status": "completed"},
    {"id": "crashing", "status": "completed"},
    {"id": "hopeless", "status": "waiting_for_human"},
]
ASKED = [{"workflow_id": "hopeless"}]


def with_status(workflow_id: str, status: str) -> list[dict[str, Any]]:
    return [{**row, "status": status} if row["id"] == workflow_id else row for row in AS_PLANNED]


def attempt(**changes: Any) -> dict[str, Any]:
    return {
        "strategy": "retry_step",
        "status": "succeeded",
        "attempt_number": 1,
        "command": True,
        "execute_after_ms": 0,
        "error_to_sent_ms": 5.0,
        "sent_to_accepted_ms": 3.0,
        "error_to_finished_ms": 100.0,
        **changes,
    }


def run(command_id: str | None = "c", step_id: str = "build", step_run_id: str = "1", **changes: str) -> StepRun:
    fields = {"workflow_id": "w", "producer": "p", **changes}
    return StepRun(command_id=command_id, step_id=step_id, step_run_id=step_run_id, **fields)


def deployment(workflow_id: str, command_id: str | None = None, step_run_id: str = "1") -> Execution:
    return Execution(workflow_id=workflow_id, command_id=command_id, step_run_id=step_run_id, pid=1)


def test_outcomes_count_the_workflows_that_never_started() -> None:
    assert report.outcomes(PLAN, AS_PLANNED) == {"completed": 2, "waiting_for_human": 1}
    assert report.outcomes(PLAN, AS_PLANNED[:1]) == {"completed": 1, "never_started": 2}


def test_workflows_are_counted_by_planned_fault() -> None:
    lines = report.by_fault(PLAN, with_status("crashing", "recovering"))
    assert lines == [
        FaultLine(fault=CRASH, workflows=1, completed=0, waiting_for_human=0, other=1),
        FaultLine(fault=HEALTHY, workflows=1, completed=1, waiting_for_human=0, other=0),
        FaultLine(fault=PERMANENT, workflows=1, completed=0, waiting_for_human=1, other=0),
    ]


def test_errors_are_grouped_by_type_and_strategy_and_joined_ones_are_left_out() -> None:
    def error(strategy: str, status: str, attempts: int, *, root: bool = True) -> dict[str, Any]:
        return {"error_type": "timeout", "strategy": strategy, "status": status, "attempts": attempts, "root": root}

    rows = [
        error("retry", "recovered", 2),
        error("retry", "recovering", 1),
        error("human", "waiting_for_human", 4),
        error("-", "ignored", 0),
        error("-", "joined", 0, root=False),
    ]
    assert [(e.strategy, e.errors, e.recovered, e.ignored, e.attempts) for e in report.by_error(rows)] == [
        ("-", 1, 0, 1, 0),
        ("human", 1, 0, 0, 4),
        ("retry", 2, 1, 0, 3),
    ]
    assert report.by_error(rows)[2] == ErrorLine(
        error_type="timeout",
        strategy="retry",
        errors=2,
        recovered=1,
        waiting_for_human=0,
        ignored=0,
        other=1,
        attempts=3,
    )


def test_attempts_that_have_no_outcome_are_open() -> None:
    rows = [attempt(status=s) for s in ("succeeded", "succeeded", "failed", "unknown", "sent", "accepted")]
    assert report.by_strategy(rows) == [
        AttemptLine(strategy="retry_step", attempts=6, succeeded=2, failed=1, unknown=1, open=2)
    ]


def test_percentiles_are_nearest_ranks() -> None:
    line = report.time_line("x", (float(n) for n in range(200, 0, -1)))
    assert line is not None
    assert (line.count, line.p50_ms, line.p99_ms, line.max_ms) == (200, 100.0, 198.0, 200.0)
    single = report.time_line("x", [7.0])
    assert single is not None
    assert (single.p50_ms, single.p99_ms, single.max_ms) == (7.0, 7.0, 7.0)
    assert report.time_line("x", []) is None


def test_the_policys_wait_is_taken_out_of_the_time_to_the_command() -> None:
    rows = [
        attempt(error_to_sent_ms=1_504.0, execute_after_ms=1_500),
        attempt(attempt_number=2, error_to_sent_ms=9_000.0),
        attempt(command=False, error_to_sent_ms=8_000.0),
        attempt(error_to_sent_ms=None, sent_to_accepted_ms=None, status="decided", error_to_finished_ms=None),
    ]
    found = {line.what: line for line in report.times(rows)}
    assert found["error to command"].max_ms == 1_504.0
    assert found["error to command, without the policy's wait"].max_ms == 4.0
    assert found["error to recovered"].count == 3


def test_what_went_as_planned_passes() -> None:
    assert report.finished(PLAN, AS_PLANNED).ok
    assert report.handed_over(PLAN, AS_PLANNED, ASKED).ok


@pytest.mark.parametrize("status", ["recovering", "waiting_for_human", "failed", "running"])
def test_a_recoverable_workflow_that_was_not_completed_is_named(status: str) -> None:
    check = report.finished(PLAN, with_status("crashing", status))
    assert not check.ok
    assert check.detail == f"crashing (crash): {status}"


def test_a_workflow_that_never_started_is_not_completed() -> None:
    assert report.finished(PLAN, AS_PLANNED[1:]).detail == "healthy (none): never started"


def test_a_hopeless_workflow_must_wait_and_somebody_must_have_been_asked() -> None:
    assert not report.handed_over(PLAN, with_status("hopeless", "completed"), ASKED).ok
    assert not report.handed_over(PLAN, AS_PLANNED, []).ok


def test_a_step_that_ran_twice_for_one_command_is_found() -> None:
    sound = [run(), run(), run(step_id="test", step_run_id="2"), run("d", step_run_id="3")]
    assert report.once_in_log(sound).ok
    check = report.once_in_log([*sound, run(step_run_id="4")])
    assert not check.ok
    assert check.detail == "build for command c: 2 runs"


def test_first_runs_have_no_command_to_be_judged_by() -> None:
    assert report.once_in_log([run(None), run(None, step_run_id="2")]).ok


def test_a_deployment_executed_twice_for_one_command_is_found() -> None:
    sound = [deployment("a"), deployment("a", "c1"), deployment("a", "c2"), deployment("b")]
    assert report.once_in_ledger(sound).ok
    assert not report.once_in_ledger([*sound, deployment("a", "c1", "2")]).ok
    assert not report.once_in_ledger([*sound, deployment("b", None, "2")]).ok


def test_completed_without_a_deployment_is_found() -> None:
    assert report.deployed(AS_PLANNED, [deployment("healthy"), deployment("crashing")]).ok
    check = report.deployed(AS_PLANNED, [deployment("healthy")])
    assert not check.ok
    assert check.detail == "crashing"


def test_many_contradictions_are_counted_and_a_few_named() -> None:
    plan = Plan(run="r", seed=1, faults={f"w{n:02}": None for n in range(20)})
    detail = report.finished(plan, []).detail
    assert detail.count("never started") == report.NAMED_MAX
    assert detail.endswith("and 15 more")


def test_a_workflow_is_taken_over_when_its_steps_ran_in_two_processes() -> None:
    runs = [run(producer="a"), run(producer="b"), run(workflow_id="other", producer="a")]
    assert report.taken_over(runs) == 1


def test_one_failed_check_fails_the_report() -> None:
    def made(*checks: Check) -> Report:
        return Report(
            version=report.VERSION,
            run="r",
            seed=1,
            seconds=1.0,
            workflows={},
            faults=[],
            errors=[],
            errors_again=0,
            attempts=[],
            times=[],
            waiting=[],
            taken_over=0,
            checks=list(checks),
        )

    good, bad = Check(name="a", ok=True, detail=""), Check(name="b", ok=False, detail="")
    assert made(good).ok
    assert not made(good, bad).ok
    assert made(good, bad).document()["ok"] is False


def test_progress_is_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen(terminal=False) as screen:
        screen.progress(3, {"completed": 1, "waiting_for_human": 1, "running": 1})
        screen.progress(3, {"completed": 2, "waiting_for_human": 1})
        screen.say("done")
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line.split("s  ", 1)[1] for line in err.splitlines()]
    assert lines == ["2 of 3 workflows have ended: 1 waiting for human, 1 running, 1 completed", "done"]


def test_nothing_started_is_said_in_words() -> None:
    assert describe({}) == "none started yet"
