"""What is done to single steps: alternatives, skips, compensations, reconciliations, intervention points, edits."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from kintsugi_client import KintsugiError, PausedError, StepContext, Workflow
from kintsugi_client._schemas.records.commands import (
    CancelStep,
    CompensateStep,
    ReconcileStep,
    ResumeFromCheckpoint,
    ResumeWorkflow,
    RetryStep,
    RollbackTo,
    RunAlternativePath,
    ScaleResources,
    SkipStep,
)
from kintsugi_client._schemas.records.events import (
    CheckpointCreated,
    CommandAcknowledged,
    InterventionPointReached,
    StateRestored,
    StepCompensated,
    StepCompleted,
    StepSkipped,
    StepStarted,
    WorkflowErrorOccurred,
    WorkflowPaused,
    WorkflowResumed,
)
from kintsugi_client.inbox import Received

from .flow import Flow
from .kit import Service, wait_for

ORDER = ["reserve", "charge", "ship"]


class Shop(Flow):
    """Three steps; the first and the second can be undone, the second has an alternative and can be asked about."""

    #: What the reconcile function says.
    took_effect: Any = None

    def declare(self) -> None:
        kind = self.kind
        kind.step("reserve", compensation="release")(self.step)
        kind.step("charge", compensation="refund", alternative="invoice", idempotent=False, reconcilable=True)(
            self.step
        )
        kind.step("ship")(self.step)
        for step_id in ("release", "refund", "invoice"):
            kind.step(step_id)(self.step)
        kind.reconcile("charge")(self.reconcile)

    def reconcile(self, ctx: StepContext) -> Any:
        self.ran.append("reconcile")
        ctx.heartbeat(0.5)
        ctx.state["receipt"] = "found"
        if isinstance(self.took_effect, BaseException):
            raise self.took_effect
        return self.took_effect


@pytest.fixture
def shop(service: Service, monkeypatch: pytest.MonkeyPatch) -> Shop:
    return Shop(service, monkeypatch)


def last_state(service: Service) -> dict[str, Any]:
    found = [c for c in service.of(CheckpointCreated) if not c.evidence][-1]
    document: dict[str, Any] = json.loads(found.state or b"")
    return document


def answer_of(service: Service, received: Received) -> CommandAcknowledged:
    service.answer(received)
    return next(a for a in service.of(CommandAcknowledged) if a.command_id == received.command.command_id)


def test_steps_that_stand_for_others_are_left_out(service: Service, shop: Shop) -> None:
    workflow = shop.kind.start()
    shop.completed(workflow)
    assert shop.ran == ORDER


# -- the alternative path ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [True, False], ids=["here", "taken over"])
def test_an_alternative_runs_instead_and_the_rest_goes_on(service: Service, shop: Shop, held: bool) -> None:
    workflow = shop.failed_workflow("charge")
    if not held:
        shop.forget(workflow)
    where = shop.where(workflow)
    received = shop.send(RunAlternativePath, workflow, step_id="charge", alternative_step_id="invoice", **where)
    shop.completed(workflow)
    assert service.answer(received) == ("succeeded", None)
    assert shop.ran == ["reserve", "charge", "invoice", "ship"]
    command_id = received.command.command_id
    assert [(s.step_id, s.command_id) for s in service.of(StepStarted)][2:] == [
        ("invoice", command_id),
        ("ship", command_id),
    ]
    (skipped,) = service.of(StepSkipped)
    assert (skipped.step_id, skipped.reason, skipped.command_id) == ("charge", "alternative invoice ran", command_id)
    names = service.names
    assert names.index("StepSkipped") == [i for i, n in enumerate(names) if n == "StepCompleted"][1] + 1


def test_who_restores_the_alternatives_checkpoint_does_not_run_what_it_stands_for(service: Service, shop: Shop) -> None:
    workflow = shop.failed_workflow("charge")
    shop.fails["ship"] = [ValueError("broken")]
    where = shop.where(workflow)
    shop.send(RunAlternativePath, workflow, step_id="charge", alternative_step_id="invoice", **where)
    wait_for("the second error", lambda: len(shop.errors(workflow)) == 2)
    places = [c for c in service.of(CheckpointCreated) if c.step_id == "invoice"]
    assert json.loads(places[-1].state or b"")["completed_steps"] == ["reserve", "invoice", "charge"]
    shop.forget(workflow)
    shop.send(ResumeFromCheckpoint, workflow, **shop.where(workflow))
    shop.completed(workflow)
    assert shop.ran == ["reserve", "charge", "invoice", "ship", "ship"]


def test_an_alternative_that_fails_says_so_and_skips_nothing(service: Service, shop: Shop) -> None:
    workflow = shop.failed_workflow("charge")
    shop.fails["invoice"] = [ValueError("no paper")]
    where = shop.where(workflow)
    received = shop.send(RunAlternativePath, workflow, step_id="charge", alternative_step_id="invoice", **where)
    assert service.answer(received) == ("failed", "ValueError: no paper")
    assert shop.errors(workflow)[-1].step_id == "invoice"
    assert not service.of(StepSkipped) and "ship" not in shop.ran


def test_an_alternative_without_a_function_is_refused(service: Service, shop: Shop) -> None:
    workflow = shop.failed_workflow("charge")
    received = shop.send(RunAlternativePath, workflow, step_id="charge", alternative_step_id="cash")
    assert service.answer(received) == ("failed", "workflow type 'development' has no function for step 'cash'")


# -- skipping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [True, False], ids=["here", "taken over"])
def test_a_skipped_step_leaves_the_result_that_was_supplied(service: Service, shop: Shop, held: bool) -> None:
    workflow = shop.failed_workflow("charge")
    if not held:
        shop.forget(workflow)
    result = '{"receipt": {"number": 7}, "in": null}'
    received = shop.send(SkipStep, workflow, step_id="charge", result=result, **shop.where(workflow))
    shop.completed(workflow)
    assert service.answer(received) == ("succeeded", None)
    assert shop.ran == ["reserve", "charge", "ship"]
    (skipped,) = service.of(StepSkipped)
    assert (skipped.step_id, skipped.reason) == ("charge", "because")
    state = last_state(service)
    assert state["data"] == {"done": ["reserve", "ship"], "receipt": {"number": 7}}
    assert state["completed_steps"] == ["reserve", "charge", "ship"]
    (at,) = [c for c in service.of(CheckpointCreated) if c.step_id == "charge" and c.checkpoint_type != "step_start"][
        1:
    ]
    assert b'"receipt"' in (at.state or b"")


def test_a_result_that_leaves_no_valid_state_skips_nothing(service: Service, shop: Shop) -> None:
    workflow = shop.failed_workflow("charge")
    received = shop.send(SkipStep, workflow, step_id="charge", result="[]", **shop.where(workflow))
    status, detail = service.answer(received)
    assert status == "failed" and "no JSON object but a list" in (detail or "")
    assert service.reason(received) == "edit_invalid"
    assert not service.of(StepSkipped) and len(shop.errors(workflow)) == 1


def test_a_step_that_took_effect_is_skipped_with_what_its_reconciliation_finds(service: Service, shop: Shop) -> None:
    workflow = shop.failed_workflow("charge")
    shop.took_effect = True
    shop.send(SkipStep, workflow, step_id="charge", **shop.where(workflow))
    shop.completed(workflow)
    assert shop.ran == ["reserve", "charge", "reconcile", "ship"]
    assert last_state(service)["data"]["receipt"] == "found"


@pytest.mark.parametrize("said", [False, None])
def test_a_skip_without_result_goes_on_whatever_the_reconciliation_says(
    service: Service, shop: Shop, said: bool | None
) -> None:
    workflow = shop.failed_workflow("charge")
    shop.took_effect = said
    received = shop.send(SkipStep, workflow, step_id="charge", **shop.where(workflow))
    shop.completed(workflow)
    assert service.answer(received) == ("succeeded", None)
    assert "receipt" not in last_state(service)["data"]


def test_steps_that_need_a_skipped_one_are_left_out_with_it(service: Service, shop: Shop) -> None:
    workflow = shop.failed_workflow("charge")
    received = shop.send(
        SkipStep, workflow, step_id="charge", result="{}", dependants=("ship",), **shop.where(workflow)
    )
    shop.completed(workflow)
    assert service.answer(received) == ("succeeded", None)
    assert shop.ran == ["reserve", "charge"]
    assert [s.step_id for s in service.of(StepSkipped)] == ["charge", "ship"]
    assert last_state(service)["completed_steps"] == ["reserve", "charge", "ship"]


def test_an_empty_result_skips_without_asking(service: Service, shop: Shop) -> None:
    workflow = shop.failed_workflow("charge")
    shop.took_effect = ValueError("the ledger is away")
    shop.send(SkipStep, workflow, step_id="charge", result="{}", **shop.where(workflow))
    shop.completed(workflow)
    assert "reconcile" not in shop.ran


# -- reconciliation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [True, False], ids=["here", "elsewhere"])
@pytest.mark.parametrize(("said", "result"), [(True, "took_effect"), (False, "no_effect"), (None, "cannot_tell")])
def test_a_reconciliation_says_what_it_found_and_changes_nothing(
    service: Service, shop: Shop, held: bool, said: bool | None, result: str
) -> None:
    workflow = shop.failed_workflow("charge")
    before, data, where = list(service.outbox.records), dict(workflow.data), shop.where(workflow)
    run = workflow.run
    if not held:
        shop.forget(workflow)
    shop.took_effect = said
    answer = answer_of(service, shop.send(ReconcileStep, workflow, step_id="charge", **where))
    assert (answer.status, answer.result, answer.step_id) == ("succeeded", result, "charge")
    assert [r for r in service.outbox.records if r not in before] == [answer]
    assert workflow.data == data and workflow.run is run and not run.superseded.is_set()
    assert shop.present(workflow) is (workflow if held else None)


def test_a_reconciliation_that_cannot_be_had_fails(service: Service, shop: Shop) -> None:
    workflow = shop.failed_workflow("charge")
    received = shop.send(ReconcileStep, workflow, step_id="ship")
    assert service.answer(received)[0] == "failed" and service.reason(received) == "not_reconcilable"
    shop.took_effect = ValueError("the bank is away")
    received = shop.send(ReconcileStep, workflow, step_id="charge")
    assert service.answer(received) == ("failed", "ValueError: the bank is away")
    shop.took_effect = "perhaps"
    received = shop.send(ReconcileStep, workflow, step_id="charge")
    assert "not True, False or None" in (service.answer(received)[1] or "")


@pytest.mark.parametrize("write", ["checkpoint", "persist", "__enter__"])
def test_a_reconciliation_writes_nothing(service: Service, shop: Shop, write: str) -> None:
    workflow = shop.failed_workflow("charge")
    shop.kind.reconcilers["charge"] = lambda ctx: getattr(ctx, write)()
    received = shop.send(ReconcileStep, workflow, step_id="charge")
    assert service.answer(received) == ("failed", "KintsugiError: a reconciliation only reads")


def test_a_handler_may_reconcile_instead(service: Service, shop: Shop) -> None:
    workflow = shop.failed_workflow("charge")
    shop.kind.on("ReconcileStep")(lambda command, workflow: True)
    assert answer_of(service, shop.send(ReconcileStep, workflow, step_id="charge")).result == "took_effect"


# -- compensation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [True, False], ids=["here", "taken over"])
def test_completed_steps_are_undone_one_by_one_then_the_workflow_goes_on(
    service: Service, shop: Shop, held: bool
) -> None:
    workflow = shop.failed_workflow("ship")
    newest, first = shop.where(workflow), shop.where(workflow, 0)
    if not held:
        shop.forget(workflow)
    for step_id in ("charge", "reserve"):
        received = shop.send(CompensateStep, workflow, step_id=step_id, **newest)
        assert service.answer(received) == ("succeeded", None)
    found = service.of(StepCompensated)
    assert [c.step_id for c in found] == ["charge", "reserve"]
    assert all(c.duration_ms >= 0 and c.command_id for c in found)
    assert shop.ran == [*ORDER, "refund", "release"]
    assert not service.of(StateRestored)
    present = shop.present(workflow)
    assert present is not None and present.completed == []
    received = shop.send(RollbackTo, workflow, step_id="reserve", **first)
    shop.completed(workflow)
    assert service.answer(received) == ("succeeded", None)
    assert shop.ran[5:] == ORDER


def test_nothing_is_undone_that_never_ran_or_is_undone_already(service: Service, shop: Shop) -> None:
    workflow = shop.failed_workflow("charge")
    first = shop.send(CompensateStep, workflow, step_id="charge")
    assert service.answer(first)[0] == "failed" and service.reason(first) == "never_ran"
    assert service.answer(shop.send(CompensateStep, workflow, step_id="reserve"))[0] == "succeeded"
    again = shop.send(CompensateStep, workflow, step_id="reserve")
    assert service.answer(again)[0] == "failed" and service.reason(again) == "never_ran"
    assert shop.ran.count("release") == 1 and "refund" not in shop.ran


def test_a_compensation_that_fails_can_be_tried_again_on_the_same_state(service: Service, shop: Shop) -> None:
    workflow = shop.failed_workflow("ship")
    before = dict(workflow.data)
    seen: list[dict[str, Any]] = []

    def refund(ctx: StepContext) -> None:
        seen.append(dict(ctx.state))
        ctx.state["dirt"] = True
        if len(seen) == 1:
            raise ValueError("the bank is away")

    shop.kind.functions["refund"] = refund
    received = shop.send(CompensateStep, workflow, step_id="charge")
    assert service.answer(received) == ("failed", "ValueError: the bank is away")
    assert not service.of(StepCompensated) and len(shop.errors(workflow)) == 1
    assert service.answer(shop.send(CompensateStep, workflow, step_id="charge"))[0] == "succeeded"
    assert seen == [before, before]


def test_a_step_that_nothing_undoes_is_refused(service: Service, shop: Shop) -> None:
    workflow = shop.failed_workflow("ship")
    for step_id in ("ship", "unheard of"):
        received = shop.send(CompensateStep, workflow, step_id=step_id)
        assert service.answer(received)[0] == "failed" and service.reason(received) == "no_compensation"


# -- edits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RetryStep, ResumeFromCheckpoint])
def test_an_edit_is_applied_before_the_workflow_goes_on(service: Service, shop: Shop, kind: Any) -> None:
    workflow = shop.failed_workflow("charge")
    edit = '{"in": null, "card": "another"}'
    received = shop.send(kind, workflow, step_id="charge", edit=edit, **shop.where(workflow))
    shop.completed(workflow)
    assert service.answer(received) == ("succeeded", None)
    assert last_state(service)["data"] == {"done": ORDER, "card": "another"}
    (restored,) = service.of(StateRestored)
    assert b'"in":1' in restored.state and b"card" not in restored.state


def test_an_edit_against_the_schema_runs_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop(service, monkeypatch, state_schema={"properties": {"in": {"type": "integer"}}})
    workflow = shop.failed_workflow("charge")
    received = shop.send(RetryStep, workflow, step_id="charge", edit='{"in": "text"}', **shop.where(workflow))
    status, detail = service.answer(received)
    assert status == "failed" and "$.data.in" in (detail or "")
    assert service.reason(received) == "edit_invalid"
    assert shop.ran == ["reserve", "charge"] and len(shop.errors(workflow)) == 1


# -- intervention points ----------------------------------------------------------------------------------------------


class Guarded(Flow):
    """A human is asked before the second step."""

    def declare(self) -> None:
        self.kind.step("one")(self.step)
        self.kind.step("two", intervention_point="May it be charged?")(self.step)
        self.kind.step("three")(self.step)


@pytest.fixture
def guarded(service: Service, monkeypatch: pytest.MonkeyPatch) -> Guarded:
    return Guarded(service, monkeypatch)


def stopped(flow: Flow) -> Workflow:
    """A workflow that rests before its intervention point."""
    workflow = flow.kind.start()
    wait_for("the question", lambda: flow.service.of(WorkflowPaused))
    wait_for("rest", lambda: workflow.run.phase == "ended")
    return workflow


@pytest.mark.parametrize("held", [True, False], ids=["here", "taken over"])
def test_a_workflow_rests_before_an_intervention_point_until_it_is_let_pass(
    service: Service, guarded: Guarded, held: bool
) -> None:
    workflow = stopped(guarded)
    assert guarded.ran == ["one"] and workflow.status == "paused"
    (reached,) = service.of(InterventionPointReached)
    assert (reached.step_id, reached.reason) == ("two", "May it be charged?")
    assert [s.step_id for s in service.of(StepStarted)] == ["one"]
    assert not service.of(WorkflowErrorOccurred)
    if not held:
        guarded.forget(workflow)
    received = guarded.send(RetryStep, workflow, step_id="two", approved=True, actor="ann", **guarded.where(workflow))
    guarded.completed(workflow)
    assert service.answer(received) == ("succeeded", None)
    assert guarded.ran == ["one", "two", "three"]
    assert [(r.actor, r.command_id) for r in service.of(WorkflowResumed)] == [("ann", received.command.command_id)]
    assert len(service.of(InterventionPointReached)) == 1


def test_a_step_that_was_let_pass_and_failed_is_retried_without_asking_again(
    service: Service, guarded: Guarded
) -> None:
    workflow = stopped(guarded)
    guarded.fails["two"] = [ValueError("broken")]
    guarded.send(RetryStep, workflow, step_id="two", approved=True, **guarded.where(workflow))
    wait_for("the error", lambda: guarded.errors(workflow))
    guarded.forget(workflow)
    guarded.send(RetryStep, workflow, step_id="two", **guarded.where(workflow))
    guarded.completed(workflow)
    assert guarded.ran == ["one", "two", "two", "three"]
    assert len(service.of(InterventionPointReached)) == 1


@pytest.mark.parametrize("kind", [RetryStep, ResumeWorkflow, ResumeFromCheckpoint])
def test_without_approval_the_question_is_asked_again(service: Service, guarded: Guarded, kind: Any) -> None:
    workflow = stopped(guarded)
    received = guarded.send(kind, workflow, step_id="two", **guarded.where(workflow))
    wait_for("the question", lambda: len(service.of(InterventionPointReached)) == 2)
    expected = ("failed", "the workflow was paused first") if kind is RetryStep else ("succeeded", None)
    assert service.answer(received) == expected
    assert guarded.ran == ["one"] and not service.of(StepSkipped)


def test_a_flow_of_ones_own_meets_a_pause_at_an_intervention_point(service: Service) -> None:
    kind = service.client.workflow_type("development")
    kind.step("two", intervention_point=True)(lambda ctx: None)
    workflow = kind.begin()
    with workflow.step("one"):
        pass
    with pytest.raises(PausedError, match="before step 'two'"), workflow.step("two"):
        raise AssertionError("the step began")
    assert service.of(InterventionPointReached)[0].reason is None
    assert workflow.status == "paused" and workflow.completed == ["one"]


# -- a step that is given up ------------------------------------------------------------------------------------------


def test_a_cancelled_step_ends_and_the_workflow_keeps_its_run(service: Service, shop: Shop) -> None:
    ended = threading.Event()

    def wait(ctx: StepContext) -> None:
        shop.entered["reserve"].set()
        while not ctx.cancelled:
            ended.wait(0.01)
        ctx.check()

    shop.kind.functions["reserve"] = wait
    workflow = shop.kind.start()
    assert shop.entered["reserve"].wait(20)
    run = workflow.run
    received = shop.send(CancelStep, workflow, step_id="reserve")
    assert service.answer(received) == ("succeeded", None)
    wait_for("its end", lambda: run.phase == "ended")
    assert workflow.run is run and not run.superseded.is_set() and workflow.status == "running"
    assert not service.of(WorkflowErrorOccurred) and not service.of(StepCompleted)
    shop.kind.functions["reserve"] = shop.step
    shop.send(RetryStep, workflow, step_id="reserve", **shop.where(workflow))
    shop.completed(workflow)


@pytest.mark.parametrize("fields", [{"step_id": "two"}, {"step_id": "one", "step_run_id": "another"}])
def test_a_step_that_is_not_at_work_cannot_be_cancelled(service: Service, fields: dict[str, str]) -> None:
    workflow = service.client.workflow_type("development").begin()
    with workflow.step("one") as step:
        received = service.carry_out(CancelStep, workflow.workflow_id, **fields)
        assert service.answer(received)[0] == "failed" and service.reason(received) == "not_running"
        assert not step.cancelled


# -- scaling ----------------------------------------------------------------------------------------------------------


class Scale:
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str | None, str, float]] = []

    def scale(self, workflow_id: str, step_id: str | None, resource: str, factor: float) -> str:
        if resource != "memory":
            raise KintsugiError(f"no {resource} here")
        self.asked.append((step_id, resource, factor))
        return "768 MB"


def test_the_services_scaler_answers_with_the_size_reached(connect: Any) -> None:
    scaler = Scale()
    service: Service = connect(scaler=scaler)
    workflow = service.client.workflow_type("development").begin()
    received = service.carry_out(ScaleResources, workflow.workflow_id, step_id="one", resource="memory", factor=1.5)
    answer = answer_of(service, received)
    assert (answer.status, answer.result) == ("succeeded", "768 MB")
    assert scaler.asked == [("one", "memory", 1.5)]
    received = service.carry_out(ScaleResources, workflow.workflow_id, resource="cpu", factor=2.0)
    assert service.answer(received) == ("failed", "KintsugiError: no cpu here")


def test_a_handlers_text_is_the_answers_result(service: Service, shop: Shop) -> None:
    workflow = shop.failed_workflow("charge")
    shop.kind.on("ScaleResources")(lambda command, workflow: f"{command.factor:g} times")
    received = shop.send(ScaleResources, workflow, resource="memory", factor=2.0)
    assert answer_of(service, received).result == "2 times"


def test_without_scaler_and_handler_scaling_fails(service: Service, shop: Shop) -> None:
    workflow = shop.failed_workflow("charge")
    received = shop.send(ScaleResources, workflow, resource="memory", factor=2.0)
    assert service.answer(received) == ("failed", "no handler for ScaleResources is registered")
