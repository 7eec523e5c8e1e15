"""Where a checkpoint's record and bytes are found, and what is said when they are not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from consumers.history import Bounds, History
from ops.checkpoint_log import CheckpointLog
from schemas import claims
from schemas.archive import ArchiveGapError
from schemas.archive_format import Gap
from schemas.canonical import canonical_bytes, chain_digest_of, digest_of
from schemas.codec import Codec
from schemas.errors import StateError
from schemas.ids import derive_id
from schemas.log_record import LogRecord
from schemas.objects import Objects
from schemas.records.events import CheckpointCreated

WORKFLOW = derive_id("log", "workflow")
STATE = {"workflow_id": WORKFLOW, "step_id": "one", "status": "running", "data": {"n": 1}}
DATA = canonical_bytes(STATE)
RECORD = CheckpointCreated(
    event_id=derive_id("log", "event"),
    workflow_id=WORKFLOW,
    workflow_type="test",
    occurred_at=0,
    producer="test",
    checkpoint_id=derive_id("log", "checkpoint"),
    step_id="one",
    checkpoint_type="manual",
    sequence=1,
    state_version="1",
    codec="identity",
    size_bytes=len(DATA),
    digest=digest_of(DATA),
    chain_digest=chain_digest_of(None, digest_of(DATA)),
    status="running",
    state=DATA,
)


class Partition:
    """A history of one partition: archived up to `low`, less a gap, then in the log."""

    def __init__(self, records: dict[int, bytes], *, low: int, end: int, gap: range = range(0)) -> None:
        self._records, self._low, self._end, self._gap = records, low, end, gap

    def bounds(self) -> dict[int, Bounds]:
        return {0: Bounds(first=0, low=self._low, end=self._end)}

    def read(self, ranges: dict[int, tuple[int, int]], **_: Any) -> Iterator[LogRecord]:
        for offset in range(*ranges[0]):
            if offset in self._gap:
                raise ArchiveGapError("events", Gap(partition=0, first=offset, next=offset + 1, reason="lost"))
            if offset in self._records:
                yield LogRecord(0, offset, 0, 2, WORKFLOW.encode(), self._records[offset], ())


def reader(objects: Objects | None = None, **options: Any) -> CheckpointLog:
    """Offset 2: the checkpoint, archived; 5: again, in the log; 6: junk."""
    value = Codec().encode(RECORD)
    history = Partition({2: value, 5: value, 6: b"junk"}, low=4, end=8, **options)
    return CheckpointLog(cast(History, history), Codec(), objects, None)


def test_a_record_lies_in_the_log_in_the_archive_or_nowhere() -> None:
    log = reader(gap=range(0, 2))
    assert [log.where(0, offset) for offset in (1, 2, 5, 8)] == ["gone", "archive", "log", "gone"]
    assert log.where(9, 0) == "gone"


@pytest.mark.parametrize(("offset", "where"), [(2, "archive"), (5, "log")])
def test_a_checkpoint_is_read_from_where_it_lies_and_proven(offset: int, where: str) -> None:
    log = reader()
    found = log.written(RECORD.checkpoint_id, 0, offset)
    assert (found.record, found.found_in) == (RECORD, where)
    assert log.state(found.record) == STATE


@pytest.mark.parametrize(
    ("offset", "reason", "text"),
    [(1, "gone", "neither"), (6, "log", "cannot be read"), (7, "log", "no record"), (9, "gone", "neither")],
)
def test_what_is_not_there_is_said(offset: int, reason: str, text: str) -> None:
    with pytest.raises(StateError, match=text) as raised:
        reader(gap=range(0, 2)).written(RECORD.checkpoint_id, 0, offset)
    assert raised.value.reason == reason


def test_another_checkpoint_at_the_place_is_not_taken_for_it() -> None:
    with pytest.raises(StateError, match="not that checkpoint"):
        reader().written(derive_id("log", "other"), 0, 5)


def test_claimed_bytes_come_from_object_storage(tmp_path: Path) -> None:
    objects = Objects(tmp_path.as_uri())
    claimed = replace(RECORD, state=None, claim_uri=claims.put(objects, DATA))
    assert reader(objects).state(claimed) == STATE
    with pytest.raises(StateError, match="no object storage is configured"):
        reader().state(claimed)
    with pytest.raises(StateError, match="one of both"):
        reader(objects).state(replace(claimed, state=DATA))
    assert claimed.claim_uri is not None
    objects.delete(claims.path_of(claimed.claim_uri))
    with pytest.raises(StateError) as raised:
        reader(objects).state(claimed)
    assert raised.value.reason == "claim_missing"
