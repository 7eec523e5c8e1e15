"""Retention: the rule as properties, and the facts that come of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.keeper.lag import TablesLagError
from consumers.keeper.places import Problem
from consumers.keeper.retention import SETTLED_US, Choice, Retention, choose
from consumers.keeper.tables import History, Kept
from engine.policy.model import Retention as Limits
from schemas.admission import EXPIRED_MAX, check
from schemas.archive import Archive
from schemas.archive_format import ArchiveDamagedError
from schemas.objects import Objects
from schemas.records.events import CheckpointsExpired

from .kit import CODEC, NOW_US, Log, Rows, Written, checkpoint, id_of

_DAY_US = 86_400 * 1_000_000


def kept(offset: int, *, age_us: int = 0, sound: bool = True, evidence: bool = False) -> Kept:
    return Kept(
        checkpoint_id=id_of("checkpoint", offset),
        partition=0,
        offset=offset,
        created_us=NOW_US - age_us,
        sound=sound and not evidence,
        evidence=evidence,
    )


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Checkpoints newest first, each older than the one before."""
    age_us, made = 0, []
    for number in range(draw(st.integers(0, 30))):
        age_us += draw(st.sampled_from((1, 1, SETTLED_US // 3, _DAY_US // 2, 3 * _DAY_US)))
        kind = draw(st.sampled_from(("sound", "damaged", "evidence")))
        made.append(kept(1_000 - number, age_us=age_us, sound=kind == "sound", evidence=kind == "evidence"))
    return History(workflow_id=id_of("w"), live=draw(st.booleans()), checkpoints=tuple(made))


LIMITS = st.builds(
    Limits, checkpoints_max=st.integers(1, 5), age_ms_max=st.integers(1, 10).map(lambda days: days * 86_400_000)
)


def without(history: History, choice: Choice) -> History:
    gone = {checkpoint.checkpoint_id for checkpoint, _ in choice.over}
    return replace(history, checkpoints=tuple(c for c in history.checkpoints if c.checkpoint_id not in gone))


@given(histories(), LIMITS)
def test_a_live_workflow_keeps_the_newest_sound_checkpoint(history: History, limits: Limits) -> None:
    sound = [c for c in history.checkpoints if c.sound]
    left = without(history, choose(history, limits, NOW_US)).checkpoints
    if history.live and sound:
        assert sound[0] in left
        settled = [c for c in sound if c.created_us < NOW_US - SETTLED_US]
        assert not settled or settled[0] in left


@given(histories(), LIMITS)
def test_nothing_goes_from_a_live_workflow_that_cannot_be_restored_at_all(history: History, limits: Limits) -> None:
    choice = choose(history, limits, NOW_US)
    if history.live and not any(c.sound for c in history.checkpoints):
        assert not choice.over
        assert choice.spoiled == any(not c.evidence for c in history.checkpoints)
    else:
        assert not choice.spoiled


def test_a_sound_checkpoint_behind_newer_damaged_ones_stays_however_young() -> None:
    checkpoints = (kept(9, sound=False), kept(8, evidence=True), kept(7), kept(6), kept(5, age_us=2 * SETTLED_US))
    history = History(workflow_id=id_of("w"), live=True, checkpoints=(*checkpoints, kept(4, age_us=3 * SETTLED_US)))
    choice = choose(history, Limits(checkpoints_max=1), NOW_US)
    assert [checkpoint.offset for checkpoint, _ in choice.over] == [8, 6, 4]


@given(histories(), LIMITS)
def test_the_newest_stay_and_no_more_than_the_limits_allow(history: History, limits: Limits) -> None:
    choice = choose(history, limits, NOW_US)
    left = without(history, choice).checkpoints
    oldest_us = NOW_US - limits.age_ms_max * 1000
    young = [c for c in history.checkpoints[: limits.checkpoints_max] if c.created_us >= oldest_us]
    assert set(young) <= set(left), "what is within both limits stays"
    if not choice.spoiled and any(c.sound for c in history.checkpoints):
        assert len(left) <= len(young) + (2 if history.live else 0)
    if not history.live:
        assert set(left) == set(young)


@given(histories(), LIMITS)
def test_the_choice_is_idempotent_and_time_only_adds_to_it(history: History, limits: Limits) -> None:
    choice = choose(history, limits, NOW_US)
    assert not choose(without(history, choice), limits, NOW_US).over
    later = choose(without(history, choice), limits, NOW_US + 365 * _DAY_US)
    left = without(without(history, choice), later).checkpoints
    if history.live and any(c.sound for c in history.checkpoints):
        assert any(c.sound for c in left)


class World:
    """Histories whose records are in the log, and an archive that ends where a test says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log, self.rows, self.desk = Log(), Rows(), Written()
        self.rows.at = {0: 1_000}
        self.archive = Archive(Objects((folder / "objects").as_uri()), cluster="c", topic="t")
        self.end: int | Exception = 1_000
        monkeypatch.setattr(self.archive, "end_of", self._end_of)

    def _end_of(self, partition: int) -> int:
        if isinstance(self.end, Exception):
            raise self.end
        return self.end

    def add(self, name: str, count: int, *, live: bool = True, first: int = 0) -> list[str]:
        made = []
        for number in range(count):
            changed: dict[str, Any] = {
                "event_id": id_of(name, number),
                "checkpoint_id": id_of("checkpoint", name, number),
            }
            record = checkpoint(name, **changed)
            self.log.put((0, first + number), record)
            made.append(replace(kept(first + number), checkpoint_id=record.checkpoint_id))
        history = History(workflow_id=id_of("workflow", name), live=live, checkpoints=tuple(reversed(made)))
        self.rows.all.append(history)
        return [c.checkpoint_id for c in made]

    def go(self, *, checkpoints_max: int = 2, archive: bool = True) -> None:
        limits = Limits(checkpoints_max=checkpoints_max)
        retention = Retention(self.rows, self.log, self.archive if archive else None, CODEC, self.desk, limits)
        for _ in retention.steps():
            pass

    def expired(self) -> set[str]:
        return {i for fact in self.desk.of(CheckpointsExpired) for i in fact.checkpoint_ids}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_a_fact_names_what_goes_and_again_it_is_the_same_fact(world: World) -> None:
    ids = world.add("a", 5)
    world.go()
    world.go()
    first, second = world.desk.of(CheckpointsExpired)
    assert first.event_id == second.event_id
    assert set(first.checkpoint_ids) == set(ids[:3])
    assert first.reason == "max_checkpoints: 2"
    check(first)


def test_many_are_said_in_facts_of_bounded_size_in_the_workflows_partition(world: World) -> None:
    world.log.ends = {0: (0, 10_000)}
    world.rows.at, world.end = {0: 10_000}, 10_000
    ids = world.add("a", EXPIRED_MAX * 2 + 10)
    world.go()
    facts = world.desk.of(CheckpointsExpired)
    assert all(len(fact.checkpoint_ids) <= EXPIRED_MAX for fact in facts)
    assert world.expired() == set(ids[:-2])
    assert len({fact.event_id for fact in facts}) == len(facts)
    assert {partition for _, partition in world.desk.facts} == {0}


def test_what_the_archive_does_not_cover_stays(world: World) -> None:
    ids = world.add("a", 6, first=10)
    for end, expected in ((0, 0), (10, 0), (12, 2), (1_000, 4)):
        world.end = end
        world.go()
        assert world.expired() == set(ids[:expected]), end


def test_without_an_archive_or_with_a_damaged_one_nothing_expires(world: World) -> None:
    world.add("a", 6)
    world.go(archive=False)
    world.end = ArchiveDamagedError("for a test")
    world.go()
    assert not world.desk.facts


def test_a_record_that_cannot_be_read_again_is_not_said_to_be_expired(world: World) -> None:
    ids = world.add("a", 5)
    world.log.put((0, 0), Problem.GONE)
    world.log.put((0, 1), checkpoint("another"))
    world.go()
    assert world.expired() == {ids[2]}


def test_tables_that_have_not_caught_up_let_nothing_expire(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rejection that they do not know yet would make the last sound checkpoint look like one of many."""
    world.add("a", 5)
    world.rows.at = {0: 999}
    monkeypatch.setattr("consumers.keeper.lag._LOOKS_MAX", 3)
    with pytest.raises(TablesLagError):
        world.go()
    assert not world.desk.facts
    world.rows.at = {}
    world.log.ends = {0: (0, 0)}
    world.go()
    assert world.expired(), "a partition in which nothing was ever written is not behind"
