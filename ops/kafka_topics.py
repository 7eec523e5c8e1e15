"""Creates the topics and compares them with what `schemas.topics` says they should be."""

from __future__ import annotations

from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from schemas.errors import FatalError, RetriableError
from schemas.topics import TOPICS, TopicSpec

_TIMEOUT_S = 15.0
_REPLICATION_DURABLE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicState:
    """A topic as it is; `differences` are settings that are not as they should be, as 'key: is, should be'."""

    name: str
    partitions: int
    exists: bool
    differences: tuple[str, ...]
    purpose: str


def _client(kafka: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": kafka, "log_level": 0, "socket.timeout.ms": 10_000})


def describe(kafka: str) -> list[TopicState]:
    """Every topic of ours. RetriableError when Kafka does not answer."""
    client = _client(kafka)
    try:
        existing = client.list_topics(timeout=_TIMEOUT_S).topics
        present = [spec for spec in TOPICS if spec.name in existing]
        resources = [ConfigResource(ResourceType.TOPIC, spec.name) for spec in present]
        configs = {
            resource.name: future.result(_TIMEOUT_S)
            for resource, future in (client.describe_configs(resources) if resources else {}).items()
        }
    except KafkaException as error:
        raise RetriableError(
            f"Kafka at {kafka} does not answer: {error.args[0].str()}", hint="kintsugi status"
        ) from error
    states = []
    for spec in TOPICS:
        if spec not in present:
            states.append(TopicState(name=spec.name, partitions=0, exists=False, differences=(), purpose=spec.purpose))
            continue
        partitions = len(existing[spec.name].partitions)
        actual = {key: entry.value for key, entry in configs[spec.name].items()}
        differences = [
            f"{key}: {actual.get(key)}, should be {value}"
            for key, value in spec.config.items()
            if not _same(actual.get(key), value)
        ]
        if partitions != spec.partitions:
            differences.append(f"partitions: {partitions}, should be {spec.partitions}")
        states.append(
            TopicState(
                name=spec.name, partitions=partitions, exists=True, differences=tuple(differences), purpose=spec.purpose
            )
        )
    return states


def _same(actual: str | None, wanted: str) -> bool:
    return actual is not None and sorted(actual.split(",")) == sorted(wanted.split(","))


def create(kafka: str, *, dry_run: bool = False, replication: int = 1) -> list[tuple[TopicSpec, str]]:
    """Create what is missing: (topic, 'exists' | 'created' | 'would create'). FatalError when the broker refuses."""
    missing = {state.name for state in describe(kafka) if not state.exists}
    wanted = [spec for spec in TOPICS if spec.name in missing]
    if wanted and not dry_run:
        # One replica may be away and records are still written twice before they are acknowledged.
        durable = {"min.insync.replicas": "2"} if replication >= _REPLICATION_DURABLE else {}
        new = [
            NewTopic(
                s.name, num_partitions=s.partitions, replication_factor=replication, config={**s.config, **durable}
            )
            for s in wanted
        ]
        client = _client(kafka)  # must live until the answers are in
        for name, future in client.create_topics(new, operation_timeout=_TIMEOUT_S).items():
            try:
                future.result(_TIMEOUT_S)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise FatalError(f"topic {name}: {error.args[0].str()}") from error
    word = "would create" if dry_run else "created"
    return [(spec, word if spec.name in missing else "exists") for spec in TOPICS]
