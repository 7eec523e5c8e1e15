"""Records from a command line, each acknowledged by the broker before the command goes on."""

from __future__ import annotations

from typing import Any, cast

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.errors import FatalError, RetriableError
from schemas.headers import Headers

#: All tries together. A person waits.
_TIMEOUT_S = 10.0


class Publisher:
    """Appends records one after the other."""

    def __init__(self, kafka: str) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": kafka,
                "client.id": "kintsugi-cli",
                "enable.idempotence": True,
                "message.timeout.ms": int(_TIMEOUT_S * 1000),
                "log_level": 0,
            }
        )

    def publish(
        self, topic: str, key: str, value: bytes, *, headers: Headers | None = None, partition: int = -1
    ) -> int:
        """Append one record; its offset. As `publish`."""
        errors: list[KafkaError | None] = []
        offsets: list[int] = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            errors.append(error)
            offsets.append(-1 if error is not None else message.offset() or 0)

        try:
            self._producer.produce(
                topic, value, key.encode(), partition, on_delivery=delivered, headers=cast(Any, headers or [])
            )
        except KafkaException as error:
            raise FatalError(f"{topic} refuses the record: {error.args[0].str()}") from error
        self._producer.flush(_TIMEOUT_S + 1.0)
        if errors and errors[0] is None:
            return offsets[0]
        why = errors[0].str() if errors and errors[0] is not None else "no answer"
        raise RetriableError(f"{topic}: the record was not acknowledged: {why}", hint="kintsugi status")


def publish(
    kafka: str, topic: str, key: str, value: bytes, *, headers: Headers | None = None, partition: int = -1
) -> int:
    """Append one record; its offset.

    RetriableError when the broker did not acknowledge it, FatalError when it refuses it.
    """
    return Publisher(kafka).publish(topic, key, value, headers=headers, partition=partition)
