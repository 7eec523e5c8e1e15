"""What the recovery role keeps of a partition: timers, evictions, ends."""

from __future__ import annotations

import uuid

from consumers import memory as limits
from consumers.memory import LINGER_US, LOOK_AGAIN_US, STRAY_LINGER_US, Memory
from engine.fold import evolve
from engine.inspection import deliver
from engine.policy import default_policy
from engine.state import WorkflowState
from engine.testing import START_US
from engine.timers import due
from schemas.records import Record
from schemas.records.events import StepCompleted, StepStarted, WorkflowCompleted, WorkflowErrorOccurred

POLICY = default_policy()


class Log:
    """A partition that writes straight into a memory."""

    def __init__(self) -> None:
        self.memory = Memory(0, POLICY, effects_from=0, next_offset=0)
        self.offset = 0
        self.now_us = START_US

    def put(self, kind: type[Record], workflow_id: str, **fields: object) -> WorkflowState:
        record = kind(
            event_id=str(uuid.uuid4()),
            workflow_id=workflow_id,
            workflow_type="development",
            occurred_at=self.now_us,
            producer="test",
            **fields,  # type: ignore[arg-type]
        )
        event = deliver(record, 0, self.offset, self.now_us)
        self.offset += 1
        self.memory.log_us = self.now_us
        state = evolve(self.memory.get(workflow_id, "development"), event)
        self.memory.keep(state)
        return state

    def start(self, workflow_id: str, timeout_ms: int, run_id: str | None = None) -> WorkflowState:
        run_id = run_id or str(uuid.uuid4())
        return self.put(StepStarted, workflow_id, step_id="s", step_run_id=run_id, timeout_ms=timeout_ms)


def new_id() -> str:
    return str(uuid.uuid4())


def test_the_nearest_timer_comes_first() -> None:
    log = Log()
    a, b = new_id(), new_id()
    log.start(a, 500)
    log.start(b, 100)
    assert log.memory.next_due_us == START_US + 100_000
    assert [s.workflow_id for s in log.memory.take_due(START_US + 600_000, 10)] == [b, a]


def test_nothing_is_taken_before_its_time() -> None:
    log = Log()
    log.start(new_id(), 100)
    assert log.memory.take_due(START_US + 99_999, 10) == []


def test_a_timer_whose_step_completed_is_void() -> None:
    log = Log()
    workflow_id, run_id = new_id(), new_id()
    log.start(workflow_id, 100, run_id)
    log.put(StepCompleted, workflow_id, step_id="s", step_run_id=run_id, duration_ms=1)
    assert log.memory.next_due_us is None


def test_a_timer_fact_is_written_once_until_the_state_moves() -> None:
    log = Log()
    log.start(new_id(), 100)
    now_us = START_US + 100_000
    state = log.memory.take_due(now_us, 10)[0]
    fact = due(state, POLICY, now_us)[0]
    assert log.memory.first_fired(fact.event_id)
    assert not log.memory.first_fired(fact.event_id)
    assert log.memory.take_due(now_us, 10) == []
    assert log.memory.next_due_us == now_us + LOOK_AGAIN_US


def test_a_timer_fact_written_too_early_may_be_written_again() -> None:
    memory = Memory(0, POLICY, effects_from=0, next_offset=0)
    assert memory.first_fired("x")
    memory.unfire("x")
    assert memory.first_fired("x")


def test_void_timers_do_not_pile_up() -> None:
    log = Log()
    workflow_id = new_id()
    for number in range(5000):
        log.start(workflow_id, 1000 + number)
    assert len(log.memory._timers) < 2000
    assert log.memory.next_due_us == START_US + 5_999_000


def test_an_ended_workflow_stays_for_a_while_then_only_its_id() -> None:
    log = Log()
    workflow_id = new_id()
    log.start(workflow_id, 100)
    log.put(WorkflowCompleted, workflow_id)
    log.memory.evict()
    assert workflow_id in log.memory.states
    assert log.memory.next_due_us is None
    log.memory.log_us += LINGER_US + 1
    log.memory.evict()
    assert workflow_id not in log.memory.states
    assert workflow_id in log.memory.ended


def test_a_late_event_does_not_open_an_ended_workflow_anew() -> None:
    log = Log()
    workflow_id = new_id()
    log.put(WorkflowCompleted, workflow_id)
    log.memory.log_us += LINGER_US + 1
    log.memory.evict()
    error = {"error_id": new_id(), "step_id": "s", "error_code": "E", "error_message": "", "detected_by": "service"}
    state = log.put(WorkflowErrorOccurred, workflow_id, **error)
    assert state.terminal
    assert [t.kind for t in state.transitions] == ["unrooted"]
    assert log.memory.states == {}


def test_ended_ids_are_bounded(monkeypatch: object) -> None:
    log = Log()
    for _ in range(20):
        log.put(WorkflowCompleted, new_id())
    log.memory.log_us += LINGER_US + 1
    before, limits.ENDED_MAX = limits.ENDED_MAX, 5
    try:
        log.memory.evict()
    finally:
        limits.ENDED_MAX = before
    assert len(log.memory.ended) == 5


def test_a_workflow_never_started_is_forgotten_after_long_silence() -> None:
    log = Log()
    workflow_id, run_id = new_id(), new_id()
    log.put(StepCompleted, workflow_id, step_id="s", step_run_id=run_id, duration_ms=1)
    log.memory.forget_strays()
    assert workflow_id in log.memory.states
    log.memory.log_us += STRAY_LINGER_US + 1
    log.memory.forget_strays()
    assert log.memory.states == {}
