"""Everything that was set aside, one JSON document a line: to be looked at elsewhere, or to be written again by hand.

Each line says where the record stands, why it was set aside, what it says (redacted, as `dlq_content` shows it) and,
unless only that is wanted, its bytes: key, value and headers in base64. Bytes hold what rows hide. Some records are in
memory at a time, however many there are; beside them 100 bytes for each letter of the topic, so that copies are told.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

import orjson

from consumers.dead_letter import PREFIX, SIZE_HEADER, said_in
from consumers.log_reader import LogReader, record_of
from projections.reader import Snapshot, snapshot
from projections.sql import blocks
from projections.store import GENERATION
from schemas.codec import Codec
from schemas.log_record import LogRecord
from schemas.registry import Registry
from schemas.topics import DEAD_LETTERS

from .dlq import KEY_CHARS_MAX
from .dlq_content import Contents
from .hidden import Hidden
from .replay_shown import at

if TYPE_CHECKING:
    from engine.policy import Policy

    from .stack import Addresses

Row = dict[str, Any]
#: Told of every source: how many of its records were looked at, of how many.
Moved = Callable[[str, int, int], None]

SOURCES = ("parked", "table", "topic")
#: Of the tables' records, read at once: a few, so that the largest fit too.
_BATCH_BYTES_MAX = 8 * 1024 * 1024
_BATCH_RECORDS_MAX = 500
_SQL = blocks("ops", "dlq.sql")


def export(
    to: Addresses,
    sources: Collection[str],
    put: Callable[[bytes], object],
    *,
    policy: Policy,
    raw: bool,
    workflow_id: str | None,
    moved: Moved,
) -> dict[str, int]:
    """Give all lines to `put`; how many there were, by source. RetriableError when something is away."""
    with Registry(to.registry) as registry, snapshot(to.postgres) as tables:
        contents = Contents(Codec(registry), Hidden(tables.redactions()), policy)
        lines = Export(contents, raw=raw, workflow_id=workflow_id, moved=moved)
        for line in lines.tables(tables, sources):
            put(line)
        if "topic" in sources:
            with LogReader(to.kafka) as log:
                for line in lines.topic(log):
                    put(line)
    return {source: lines.counts[source] for source in sources}


class Export:
    """The lines of what was set aside. `raw`: with the records' bytes; `workflow_id`: only of this one."""

    def __init__(self, contents: Contents, *, raw: bool, workflow_id: str | None, moved: Moved) -> None:
        self._contents = contents
        self._raw = raw
        self._workflow_id = workflow_id
        self._moved = moved
        key = None if workflow_id is None else workflow_id.encode()
        self._wanted = {"generation": GENERATION, "workflow_id": workflow_id, "key": key}
        #: Lines made, by source.
        self.counts = dict.fromkeys(SOURCES, 0)

    def tables(self, tables: Snapshot, sources: Collection[str]) -> Iterator[bytes]:
        """What is parked, and what the projector or an operator set aside; in the order of the log."""
        totals = tables.query(_SQL["totals"], self._wanted)[0]
        if "parked" in sources:
            for row in self._read(tables, "parked", totals["parked"]):
                failed = row["log_offset"] == row["first_offset"]
                parked = {
                    "parked_for": f"{row['log_partition']}:{row['first_offset']}",
                    "retries": row["retries"],
                    "parked_at": row["parked_at"],
                }
                reason = row["reason"] if failed else "waits_behind"
                yield self._line("parked", row, reason, detail=row["detail"] if failed else None, **parked)
        if "table" in sources:
            for row in self._read(tables, "letter", totals["table"]):
                # What a reader of records says of one may quote it, and so may an operator's reason.
                detail = {"detail": row["detail"]} if self._raw else {}
                yield self._line("table", row, row["reason"], stage=row["stage"], **detail)

    def _read(self, tables: Snapshot, what: str, total: int) -> Iterator[Row]:
        """Records, some at a time, by the places of all."""
        source = "parked" if what == "parked" else "table"
        places: list[tuple[str, int, int]] = []
        size = done = 0
        for topic, partition, offset, size_bytes in tables.stream(_SQL[f"{what}_places"], self._wanted):
            full = size + size_bytes > _BATCH_BYTES_MAX or len(places) == _BATCH_RECORDS_MAX
            if places and (full or places[0][:2] != (topic, partition)):
                yield from self._batch(tables, what, places)
                done += len(places)
                self._moved(source, done, total)
                places, size = [], 0
            places.append((topic, partition, offset))
            size += size_bytes
        if places:
            yield from self._batch(tables, what, places)
        self._moved(source, total, total)

    def _batch(self, tables: Snapshot, what: str, places: list[tuple[str, int, int]]) -> Iterator[Row]:
        topic, partition, _ = places[0]
        offsets = [offset for _, _, offset in places]
        place = {**self._wanted, "topic": topic, "partition": partition, "offsets": offsets}
        for row in tables.query(_SQL[f"{what}_records"], place):
            headers = [(name, value.encode()) for name, value in row["headers"] or ()]
            yield {**row, "headers": headers}

    def topic(self, log: LogReader) -> Iterator[bytes]:
        """What recovery and coordinator set aside. Copies are told once."""
        ranges = log.bounds(DEAD_LETTERS)
        total, told = sum(end - start for start, end in ranges.values()), set()
        for number, record in enumerate(map(record_of, log.read(DEAD_LETTERS, ranges))):
            self._moved("topic", number, total)
            if self._workflow_id is not None and (record.key or b"") != self._wanted["key"]:
                continue
            said = said_in(record.headers)
            place = tuple(said.get(name, "") for name in ("topic", "partition", "offset"))
            # A record may come with such headers of its own: what it holds must not hide another one.
            copy = hashlib.blake2b(repr((place, record.key, record.value)).encode(), digest_size=16).digest()
            if copy in told:
                continue
            told.add(copy)
            own = [(n, v) for n, v in record.headers if not n.startswith(PREFIX) and n != SIZE_HEADER]
            size = next((_number(_text(v)) for n, v in record.headers if n == SIZE_HEADER), None)
            row = {
                "topic": place[0],
                "log_partition": _number(place[1]),
                "log_offset": _number(place[2]),
                "timestamp_us": record.timestamp_ms * 1000,
                "record_key": record.key,
                "record_value": record.value,
                "headers": own,
            }
            reason, _, detail = said.get("exception.message", "").partition(":")
            more: Row = {"detail": detail.strip(), "errors": said} if self._raw else {}
            if size is not None:
                more["value_size_bytes"] = size
            yield self._line("topic", row, reason, stage=said.get("stage", ""), **more)
        self._moved("topic", total, total)

    def _line(self, source: str, row: Row, reason: str, **why: Any) -> bytes:
        key, value = row["record_key"], row["record_value"]
        partition, offset, timestamp_us = row["log_partition"], row["log_offset"], row["timestamp_us"]
        record = LogRecord(partition or 0, offset or 0, timestamp_us // 1000, 2, key, value, ())
        line: Row = {
            "source": source,
            "topic": row["topic"],
            "partition": partition,
            "offset": offset,
            "at": at(timestamp_us),
            "timestamp_us": timestamp_us,
            "key": _text(key)[:KEY_CHARS_MAX],
            "reason": reason,
            **why,
            "size_bytes": len(value or b""),
            "sha256": None if value is None else hashlib.sha256(value).hexdigest(),
            **self._contents.of(record, timestamp_us),
        }
        if self._raw:
            headers = [[name, _base64(header)] for name, header in row["headers"]]
            line["raw"] = {"key": _base64(key), "value": _base64(value), "headers": headers}
        self.counts[source] += 1
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)


def _base64(data: bytes | None) -> str | None:
    return None if data is None else b64encode(data).decode()


def _text(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", "replace")


def _number(text: str) -> int | None:
    """A header's number; None when the record came with a header of its own of that name, which says something else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
