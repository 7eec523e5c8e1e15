"""The topics, their keys and their settings (DESIGN.md section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

EVENTS = "workflow.events"
COMMANDS = "workflow.commands"
COORDINATION = "workflow.coordination"
POLICIES = "workflow.policies"
AUDIT = "workflow.audit"
DEAD_LETTERS = "workflow.events.dlq"

#: A state of 10 MiB that does not compress, and its record, must fit one message.
MESSAGE_SIZE_BYTES_MAX = 12 * 1024 * 1024

_DAY_MS = 24 * 3600 * 1000
_COMMON = {
    # Broker time is the engine's only clock: it never runs backwards within a partition of one leader.
    "message.timestamp.type": "LogAppendTime",
    "max.message.bytes": str(MESSAGE_SIZE_BYTES_MAX),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """A topic as `kintsugi topics create` makes it."""

    name: str
    partitions: int
    purpose: str
    config: Mapping[str, str] = field(default_factory=dict)


TOPICS: tuple[TopicSpec, ...] = (
    TopicSpec(
        name=EVENTS,
        partitions=8,
        purpose="all facts, keyed by workflow_id",
        config={**_COMMON, "cleanup.policy": "delete", "retention.ms": str(7 * _DAY_MS)},
    ),
    TopicSpec(
        name=COMMANDS,
        partitions=8,
        purpose="commands to services, keyed by workflow_id",
        config={**_COMMON, "cleanup.policy": "delete", "retention.ms": str(7 * _DAY_MS)},
    ),
    TopicSpec(
        name=COORDINATION,
        partitions=1,
        purpose="what workflows share, wait for and fail on",
        # Not compacted: the records of one workflow do not replace each other. As long as a lease may be held.
        config={**_COMMON, "cleanup.policy": "delete", "retention.ms": str(30 * _DAY_MS)},
    ),
    TopicSpec(
        name=POLICIES,
        partitions=1,
        purpose="policy versions, keyed by policy name",
        config={**_COMMON, "cleanup.policy": "compact"},
    ),
    TopicSpec(
        name=AUDIT,
        partitions=1,
        purpose="operator actions, keyed by actor",
        config={**_COMMON, "cleanup.policy": "delete", "retention.ms": str(365 * _DAY_MS)},
    ),
    TopicSpec(
        name=DEAD_LETTERS,
        partitions=8,
        purpose="records nobody could read or apply, bytes untouched",
        config={
            "message.timestamp.type": "CreateTime",
            "max.message.bytes": str(MESSAGE_SIZE_BYTES_MAX + 1024 * 1024),
            "cleanup.policy": "delete",
            "retention.ms": str(90 * _DAY_MS),
        },
    ),
)
