"""Where a partition of a group may begin: never at a place that the log does not hold."""

from __future__ import annotations

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaException, TopicPartition

from schemas.errors import FatalError, RetriableError

from .handler import LogRange
from .kafka import describe

#: Waits for the coordinator and for watermarks when a partition is taken over.
LOOKUP_TIMEOUT_S = 5.0


def look_up(consumer: Consumer, topic: str, partition: int) -> LogRange:
    """Ask broker and group about a partition. RetriableError when they do not answer."""
    at = TopicPartition(topic, partition)
    try:
        found = consumer.committed([at], LOOKUP_TIMEOUT_S)[0]
        if found.error is not None:
            raise RetriableError(f"the group's position of {topic}[{partition}]: {describe(found.error)}")
        low, high = consumer.get_watermark_offsets(at, LOOKUP_TIMEOUT_S, cached=False)
    except KafkaException as error:
        raise RetriableError(f"{topic}[{partition}]: {describe(error.args[0])}") from error
    committed = None if found.offset == OFFSET_INVALID else int(found.offset)
    return LogRange(partition=partition, low=low, high=high, committed=committed)


def check_group(topic: str, log: LogRange) -> None:
    """FatalError when the group's position is outside the log."""
    if log.committed is not None and not log.low <= log.committed <= log.high:
        raise FatalError(
            f"{topic}[{log.partition}]: the group's position {log.committed} is outside the log "
            f"({log.low} to {log.high}): records were deleted before they were processed, or the topic was "
            "made anew; nothing is skipped silently",
            hint="check the retention, then set the position by hand: kafka-consumer-groups.sh --reset-offsets",
        )


def check_stored(topic: str, log: LogRange, start: int) -> None:
    """FatalError when the place that a handler wants to begin at is outside the log."""
    if not log.low <= start <= log.high:
        raise FatalError(
            f"{topic}[{log.partition}]: the stored position {start} is outside the log "
            f"({log.low} to {log.high}): records were deleted before they were processed, "
            "or the topic was made anew",
            hint="rebuild what is stored from the log, or check the retention",
        )
