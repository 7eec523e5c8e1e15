"""One record from a command line, acknowledged by the broker before the command goes on."""

from __future__ import annotations

from typing import Any, cast

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.errors import FatalError, RetriableError
from schemas.headers import Headers

#: All tries together. A person waits.
_TIMEOUT_S = 10.0


def publish(
    kafka: str, topic: str, key: str, value: bytes, *, headers: Headers | None = None, partition: int = -1
) -> None:
    """Append one record. RetriableError when the broker did not acknowledge it, FatalError when it refuses it."""
    errors: list[KafkaError | None] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        errors.append(error)

    producer = Producer(
        {
            "bootstrap.servers": kafka,
            "client.id": "kintsugi-cli",
            "enable.idempotence": True,
            "message.timeout.ms": int(_TIMEOUT_S * 1000),
            "log_level": 0,
        }
    )
    try:
        producer.produce(topic, value, key.encode(), partition, on_delivery=delivered, headers=cast(Any, headers or []))
    except KafkaException as error:
        raise FatalError(f"{topic} refuses the record: {error.args[0].str()}") from error
    producer.flush(_TIMEOUT_S + 1.0)
    if errors and errors[0] is None:
        return
    why = errors[0].str() if errors and errors[0] is not None else "no answer"
    raise RetriableError(f"{topic}: the record was not acknowledged: {why}", hint="kintsugi status")
