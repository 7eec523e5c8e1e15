"""What a repair would run again, as people are told before they choose it."""

from __future__ import annotations

from typing import Any

import pytest

from engine.inforce import InForce
from engine.policy import load_policy
from engine.strategies import Plan, Unavailable
from engine.testing import Service, World, saved
from ops.lineage import Lineage
from ops.recover_look import STEPS_MAX, Again, Seen, rows_of
from schemas.records.events import InterventionRequested, InterventionResolved, StepSpec

STEPS = (
    StepSpec(step_id="reserve", compensation="release"),
    StepSpec(step_id="pay", depends_on=("reserve",), compensation="refund", idempotent=False),
    StepSpec(step_id="ship", depends_on=("pay",), alternative="courier"),
    StepSpec(step_id="release"),
    StepSpec(step_id="refund"),
    StepSpec(step_id="courier"),
)
PATIENT = """
workflow_error_handling:
  recovery_strategies:
    unknown_error:
      strategy: manual_intervention
"""


def failed(
    steps: tuple[StepSpec, ...] = STEPS, first: tuple[str, ...] = ("reserve", "pay"), last: str = "ship"
) -> Service:
    service = Service(World(load_policy(PATIENT, "test")), steps)
    for step_id in first:
        service.start(step_id)
        service.complete(step_id)
        service.checkpoint(step_id, saved)
    service.start(last)
    service.fail(last)
    return service


def seen(service: Service) -> Seen:
    found = Seen(Lineage(), InForce(service.world.policy))
    for event in service.world.log:
        found.add(event)
    return found


def again(service: Service, strategy: str, **parameters: Any) -> list[Again]:
    found = seen(service)
    assert found.state is not None
    (case,) = (found.state.cases or {}).values()
    plan = found.plan(case, strategy, parameters)
    assert isinstance(plan, Plan), plan
    return found.again(case, plan)


@pytest.mark.parametrize(
    ("strategy", "parameters", "steps"),
    [
        ("retry_step", {}, ["ship"]),
        ("increase_timeout_and_retry", {}, ["ship"]),
        ("restart_from_checkpoint", {}, ["ship"]),
        ("resume_from_step", {"to_step": "pay"}, ["pay", "ship"]),
        ("rollback", {"to_step": "pay"}, ["pay", "ship"]),
        ("alternative_path", {}, ["courier"]),
        ("complete_restart", {}, ["reserve", "pay", "ship"]),
        ("compensate", {}, []),
        ("skip_step", {}, []),
        ("cancel_workflow", {}, []),
    ],
)
def test_a_repair_says_which_steps_run_again(strategy: str, parameters: dict[str, Any], steps: list[str]) -> None:
    assert [step.step_id for step in again(failed(), strategy, **parameters)] == steps


def test_a_step_says_what_it_is_known_to_do() -> None:
    assert rows_of(again(failed(), "complete_restart"))[:2] == [
        {"step_id": "reserve", "completed": 1, "idempotent": True, "compensation": "release"},
        {"step_id": "pay", "completed": 1, "idempotent": False, "compensation": "refund"},
    ]


def test_of_a_step_that_nobody_declared_the_worst_is_told() -> None:
    service = Service(World(load_policy(PATIENT, "test")))
    service.start("alone")
    service.fail("alone")
    assert again(service, "retry_step") == [Again(step_id="alone", completed=0, idempotent=False, compensation=None)]


def test_of_thousands_of_steps_the_first_are_told() -> None:
    names = tuple(f"s{n}" for n in range(STEPS_MAX + 50))
    service = failed(tuple(StepSpec(step_id=name) for name in names), names[:-1], names[-1])
    assert len(again(service, "complete_restart")) == STEPS_MAX


def test_of_steps_that_have_to_be_accepted_none_is_left_out() -> None:
    names = tuple(f"s{n}" for n in range(STEPS_MAX + 50))
    steps = tuple(StepSpec(step_id=name, idempotent=name != "s240") for name in names)
    told = again(failed(steps, names[:-1], names[-1]), "complete_restart")
    assert len(told) == STEPS_MAX
    assert [step.step_id for step in told if not step.idempotent] == ["s240"]
    assert [step.step_id for step in told[:-1]] == [f"s{n}" for n in range(STEPS_MAX - 1)]


def test_what_cannot_be_done_is_said() -> None:
    found = seen(failed())
    assert found.state is not None
    (case,) = (found.state.cases or {}).values()
    plan = found.plan(case, "scale_resources_and_retry", {})
    assert isinstance(plan, Unavailable)
    assert "names no resource" in plan.reason


def test_the_first_answer_is_remembered_and_the_open_question_found() -> None:
    service = failed()
    (request,) = service.world.records(InterventionRequested)
    open_case = seen(service).case_of_intervention(request.intervention_id)
    assert open_case is not None
    assert seen(service).case(open_case.error_id) is not None
    for actor in ("ann", "bob"):
        service.emit(
            InterventionResolved,
            intervention_id=request.intervention_id,
            error_id=request.error_id,
            step_id="ship",
            decision="retry",
            reason="r",
            actor=actor,
        )
    after = seen(service)
    assert after.answers[request.intervention_id].actor == "ann"
    assert after.case_of_intervention(request.intervention_id) is None


@pytest.mark.parametrize(("protection", "sealed"), [("none", False), ("hmac-sha256", False), ("aes-256-gcm", True)])
def test_a_workflow_with_encrypted_states_is_a_sealed_one(protection: str, sealed: bool) -> None:
    service = failed()
    service.checkpoint("ship", saved, protection=protection)
    assert seen(service).sealed is sealed
