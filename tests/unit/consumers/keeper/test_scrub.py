"""The scrub: what is there and wrong is told once; what is away or cannot be looked into is not told at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from consumers.inspecting import Inspection
from consumers.keeper.mark import PATH, StoreDoubtedError
from consumers.keeper.places import Problem
from consumers.keeper.scrub import CHUNK_BYTES, CHUNK_RECORDS, Pace, Scrubber, chunks
from engine.inspection import Inspector
from schemas import claims
from schemas.admission import check
from schemas.errors import RetriableError, StateError
from schemas.keystore import Keystore
from schemas.objects import ObjectInfo, Objects, ObjectStoreError
from schemas.records.events import CheckpointCreated, CheckpointRejected, WorkflowErrorOccurred, WorkflowPaused
from schemas.sealing import binding_of, seal
from tests.unit.schemas.sealed_kit import keystore

from .kit import CODEC, NOW_US, Log, Rows, Written, checkpoint, id_of, written


class Store(Objects):
    """A folder that answers, or does not."""

    away = False

    def get(self, path: str, *, size_bytes_max: int | None = None) -> bytes | None:
        if self.away:
            raise ObjectStoreError("the store is away")
        return super().get(path, size_bytes_max=size_bytes_max)


class World:
    """A scrubber and all around it."""

    def __init__(self, folder: Path) -> None:
        self.log, self.rows, self.desk = Log(), Rows(), Written()
        self.store = Store((folder / "objects").as_uri())
        self.inspection = Inspection()
        self.errors = True

    def add(self, offset: int, record: CheckpointCreated, **row: Any) -> CheckpointCreated:
        self.log.put((0, offset), record)
        self.rows.add((0, offset), record, **row)
        return record

    def scrubber(self, **changed: Any) -> Scrubber:
        settings: dict[str, Any] = {"interval_s": 30.0, "per_second": 1_000.0, "errors": self.errors, **changed}
        return Scrubber(self.rows, self.log, CODEC, self.inspection, self.store, self.desk, **settings)

    def reasons(self) -> list[str]:
        return [fact.reason for fact in self.desk.of(CheckpointRejected)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def go(scrubber: Scrubber) -> list[float]:
    return list(scrubber.steps())


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("kintsugi_scrub_checkpoints_total", {"outcome": outcome}) or 0.0


def damaged(record: CheckpointCreated) -> CheckpointCreated:
    assert record.state is not None
    return replace(record, state=record.state.replace(b'"n"', b'"m"'))


def test_a_sound_checkpoint_is_proven_and_nothing_is_written(world: World) -> None:
    before = counted("sound")
    world.add(5, checkpoint("a"))
    world.add(6, checkpoint("b"))
    go(world.scrubber())
    assert counted("sound") == before + 2
    assert not world.desk.facts


def test_damage_is_two_facts_in_the_workflows_partition_told_once(world: World) -> None:
    target = world.add(5, damaged(checkpoint("a")))
    scrubber = world.scrubber()
    go(scrubber)
    go(scrubber)
    (rejected, error), places = zip(*world.desk.facts, strict=True)
    assert places == (0, 0)
    assert isinstance(rejected, CheckpointRejected) and isinstance(error, WorkflowErrorOccurred)
    assert (rejected.checkpoint_id, rejected.reason, rejected.detected_by) == (target.checkpoint_id, "digest", "scrub")
    assert (error.error_code, error.reason, error.detected_by) == ("STATE_CORRUPTION", "digest", "detector:scrub")
    assert (error.checkpoint_id, error.causation_id) == (target.checkpoint_id, target.event_id)
    for fact in (rejected, error):
        check(fact)


def test_another_keeper_says_the_same_with_the_same_ids(world: World) -> None:
    world.add(5, damaged(checkpoint("a")))
    world.add(6, damaged(checkpoint("b")))
    go(world.scrubber())
    go(world.scrubber())
    ids = [fact.event_id for fact, _ in world.desk.facts]
    assert len(ids) == 8 and len(set(ids)) == 4
    errors = [(fact.checkpoint_id, fact.error_id) for fact in world.desk.of(WorkflowErrorOccurred)]
    assert len(errors) == 4 and len(set(errors)) == len({error_id for _, error_id in errors}) == 2


def test_what_the_log_did_not_confirm_is_told_again(world: World) -> None:
    world.add(5, damaged(checkpoint("a")))
    scrubber = world.scrubber()
    world.desk.lost = True
    with pytest.raises(RetriableError):
        go(scrubber)
    world.desk.lost = False
    go(scrubber)
    assert world.reasons() == ["digest"]


def test_a_policy_without_corruption_detection_rejects_and_reports_no_error(world: World) -> None:
    world.errors = False
    world.add(5, damaged(checkpoint("a")))
    go(world.scrubber())
    assert [type(fact) for fact, _ in world.desk.facts] == [CheckpointRejected]


def claimed(world: World, name: str) -> CheckpointCreated:
    plain = checkpoint(name)
    assert plain.state is not None
    return replace(plain, state=None, claim_uri=claims.put(world.store, plain.state))


def test_a_missing_claim_is_rejected_when_the_store_is_the_one_it_was(world: World) -> None:
    gone, there = claimed(world, "a"), claimed(world, "b")
    world.rows.uris = [str(gone.claim_uri), str(there.claim_uri)]
    world.add(5, gone)
    world.add(6, there)
    scrubber = world.scrubber()
    go(scrubber)
    world.store.delete(claims.path_of(str(gone.claim_uri)))
    go(scrubber)
    assert world.reasons() == ["claim_missing"]


def test_an_empty_store_is_not_believed(world: World) -> None:
    """A folder that is not mounted looks like one from which all was deleted."""
    gone = claimed(world, "a")
    world.rows.uris = [str(gone.claim_uri)]
    world.add(5, gone)
    scrubber = world.scrubber()
    go(scrubber)
    world.store.delete(claims.path_of(str(gone.claim_uri)))
    world.store.delete(PATH)
    with pytest.raises(StoreDoubtedError):
        go(scrubber)
    assert not world.desk.facts
    world.store.put(PATH, b"it is lost indeed")
    go(scrubber)
    assert world.reasons() == ["claim_missing"]


def test_a_store_swapped_in_the_middle_of_a_pass_is_not_believed(world: World) -> None:
    gone = claimed(world, "a")
    world.add(5, gone)
    steps = world.scrubber().steps()
    read = world.log.read

    def swap(places: Any) -> Any:
        world.store.delete(claims.path_of(str(gone.claim_uri)))
        world.store.delete(PATH)
        return read(places)

    world.log.read = swap  # type: ignore[method-assign]
    with pytest.raises(StoreDoubtedError):
        list(steps)
    assert not world.desk.facts


def test_a_store_that_is_away_rejects_nothing_and_ends_the_pass(world: World) -> None:
    for number in range(10):
        world.add(number, claimed(world, str(number)))
    scrubber = world.scrubber()
    world.store.away = True
    with pytest.raises(ObjectStoreError):
        go(scrubber)
    assert not world.desk.facts
    world.store.away = False
    before = counted("sound")
    go(scrubber)
    assert not world.desk.facts
    assert counted("sound") == before + 10


def test_one_claim_that_does_not_answer_does_not_keep_the_others_from_being_proven(world: World) -> None:
    sick = claimed(world, "sick")
    get = world.store.get

    def refuse(path: str, *, size_bytes_max: int | None = None) -> bytes | None:
        if path == claims.path_of(str(sick.claim_uri)):
            raise ObjectStoreError("permission denied")
        return get(path, size_bytes_max=size_bytes_max)

    world.store.get = refuse  # type: ignore[method-assign]
    world.add(1, sick)
    for number in range(2, 6):
        world.add(number, claimed(world, str(number)))
    away, sound = counted("away"), counted("sound")
    scrubber = world.scrubber()
    for _ in range(3):
        go(scrubber)
    assert (counted("away") - away, counted("sound") - sound) == (3, 12)
    assert not world.desk.facts


def test_kafka_away_rejects_nothing_and_the_next_pass_goes_on_behind_what_failed(world: World) -> None:
    for number in range(CHUNK_RECORDS * 3):
        world.add(number, checkpoint(str(number)))
    scrubber = world.scrubber()
    steps = scrubber.steps()
    next(steps)
    world.log.away = True
    with pytest.raises(RetriableError):
        next(steps)
    world.log.away, world.log.asked = False, []
    go(scrubber)
    assert world.log.asked[0] == (0, 2 * CHUNK_RECORDS), "what failed comes last"
    assert len(set(world.log.asked)) == 3 * CHUNK_RECORDS
    assert not world.desk.facts


def keys(reason: str) -> Callable[[str, int], Any]:
    def find(workflow_id: str, number: int) -> Any:
        raise StateError(reason, "for a test")

    return find


@pytest.mark.parametrize(
    ("found", "outcome"),
    [("key_erased", "erased"), ("key_missing", "unreadable"), ("no_keys", "unreadable")],
)
def test_a_state_that_cannot_be_looked_into_is_counted_and_not_rejected(world: World, found: str, outcome: str) -> None:
    sealed = b"KS\x01\x02" + (1).to_bytes(4, "big") + b"\x00" * 60
    world.add(5, replace(checkpoint("a"), protection="aes-256-gcm", state=sealed))
    if found != "no_keys":
        world.inspection.inspector = Inspector(keys(found))
    before = counted(outcome)
    go(world.scrubber())
    assert counted(outcome) == before + 1
    assert not world.desk.facts


def test_a_damaged_record_is_rejected_with_the_id_that_the_archives_copy_gives(world: World) -> None:
    record = checkpoint("a")
    world.rows.add((0, 5), record)
    world.log.put((0, 5), Problem.DAMAGED)
    go(world.scrubber())
    world.log.copies[0, 5] = written((0, 5), record)
    go(world.scrubber())
    without, _, with_copy, _ = (fact for fact, _ in world.desk.facts)
    assert isinstance(with_copy, CheckpointRejected)
    assert {without.reason, with_copy.reason} == {"record"}  # type: ignore[attr-defined]
    assert (without.causation_id, with_copy.causation_id) == (None, record.event_id)


@pytest.mark.parametrize("problem", [Problem.GONE, Problem.NONE])
def test_a_record_that_nobody_has_is_counted_and_not_rejected(world: World, problem: Problem) -> None:
    world.rows.add((0, 5), checkpoint("a"))
    world.log.put((0, 5), problem)
    before = counted("gone")
    go(world.scrubber())
    assert counted("gone") == before + 1
    assert not world.desk.facts


def test_a_place_that_holds_something_else_is_drift_and_not_corruption(world: World) -> None:
    drift = REGISTRY.get_sample_value("kintsugi_table_drift_total") or 0.0
    world.rows.add((0, 5), checkpoint("a"))
    world.log.put((0, 5), checkpoint("b"))
    world.rows.add((0, 6), checkpoint("c"))
    common = {"event_id": id_of("p"), "workflow_id": id_of("w"), "workflow_type": "t", "occurred_at": NOW_US}
    world.log.put((0, 6), WorkflowPaused(**common, producer="p", reason="r", actor="a"))  # type: ignore[arg-type]
    world.add(7, checkpoint("d"), checksum="0" * 64)
    go(world.scrubber())
    assert REGISTRY.get_sample_value("kintsugi_table_drift_total") == drift + 2
    assert not world.desk.facts


def test_a_row_whose_state_is_not_the_records_is_drift(world: World) -> None:
    drift = REGISTRY.get_sample_value("kintsugi_table_drift_total") or 0.0
    for number, (name, plain) in enumerate({"same": True, "other": True, "redacted": False}.items()):
        record = world.add(number, checkpoint(name), plain=plain)
        assert record.state is not None
        text = record.state.decode()
        world.rows.texts[record.checkpoint_id] = text if name == "same" else text.replace("running", "done")
    go(world.scrubber())
    assert REGISTRY.get_sample_value("kintsugi_table_drift_total") == drift + 1
    assert not world.desk.facts


def test_the_one_before_the_newest_is_proven_too_while_both_fit_into_the_interval(world: World) -> None:
    for live, expected in ((15_000, 2), (15_001, 1)):
        world.rows.live = live
        go(world.scrubber(interval_s=30.0, per_second=1_000.0))
        assert world.rows.per_workflow[-1] == expected


@given(st.lists(st.tuples(st.integers(1, 600), st.floats(0, 5)), max_size=30))
def test_the_pace_is_kept_whatever_the_work_takes(work: list[tuple[int, float]]) -> None:
    now = [0.0]
    pace, done = Pace(100.0, lambda: now[0]), 0
    for records, took_s in work:
        now[0] += took_s
        now[0] += pace.delay_s(records)
        done += records
        # One second's worth may be caught up at once.
        assert done <= (now[0] + 1.0) * 100.0 + 1e-6


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5_000_000)), max_size=60))
def test_chunks_are_bounded_and_go_along_the_log(made: list[tuple[int, int]]) -> None:
    rows = Rows()
    for number, (partition, size) in enumerate(made):
        rows.add((partition, number), checkpoint("a"), size_bytes=size)
    targets = list(rows.targets(per_workflow=1, after=(1, 20)))
    found = list(chunks(iter(targets)))
    assert [t for chunk in found for t in chunk] == targets
    for chunk in found:
        assert [t.place for t in chunk] == sorted(t.place for t in chunk)
        assert len(chunk) == 1 or sum(t.size_bytes for t in chunk) <= CHUNK_BYTES


@pytest.fixture
def sealing(world: World, tmp_path: Path) -> Keystore:
    """A keystore, with which the scrub reads too."""
    found = keystore(tmp_path)
    world.inspection = Inspection(found)
    return found


def sealed(store: Keystore, name: str, protection: str = "aes-256-gcm") -> CheckpointCreated:
    record = replace(checkpoint(name), protection=protection)
    assert record.state is not None
    key = store.current(record.workflow_id)
    return replace(record, state=seal(record.state, key, protection=protection, binding=binding_of(record)))


def test_a_sealed_state_is_proven_by_its_workflows_key(world: World, sealing: Keystore) -> None:
    changed = sealed(sealing, "changed")
    assert changed.state is not None
    bad = {
        "changed": ("decryption", replace(changed, state=changed.state[:-1] + bytes([changed.state[-1] ^ 1]))),
        "of another": ("decryption", replace(sealed(sealing, "of another"), sequence=7)),
        "in clear": ("unsealed", checkpoint("in clear")),
    }
    world.add(1, sealed(sealing, "gcm"))
    world.add(2, sealed(sealing, "mac", "hmac-sha256"))
    for number, (_, record) in enumerate(bad.values(), start=3):
        world.add(number, record)
    before = counted("sound")
    go(world.scrubber())
    assert counted("sound") == before + 2
    assert world.reasons() == [reason for reason, _ in bad.values()]


def test_erased_keys_and_a_store_of_keys_that_is_away_reject_nothing(
    world: World, sealing: Keystore, tmp_path: Path
) -> None:
    erased = world.add(1, sealed(sealing, "erased"))
    sealing.erase(erased.workflow_id, actor="a", reason="r")
    before = counted("erased")
    go(world.scrubber())
    assert counted("erased") == before + 1
    for number in range(2, 8):
        world.add(number, sealed(sealing, str(number)))
    world.inspection = Inspection(Keystore(sealing.provider, Away((tmp_path / "objects").as_uri())))
    with pytest.raises(RetriableError):
        go(world.scrubber())
    assert not world.desk.facts


class Away(Objects):
    """A store of keys that does not answer."""

    def get(self, path: str, *, size_bytes_max: int | None = None) -> bytes | None:
        raise ObjectStoreError("the store is away")

    def info(self, path: str) -> ObjectInfo | None:
        raise ObjectStoreError("the store is away")
