"""Kintsugi's projector on the bench's topic: loop, role and tables as they ship, with JSON instead of Avro."""

from __future__ import annotations

import sys

import orjson

from consumers.clock import BrokerClock
from consumers.kafka import consumer_settings
from consumers.loop import Loop
from consumers.projector import BATCH_RECORDS_MAX, ROLE, Projector
from projections.store import Store
from schemas.codec import Codec, Unknown
from schemas.records import Record
from schemas.records.events import NotificationDelivered


class JsonCodec(Codec):
    """Reads what the peers can read too."""

    def decode(self, data: bytes | None) -> Record | Unknown:
        """A record from its JSON."""
        return NotificationDelivered(**orjson.loads(data or b""))


def main(kafka: str, topic: str, group: str, postgres: str, schema: str) -> None:
    """Run until killed."""
    projector = Projector(Store(postgres, generation=schema), JsonCodec())
    settings = consumer_settings(kafka, group, {})
    Loop(ROLE, topic, settings, projector, BrokerClock(), batch_records_max=BATCH_RECORDS_MAX).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
