"""Reading single records at known places: whatever is asked, the answer is what lies there, in log or archive."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from consumers.keeper.places import NEAR_RECORDS, Place, Places, Problem
from consumers.log_reader import LogReader, record_of
from ops.stack import Addresses
from schemas.archive import Archive
from schemas.archive_format import FileBuilder
from schemas.log_record import LogRecord, encode
from schemas.objects import Objects

PARTITIONS, RECORDS = 3, 1_500
#: From here on the log still holds the records; what is before lies in the archive, but for the first file.
CUT, ARCHIVED_FROM = 600, 100

Known = dict[Place, LogRecord]


@pytest.fixture
def topic(addresses: Addresses) -> Iterator[str]:
    """A topic of this test's own, with records of different sizes."""
    name = f"places-{uuid.uuid4()}"
    admin = AdminClient({"bootstrap.servers": addresses.kafka})
    admin.create_topics([NewTopic(name, PARTITIONS, 1)])[name].result(20)
    producer = Producer({"bootstrap.servers": addresses.kafka})
    for number in range(RECORDS):
        for partition in range(PARTITIONS):
            value = b"%d " % number + b"x" * (number % 7 * 300)
            producer.produce(name, value, b"key", partition, headers=[("a", b"b")])
        if number % 40 == 0:
            producer.flush(20)
    assert producer.flush(20) == 0
    yield name
    admin.delete_topics([name])[name].result(20)


def written(at: Addresses, topic: str) -> Known:
    with LogReader(at.kafka) as log:
        ranges = log.bounds(topic)
        return {(r.partition, r.offset): r for r in map(record_of, log.read(topic, ranges))}


def archive_of(folder: Path, topic: str, known: Known) -> Archive:
    archive = Archive(Objects(folder.as_uri()), cluster="c", topic=topic)
    for partition in range(PARTITIONS):
        for first in range(0, CUT, 100):
            builder = FileBuilder("c", topic, partition, first)
            for offset in range(first, first + 100):
                builder.add(known[partition, offset], encode(known[partition, offset]))
            assert archive.put(builder) is not None
        Objects(folder.as_uri()).delete(archive.path(partition, 0))
    return archive


def test_every_answer_is_what_lies_at_the_place(addresses: Addresses, topic: str, tmp_path: Path) -> None:
    known = written(addresses, topic)
    assert len(known) == PARTITIONS * RECORDS
    archive = archive_of(tmp_path, topic, known)
    admin = AdminClient({"bootstrap.servers": addresses.kafka})
    cut = [TopicPartition(topic, partition, CUT) for partition in range(PARTITIONS)]
    for future in admin.delete_records(cut).values():
        future.result(20)
    draw = random.Random(11)
    places = Places(addresses.kafka, topic, archive)
    everything = [(p, o) for p in range(PARTITIONS) for o in range(RECORDS + 20)]
    try:
        for count in (1, 2, 5, 50, 1_000, len(everything)):
            # Sparse ones need jumps, dense ones are read on; a second look begins where the first one ended.
            for _ in range(3):
                asked = sorted(draw.sample(everything, count))
                answers = list(places.read(asked))
                assert [place for place, _ in answers] == asked
                for place, found in answers:
                    gone = place[1] < ARCHIVED_FROM or place[1] >= RECORDS
                    assert found == (Problem.GONE if gone else known[place]), place
        places.rest()
        far = [(0, CUT), (0, CUT + NEAR_RECORDS), (0, CUT + NEAR_RECORDS + 2), (0, RECORDS - 1), (1, RECORDS - 1)]
        assert [found for _, found in places.read(far)] == [known[place] for place in far]
    finally:
        places.close()
