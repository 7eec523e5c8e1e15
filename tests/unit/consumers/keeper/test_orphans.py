"""Orphans without servers: what is referred to is never deleted, whatever else is in the folder or in the rows."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from consumers.keeper.lag import TablesLagError, lag_s
from consumers.keeper.orphans import GRACE_S, GRACE_S_MIN, CollectionRefusedError, Orphans
from consumers.keeper.places import Problem
from schemas import claims
from schemas.objects import Objects

from .kit import CODEC, NOW_US, Log, Rows, checkpoint, written


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "objects"
        self.log, self.rows = Log(), Rows()
        self.rows.at = {0: 1_000}
        self.store = Objects(self.folder.as_uri())

    def put(self, number: int, *, hours: float = 25.0) -> str:
        uri = claims.put(self.store, f"bytes {number}".encode())
        then_s = time.time() - hours * 3600
        os.utime(self.folder / claims.path_of(uri), (then_s, then_s))
        return uri

    def collect(self, **options: bool) -> Orphans:
        orphans = Orphans(self.rows, self.log, CODEC, self.store, grace_s=GRACE_S)
        for _ in orphans.steps(**options):
            pass
        return orphans

    def there(self, uri: str) -> bool:
        return (self.folder / claims.path_of(uri)).exists()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_only_what_is_old_and_not_referred_to_goes(world: World) -> None:
    named, orphans = [world.put(n) for n in range(100)], [world.put(n) for n in range(100, 140)]
    young = world.put(1_000, hours=23.0)
    world.rows.uris = [*named, "claim:sha256:nonsense", "somewhere else", "claim:sha256:" + "f" * 64]
    report = world.collect().report
    assert (report.objects, report.referenced, report.orphans, report.deleted, report.young) == (141, 100, 40, 40, 1)
    assert all(map(world.there, [*named, young])) and not any(map(world.there, orphans))


def test_an_object_that_was_put_anew_since_it_was_listed_stays(world: World) -> None:
    uri = world.put(1)
    orphans = Orphans(world.rows, world.log, CODEC, world.store, grace_s=GRACE_S)
    for _ in orphans.steps():
        if orphans.report.folders == 256:
            os.utime(world.folder / claims.path_of(uri))
    assert (orphans.report.orphans, orphans.report.deleted) == (1, 0)
    assert world.there(uri)


def test_what_a_record_that_the_tables_refused_names_stays(world: World) -> None:
    """Postgres did not take it, so it has no row; the engine knows it all the same."""
    refused, other = world.put(1), world.put(2)
    record = replace(checkpoint("a"), state=None, claim_uri=refused)
    world.log.lies[0, 7] = written((0, 7), record)
    world.log.lies[0, 8] = Problem.GONE
    world.rows.set_aside = [(0, 8), (0, 7)]
    world.collect()
    assert world.there(refused) and not world.there(other)


def test_rows_out_of_order_would_hide_what_they_name_and_so_nothing_is_deleted(world: World) -> None:
    uris = sorted(world.put(n) for n in range(10))
    world.rows.claims = lambda: iter(reversed(uris))  # type: ignore[method-assign]
    with pytest.raises(CollectionRefusedError):
        world.collect()
    assert all(map(world.there, uris))


def test_a_share_that_cannot_be_true_is_refused_unless_somebody_says_so(world: World) -> None:
    uris = [world.put(n) for n in range(60)]
    world.rows.uris = uris[:20]
    with pytest.raises(CollectionRefusedError, match="more than half"):
        world.collect()
    assert all(map(world.there, uris))
    assert world.collect(any_share=True).report.deleted == 40


def test_a_grace_shorter_than_what_writers_rely_on_is_none(world: World) -> None:
    assert claims.CLAIM_RENEWED_AFTER.total_seconds() < GRACE_S_MIN
    with pytest.raises(ValueError, match="grace"):
        Orphans(world.rows, world.log, CODEC, world.store, grace_s=GRACE_S_MIN - 1)


def test_lag_is_the_age_of_the_oldest_record_not_applied(world: World) -> None:
    now_ms = NOW_US // 1000 + 60_000
    assert lag_s(world.log, {0: 1_000}, now_ms) == 0.0
    world.log.lies[0, 900] = Problem.NONE
    world.log.lies[0, 901] = written((0, 901), checkpoint("a"))
    assert lag_s(world.log, {0: 900}, now_ms) == 60.0
    world.log.lies[0, 901] = Problem.DAMAGED
    with pytest.raises(TablesLagError, match="to tell its age"):
        lag_s(world.log, {0: 900}, now_ms)
    world.log.ends = {0: (950, 1_000)}
    with pytest.raises(TablesLagError, match="begins at"):
        lag_s(world.log, {0: 900}, now_ms)
    with pytest.raises(TablesLagError, match="another log"):
        lag_s(world.log, {0: 1_001}, now_ms)
