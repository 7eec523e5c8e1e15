"""No input makes a ladder exceed its budget, repeat a rung, or decide twice; every case ends or waits for a human."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decide import decide
from engine.effects import Append, Send
from engine.fold import evolve
from engine.fold_recovery import UNANSWERED
from engine.policy import default_policy, load_policy
from engine.snapshot import dump, load
from engine.state import WorkflowState
from engine.testing import Service, World
from engine.timers import next_due_us
from schemas.records.events import (
    CommandAcknowledged,
    RecoveryAttemptFinished,
    RecoveryDecided,
    StepCompleted,
    StepSpec,
    WorkflowErrorOccurred,
)

from .test_ladders import damaged, saved

POLICY = load_policy(
    """
workflow_error_handling:
  budgets: {workflow_max_attempts: 7, workflow_max_time: 3600000}
  recovery_strategies:
    timeout: {strategy: increase_timeout_and_retry, max_retries: 2, fallback_strategy: complete_restart}
    infinite_loop: {strategy: restart_from_checkpoint, max_restarts: 2, fallback_strategy: complete_restart}
    state_corruption: {strategy: restore_from_last_valid_checkpoint, max_restore_attempts: 2}
    resource_exhaustion: {strategy: scale_resources_and_retry, fallback_strategy: queue_for_later}
    unknown_error: {strategy: retry_step, max_retries: 2, backoff_strategy: exponential}
