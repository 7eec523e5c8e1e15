"""Leases and waits of a service, granted by the real coordinator."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kintsugi_client import Client, LeaseError, StepContext, Workflow

from schemas.records.commands import RetryStep
from schemas.records.events import (
    ResourceReleased,
    ResourceRequested,
    WaitBegan,
    WaitEnded,
    WorkflowCompleted,
    WorkflowErrorOccurred,
)

from .client_kit import Desk
from .kit import Role, Topics, wait_for

#: Longer than any wait here takes when all goes well.
LONG_S = 60.0


class Lab:
    """A service whose one step works with a resource."""

    def __init__(self, client: Client, name: str) -> None:
        self.client = client
        self.name = name
        self.resource = f"gpu-{name}"
        self.kind = client.workflow_type(name)
        self.kind.step("work", heartbeat_timeout_ms=60_000)(self.step)
        self.holding: list[int] = []
        self.most = 0
        self.gates: dict[int, threading.Event] = {}

    def step(self, ctx: StepContext) -> None:
        number = ctx.state["number"]
        with ctx.lease(self.resource, amount=ctx.state.get("amount", 1), timeout_s=ctx.state.get("timeout_s", LONG_S)):
            self.holding.append(number)
            self.most = max(self.most, len(self.holding))
            gate = self.gates.get(number)
            try:
                assert gate is None or gate.wait(LONG_S)
                ctx.check()
            finally:
                self.holding.remove(number)

    def start(self, number: int, **more: Any) -> Workflow:
        return self.kind.start({"number": number, **more})


@pytest.fixture
def lab(environment: dict[str, str], service_name: str, start: Callable[..., Role], topics: Topics) -> Iterator[Lab]:
    for role in ("recovery", "coordinator"):
        start(role)
    client = Client.connect(
        service_name,
        kafka=environment["KINTSUGI_KAFKA"],
        registry=environment["KINTSUGI_REGISTRY"],
        objects="",
        keys="",
    )
    found = Lab(client, service_name)
    assert client.listen()
    yield found
    for gate in found.gates.values():
        gate.set()
    client.close(5.0)


def test_one_unit_is_held_by_one_step_at_a_time_and_goes_to_the_next(lab: Lab, topics: Topics) -> None:
    workflows = [lab.start(number) for number in range(4)]
    of = {w.workflow_id for w in workflows}
    wait_for("their ends", lambda: len(topics.events(WorkflowCompleted, of)) == 4, LONG_S)
    assert lab.most == 1
    asked = topics.events(ResourceRequested, of)
    assert [(r.step_id, r.amount, r.wait_ms) for r in asked] == [("work", 1, 60_000)] * 4
    returned = [r for r in topics.events(ResourceReleased, of) if r.reason == "returned"]
    assert {r.lease_id for r in returned} == {r.lease_id for r in asked} and len(returned) == 4


def test_a_lease_that_is_not_to_be_had_is_the_steps_error(lab: Lab, topics: Topics) -> None:
    lab.gates[0] = threading.Event()
    lab.start(0)
    wait_for("the holder", lambda: lab.holding == [0], LONG_S)
    for number, more, reason in ((1, {"amount": 2}, "too_large"), (2, {"timeout_s": 0.5}, "timed_out")):
        workflow = lab.start(number, **more)
        found = wait_for(
            "the error", lambda of=workflow.workflow_id: topics.events(WorkflowErrorOccurred, {of}), LONG_S
        )
        assert found[0].error_code == "COORDINATION_FAILURE" and reason in found[0].error_message


def test_a_run_that_replaces_another_is_granted_what_its_step_holds(lab: Lab, topics: Topics, desk: Desk) -> None:
    lab.gates[7] = threading.Event()
    workflow = lab.start(7)
    wait_for("the holder", lambda: lab.holding == [7], LONG_S)
    command = desk.build(RetryStep, workflow.workflow_id, lab.name, step_id="work", **desk.where(workflow.workflow_id))
    desk.send(command)
    wait_for("the next run", lambda: lab.holding == [7, 7], LONG_S)
    lab.gates[7].set()
    of = {workflow.workflow_id}
    wait_for("its end", lambda: topics.events(WorkflowCompleted, of), LONG_S)
    assert len({r.lease_id for r in topics.events(ResourceRequested, of)}) == 1
    assert [r.reason for r in topics.events(ResourceReleased, of) if r.reason == "returned"] == ["returned"]


def test_a_step_is_told_when_what_it_holds_is_taken_away(lab: Lab, environment: dict[str, str], topics: Topics) -> None:
    name = f"{lab.name}-alone"  # nobody listens: no command replaces the run meanwhile
    at = {"kafka": environment["KINTSUGI_KAFKA"], "registry": environment["KINTSUGI_REGISTRY"]}
    with Client.connect(name, objects="", keys="", **at) as client:
        kind = client.workflow_type(name)
        theirs, mine = kind.begin(), kind.begin()

        def want() -> None:
            with theirs.step("want") as step, step.lease(lab.resource, timeout_s=LONG_S):
                assert not step.cancelled

        def hold() -> None:
            with mine.step("work") as step, step.lease(lab.resource, timeout_s=LONG_S):
                other.start()
                with step.waits_for(theirs.workflow_id):
                    wait_for("the loss", lambda: step.cancelled, LONG_S)
                    step.heartbeat()

        other = threading.Thread(target=want)
        with theirs.step("first") as first:  # it has done more, so the other is the victim
            first.output(1)
        with pytest.raises(LeaseError, match="was taken away: deadlock") as lost:
            hold()
        other.join(LONG_S)
        assert theirs.completed == ["first", "want"]
    assert lost.value.code == "DEADLOCK"
    assert [r.reason for r in topics.events(ResourceReleased, {mine.workflow_id})] == ["deadlock"]


def test_workflows_that_wait_for_each_other_are_told(lab: Lab, topics: Topics) -> None:
    kind = lab.client._types[lab.name]
    mine, theirs = kind.begin(), kind.begin()
    of = {mine.workflow_id, theirs.workflow_id}
    with mine.step("wait") as here, theirs.step("wait") as there:
        with here.waits_for(theirs.workflow_id), there.waits_for(mine.workflow_id):
            (error,) = wait_for("the deadlock", lambda: topics.events(WorkflowErrorOccurred, of), LONG_S)
        assert error.error_code == "DEADLOCK"
    wait_for("the ends", lambda: len(topics.events(WaitEnded, of)) == 2)
    began, ended = topics.events(WaitBegan, of), topics.events(WaitEnded, of)
    assert {(b.workflow_id, b.step_id, b.awaited_id) for b in began} == {
        (mine.workflow_id, "wait", theirs.workflow_id),
        (theirs.workflow_id, "wait", mine.workflow_id),
    }
    assert {e.wait_id for e in ended} == {b.wait_id for b in began}


def test_a_refusal_says_why(lab: Lab) -> None:
    workflow = lab.kind.begin()
    with pytest.raises(LeaseError, match="too_large") as refused, workflow.step("other") as step:  # noqa: SIM117
        with step.lease(lab.resource, amount=1_000):
            raise AssertionError("it was granted")
    assert (refused.value.reason, refused.value.code) == ("too_large", "COORDINATION_FAILURE")
