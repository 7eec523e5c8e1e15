"""A replay of a recorded partition, from bytes on: what it counts, leaves out and says of gaps; the same each time."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from ops.replay import Plan
from ops.replay_commands import Window
from ops.replay_range import Range, ReplayError
from ops.replaying import Request
from schemas.archive_format import Gap
from schemas.log_record import LogRecord
from schemas.records.events import WorkflowErrorOccurred

from . import replay_kit
from .replay_kit import recorded, repaired

WORLD = repaired(3)
LOG = recorded(WORLD)
FIRST, *_, LAST = (n for n, e in enumerate(WORLD.log) if isinstance(e.record, WorkflowErrorOccurred))


def replayed(
    range_: Range | None = None, *specs: str, log: list[LogRecord] | None = None, **options: Any
) -> dict[str, Any]:
    return replay_kit.replayed(LOG if log is None else log, range_, *specs, **options)


def rows(document: dict[str, Any], table: str) -> tuple[int, int]:
    [found] = [t for t in document["tables"] if t["table"] == table]
    return found["rows"], found["changes"]


def test_what_was_recorded_is_asked_for_again_whoevers_facts_are_folded() -> None:
    for facts in ("recorded", "own"):
        document = replayed(facts=facts)
        assert document["agrees"] and set(document["verdicts"]) == {"same"}
        assert document["records"] == len(LOG) and document["commands"] == {"RetryStep": 3}
        assert [d["verdict"] for d in document["decisions"]] == ["same"] * 3
        assert rows(document, "workflows")[0] == 3


def test_rows_made_in_a_range_are_counted_and_not_those_before_it() -> None:
    third = next(n for n, e in enumerate(WORLD.log) if e.record.workflow_id == WORLD.log[LAST].record.workflow_id)
    document = replayed(Range(partition=0, first=0, start=third, end=len(LOG)))
    assert document["records_before"] == third and document["agrees"]
    assert rows(document, "workflows")[0] == 1
    assert rows(document, "workflow_errors")[0] == 1
    later = replayed(Range(partition=0, first=0, start=LAST + 1, end=len(LOG)))
    made, changed = rows(later, "workflow_errors")
    assert made == 0 and changed > 0


@pytest.mark.parametrize("spec", ["", "duplicate", "delay", "corrupt", "drop", "replace", "kill"])
def test_the_same_plan_gives_the_same_bytes(spec: str) -> None:
    options = {"delay": ",records=3", "replace": ",error_code=ValueError"}.get(spec, "")
    specs = [f"{spec}@0:{FIRST}{options}"] if spec else []
    first, second = ([], []) if spec else (None, None)  # type: ignore[var-annotated]
    once, again = (orjson.dumps(replayed(None, *specs, seed=7, steps=s)) for s in (first, second))
    assert once == again and first == second


def test_a_record_that_comes_twice_changes_nothing() -> None:
    document = replayed(None, f"duplicate@0:{FIRST}")
    assert document["records"] == len(LOG) + 1
    assert document["agrees"] and document["injected"][0]["applied"] == 1
    assert rows(document, "workflow_errors")[0] == 3


def test_an_error_that_comes_later_is_decided_on_where_it_comes() -> None:
    steps: list[dict[str, Any]] = []
    document = replayed(None, f"delay@0:{FIRST},records=2", steps=steps)
    assert document["records"] == len(LOG)
    [at] = [n for n, s in enumerate(steps) if s["record"]["event_id"] == WORLD.log[FIRST].record.event_id]
    places = [int(s["place"].split(":")[1]) for s in steps]
    assert places == sorted(places), "nothing stands before what came before it"
    assert places[at] > FIRST
    assert len(document["decisions"]) == 3


def test_an_error_that_is_another_is_decided_on_as_that() -> None:
    document = replayed(None, f"replace@0:{FIRST},error_code=PERMISSION_DENIED")
    found = document["decisions"][0]
    assert found["verdict"] == "differs"
    assert found["recorded"]["error_type"] == "TIMEOUT" or found["recorded"]["strategy"]


def test_a_record_that_is_damaged_is_set_aside_or_read_and_never_ends_a_replay() -> None:
    aside = 0
    for seed in range(60):
        document = replayed(None, f"corrupt@0:{FIRST}", seed=seed)
        assert document["records"] == len(LOG)
        aside += sum(document["set_aside"].values())
    assert aside > 0


def test_records_that_cannot_be_read_are_counted_by_reason() -> None:
    log = [*LOG, LogRecord(0, len(LOG), 1, 2, b"k", b"garbage", ()), LogRecord(0, len(LOG) + 1, 1, 2, b"k", None, ())]
    document = replayed(log=log)
    assert sum(document["set_aside"].values()) == 2 and document["agrees"]


def test_one_workflow_alone_is_replayed_as_among_the_others() -> None:
    workflow_id = WORLD.log[FIRST].record.workflow_id
    document = replayed(workflow_id=workflow_id)
    assert document["records"] == sum(e.record.workflow_id == workflow_id for e in WORLD.log)
    assert document["agrees"] and {d["workflow_id"] for d in document["decisions"]} == {workflow_id}


def test_workflows_that_begin_in_a_gap_or_before_it_are_not_judged() -> None:
    second = next(
        n for n, e in enumerate(WORLD.log) if n > FIRST and e.record.workflow_id != WORLD.log[0].record.workflow_id
    )
    gap = Gap(partition=0, first=1, next=second + 3, reason="lost")
    range_ = Range(partition=0, first=0, start=0, end=len(LOG), gap_end=gap.next)
    document = replayed(range_, gap=gap, accept_gap=True, missing=(gap,))
    assert document["agrees"] and document["verdicts"]["unproven"] > 0 and document["verdicts"]["same"] > 0
    blind = replayed(Range(partition=0, first=0, start=0, end=len(LOG)), gap=gap, accept_gap=True, missing=(gap,))
    assert not blind["agrees"], "without the gap's end, workflows would be judged by half of their events"


def test_what_goes_missing_between_plan_and_replay_ends_it() -> None:
    gap = Gap(partition=0, first=2, next=4, reason="lost")
    with pytest.raises(ReplayError, match="went missing meanwhile") as refused:
        replayed(gap=gap, accept_gap=True)
    assert refused.value.reason == "missing"


def test_a_step_shows_the_state_on_both_sides_of_its_event() -> None:
    steps: list[dict[str, Any]] = []
    replayed(steps=steps)
    assert len(steps) == len(LOG)
    opened = steps[FIRST]
    assert opened["event"] == "WorkflowErrorOccurred" and "RecoveryDecided" in {e["record"] for e in opened["effects"]}
    assert (len(opened["engine"]["before"]["cases"]), len(opened["engine"]["after"]["cases"])) == (0, 1)
    assert steps[0]["engine"]["before"] is None
    by_workflow: dict[str, Any] = {}
    for found in steps:
        assert found["engine"]["before"] == by_workflow.get(found["record"]["workflow_id"])
        by_workflow[found["record"]["workflow_id"]] = found["engine"]["after"]


def test_a_request_reaches_the_process_as_it_was_made() -> None:
    gap = Gap(partition=0, first=2, next=4, reason="lost")
    range_ = Range(partition=0, first=0, start=2, end=9, gap_end=4)
    plan = Plan(ranges=(range_,), facts="own", injections=("drop@0:5",), seed=-3, missing=(gap,), accept_gap=True)
    commands = Window(ranges=((0, 3, 9),), whole_from_us=5, now_us=7, cut=True)
    request = Request(plan=plan, commands=commands, form="html", step=True, interactive=False)
    assert Request.loaded(request.dumped()) == request
    assert json.loads(json.dumps(plan.document()))["ranges"][0]["gap_end"] == 4