""",
    "test",
)
STEPS = tuple(StepSpec(step_id=s) for s in "abc")
CODES = ("TIMEOUT", "INFINITE_LOOP", "STATE_CORRUPTION", "OUT_OF_MEMORY", "ValueError")

move = st.one_of(
    st.tuples(st.just("start"), st.sampled_from("abc")),
    st.tuples(st.just("complete"), st.sampled_from("abc")),
    st.tuples(st.just("fail"), st.sampled_from("abc"), st.sampled_from(CODES)),
    st.tuples(st.just("answer"), st.sampled_from(("accepted", "succeeded", "failed", "unknown")), st.integers(0, 3)),
    st.tuples(st.just("checkpoint"), st.sampled_from("abc"), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from((1, 1_000, 20_000, 400_000))),
    st.tuples(st.just("again"), st.integers(0, 200)),
)
moves = st.lists(move, max_size=60)


def play(world: World, service: Service, made: list[tuple[object, ...]]) -> None:
    for kind, *rest in made:
        last = world.commands[-1] if world.commands else None
        if kind == "start":
            service.start(str(rest[0]), last)
        elif kind == "complete" and rest[0] in service.runs:
            service.complete(str(rest[0]), last)
        elif kind == "fail":
            service.fail(str(rest[0]), str(rest[1]), last)
        elif kind == "answer" and last is not None:
            older = world.commands[-1 - min(int(str(rest[1])), len(world.commands) - 1)]
            service.acknowledge(older, str(rest[0]))
        elif kind == "checkpoint":
            service.checkpoint(str(rest[0]), damaged if rest[1] else saved)
        elif kind == "wait":
            world.advance(int(str(rest[0])))
        elif kind == "again":
            world.append(world.log[int(str(rest[0])) % len(world.log)].record)
            world.settle()


def decisions(world: World) -> list[RecoveryDecided]:
    seen: dict[str, RecoveryDecided] = {}
    for record in world.records(RecoveryDecided):
        seen.setdefault(record.event_id, record)
    return list(seen.values())


@settings(max_examples=150, deadline=None)
@given(moves)
def test_budgets_hold_whatever_the_service_does(made: list[tuple[object, ...]]) -> None:
    world = World(POLICY)
    play(world, Service(world, STEPS), made)
    automatic = [d for d in decisions(world) if d.strategy != "manual_intervention"]
    assert len(automatic) <= POLICY.workflow_attempts_max + 3  # one per step may be in flight when the budget is met
    unanswered = {f.attempt_id for f in world.records(RecoveryAttemptFinished) if f.error_message == UNANSWERED}
    # A stage that was answered is the first half of a try, which its last command uses up.
    succeeded = {f.attempt_id for f in world.records(RecoveryAttemptFinished) if f.outcome == "succeeded"}
    tried = [d for d in automatic if d.attempt_id not in unanswered]
    halves = [d for d in tried if d.stage and d.attempt_id in succeeded]
    for made_on_rung in (halves, [d for d in tried if d not in halves]):
        per_rung = Counter((d.error_id, d.error_type, d.rung) for d in made_on_rung)
        for (_, error_type, rung), count in per_rung.items():
            assert count <= POLICY.ladder(error_type).rungs[rung].attempts_max
    reached: dict[tuple[str, str], int] = {}
    for d in decisions(world):
        key = (d.error_id, d.error_type)
        assert d.rung >= reached.get(key, 0), "a rung was repeated after it had been left"
        reached[key] = d.rung
    numbers = Counter((d.error_id, d.attempt_number) for d in decisions(world))
    assert set(numbers.values()) <= {1}


@settings(max_examples=100, deadline=None)
@given(moves)
def test_at_most_one_command_per_attempt_and_ids_never_differ(made: list[tuple[object, ...]]) -> None:
    world = World(POLICY)
    play(world, Service(world, STEPS), made)
    of_attempts = {(c.error_id, c.attempt_number, c.command_id) for c in world.commands}
    assert len(of_attempts) == len({(e, n) for e, n, _ in of_attempts})


@settings(max_examples=100, deadline=None)
@given(moves)
def test_left_alone_every_case_ends_or_waits_for_a_human(made: list[tuple[object, ...]]) -> None:
    world = World(POLICY)
    service = Service(world, STEPS)
    play(world, service, made)
    world.advance(60 * 24 * 3_600_000)
    for case in (service.state.cases or {}).values():
        assert case.attempt is not None
        assert case.attempt.decision.strategy == "manual_intervention"


@settings(max_examples=100, deadline=None)
@given(moves, st.integers(0, 1000))
def test_folding_from_a_snapshot_gives_the_same_as_folding_from_the_start(
    made: list[tuple[object, ...]], cut: int
) -> None:
    world = World(POLICY)
    service = Service(world, STEPS)
    play(world, service, made)
    at = cut % (len(world.log) + 1)
    half: WorkflowState | None = None
    for event in world.log[:at]:
        half = evolve(half, event)
    restored = load(dump([half] if half else []))
    state = restored[0] if restored else None
    for event in world.log[at:]:
        state = evolve(state, event)
    assert state is not None
    assert dump([state]) == dump([service.state])
    assert next_due_us(state, POLICY) == next_due_us(service.state, POLICY)


@settings(max_examples=60, deadline=None)
@given(moves)
def test_replaying_the_log_makes_every_decision_again(made: list[tuple[object, ...]]) -> None:
    world = World(POLICY)
    play(world, Service(world, STEPS), made)
    recorded = {e.record.event_id for e in world.log}
    states: dict[str, WorkflowState] = {}
    commands, told = [], []
    for event in world.log:
        key = event.record.workflow_id
        states[key] = evolve(states.get(key), event)
        for effect in decide(states[key], event, POLICY):
            if isinstance(effect, Send):
                commands.append(effect.command)
            elif isinstance(effect, Append):
                assert effect.record.event_id in recorded
            else:
                told.append(effect.record)
    assert commands == world.commands
    assert told == world.told


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=40))
def test_healthy_workflow_is_left_alone(made: list[tuple[str, bool]]) -> None:
    world = World(default_policy())
    service = Service(world, STEPS)
    for step, save in made:
        service.start(step)
        if save:
            service.checkpoint(step, lambda w, s: saved(w, s, service.sequence))
        world.advance(1_000)
        service.complete(step)
    assert not world.commands
    assert not world.records(WorkflowErrorOccurred)
    assert len(world.records(StepCompleted)) == len(made)
    assert not world.records(CommandAcknowledged)
