"""A replay of what an engine wrote asks for exactly that again, whoever's facts it folds; what is changed shows."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings

from engine.effects import PRODUCER
from engine.events import Delivered
from engine.testing import Service, World
from ops.replay_engine import Engine
from ops.replay_inject import Injection, parse
from schemas.records.events import RecoveryDecided, WorkflowErrorOccurred

from ..engine.test_properties import POLICY, STEPS, moves, play
from .replay_kit import repaired


def replayed(
    log: list[Delivered], *, own: bool = False, start: int = 0, injections: list[Injection] | None = None
) -> Engine:
    engine = Engine(0, POLICY, whole=True, own=own, injections=injections or [])
    for event in log[:start]:
        engine.warm(event)
    engine.begin(e.record.event_id for e in log[start:] if e.record.producer == PRODUCER)
    for event in log[start:]:
        engine.event(event)
    engine.finish()
    return engine


@settings(max_examples=80, deadline=None)
@given(moves)
def test_recorded_facts_are_all_asked_for_again_and_no_others(made: list[tuple[object, ...]]) -> None:
    world = World(POLICY)
    play(world, Service(world, STEPS), made)
    assert set(replayed(world.log).compared.counts) <= {"same"}


@settings(max_examples=80, deadline=None)
@given(moves)
def test_the_engines_own_facts_take_the_places_of_the_recorded_ones(made: list[tuple[object, ...]]) -> None:
    world = World(POLICY)
    service = Service(world, STEPS)
    play(world, service, made)
    engine = replayed(world.log, own=True)
    assert set(engine.compared.counts) <= {"same"}
    assert engine.left_out == 0


@settings(max_examples=40, deadline=None)
@given(moves)
def test_a_range_behind_the_beginning_is_judged_by_what_lies_before_it(made: list[tuple[object, ...]]) -> None:
    world = World(POLICY)
    play(world, Service(world, STEPS), made)
    for start in {len(world.log) // 3, len(world.log) // 2}:
        assert set(replayed(world.log, start=start).compared.counts) <= {"same"}


def test_a_decision_that_was_written_otherwise_is_shown_with_both_sides() -> None:
    world = repaired()
    at = next(n for n, e in enumerate(world.log) if isinstance(e.record, RecoveryDecided))
    world.log[at] = replace(world.log[at], record=replace(world.log[at].record, strategy="rollback"))  # type: ignore[call-arg]
    engine = replayed(world.log)
    [found] = [d for d in engine.compared.decisions if d.verdict == "differs"]
    assert found.fields["strategy"] == ("rollback", "increase_timeout_and_retry")


def test_a_fact_that_is_gone_and_one_that_nothing_causes_are_found() -> None:
    world = repaired()
    world.advance(60_000)
    Service(world, STEPS).start("c")
    without = [e for e in world.log if not isinstance(e.record, WorkflowErrorOccurred)]
    assert replayed(without).compared.counts["not_asked"] > 0
    silent = [e for e in world.log if not isinstance(e.record, RecoveryDecided)]
    assert replayed(silent).compared.counts["not_recorded"] > 0


def test_a_command_that_fails_is_followed_by_the_next_rung() -> None:
    world = repaired()
    injected = parse(f"fail@{world.commands[0].command_id},detail=away")
    engine = replayed(world.log, own=True, injections=[injected])
    assert injected.applied == 1
    assert engine.left_out > 0
    asked = [d.record for d in engine.compared.decisions if isinstance(d.record, RecoveryDecided)]
    # The second command is answered by nobody: its deadline passes, which is no record of the log either.
    assert [d.attempt_number for d in asked] == [1, 2, 3]


def test_an_engine_that_dies_comes_back_with_the_same_states_and_asks_for_the_same() -> None:
    world = repaired()
    at = next(n for n, e in enumerate(world.log) if isinstance(e.record, WorkflowErrorOccurred))
    engine = replayed(world.log, injections=[parse(f"kill@0:{at}")])
    [kill] = engine.kills
    assert kill.effects > 0
    assert kill.same_states and kill.same_effects
    assert set(engine.compared.counts) == {"same"}
