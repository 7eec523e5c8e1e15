"""Builds the roles and runs one in this process, until SIGTERM or SIGINT."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Protocol

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from engine.policy import Policy
from schemas.archive import Archive
from schemas.catalog import shipped
from schemas.codec import Codec
from schemas.errors import ConfigError, FatalError, RetriableError
from schemas.keystore import open_keystore
from schemas.objects import Objects
from schemas.registry import Registry
from schemas.topics import COMMANDS, COORDINATION, DEAD_LETTERS, EVENTS, POLICIES

from . import telemetry
from .archiver import Archiver
from .clock import BrokerClock
from .coordinator import Coordination
from .coordinator_snapshots import CoordinatorSnapshots
from .handler import Handler
from .inspecting import Inspection, inspection_of
from .kafka import SESSION_TIMEOUT_MS, SESSION_TIMEOUT_MS_WANTED, consumer_settings, describe, producer_settings
from .keeper.desk import Desk
from .keeper.orphans import Orphans
from .keeper.places import Places
from .keeper.retention import Retention
from .keeper.role import ORPHANS_INTERVAL_S, Job, Keeper
from .keeper.scrub import Scrubber
from .keeper.tables import Tables
from .loop import BATCH_RECORDS_MAX, Loop
from .notifier.channels import Channel
from .notifier.role import Notifier
from .outbox import Outbox
from .pauses import short_pauses
from .policies import PolicyLog
from .projector import BATCH_RECORDS_MAX as PROJECTED_MAX
from .projector import Projection, Projector
from .recovery import Recovery
from .settings import RoleSettings
from .snapshots import Snapshots

_METADATA_TIMEOUT_S = 15.0
#: Exit code when the loop does not end within its deadline after a stop.
_EXIT_STUCK = 1


class Runs(Protocol):
    """What a role is, once it is built."""

    def run(self) -> None:
        """Run until `stop`; FatalError or RetriableError when it cannot go on."""

    def stop(self) -> None:
        """Ask it to end. May be called from a signal handler."""


def recovery_loop(settings: RoleSettings, policy: Policy, stack: ExitStack) -> Loop:
    """The recovery role. ConfigError, FatalError or RetriableError when a dependency is not as it must be."""
    for warning in policy.warnings:
        telemetry.log().warning("policy", warning=warning)
    cluster = _cluster(settings, (EVENTS, COMMANDS, COORDINATION, POLICIES, DEAD_LETTERS))
    codec = _codec_of(settings, stack)
    clock = BrokerClock()
    with _named_settings():
        outbox = Outbox(producer_settings(settings.kafka, settings.group, settings.extra), clock)
    snapshots = Snapshots(settings.objects, cluster=cluster, group=settings.group, topic=EVENTS)
    policies = PolicyLog(settings.kafka)
    handler = Recovery(policy, codec, outbox, snapshots, inspection_of(settings, policy), policies)
    stack.callback(handler.close)
    return _loop("recovery", settings, handler, clock)


def _codec_of(settings: RoleSettings, stack: ExitStack) -> Codec:
    """The codec a role reads with."""
    return Codec(_registry(settings, stack))


def projector_loop(settings: RoleSettings, projection: Projection, stack: ExitStack) -> Loop:
    """The projector role."""
    _cluster(settings, (EVENTS,))
    handler = Projector(projection, _codec_of(settings, stack))
    return _loop("projector", settings, handler, BrokerClock(), batch_records_max=PROJECTED_MAX)


def archiver_loop(settings: RoleSettings) -> Loop:
    """The archiver role. It decodes nothing, and so needs no registry."""
    archive = Archive(Objects(settings.objects), cluster=_cluster(settings, (EVENTS,)), topic=EVENTS)
    return _loop("archiver", settings, Archiver(archive, age_s=settings.archive_age_s), BrokerClock())


def coordinator_loop(settings: RoleSettings, policy: Policy, stack: ExitStack) -> Loop:
    """The coordinator role. One process of its group is at work, the others stand by."""
    cluster = _cluster(settings, (EVENTS, COORDINATION, POLICIES, DEAD_LETTERS))
    codec, clock = _codec_of(settings, stack), BrokerClock()
    with _named_settings():
        outbox = Outbox(producer_settings(settings.kafka, settings.group, settings.extra), clock)
    snapshots = CoordinatorSnapshots(settings.objects, cluster=cluster, group=settings.group, topic=COORDINATION)
    count = len(_admin(settings.kafka).list_topics(EVENTS, timeout=_METADATA_TIMEOUT_S).topics[EVENTS].partitions)
    applied = PolicyLog(settings.kafka).newest
    handler = Coordination(policy, codec, outbox, snapshots, count, applied)
    stack.callback(handler.close)
    return _loop("coordinator", settings, handler, clock, topic=COORDINATION)


def notifier_loop(settings: RoleSettings, channels: Mapping[str, Channel], stack: ExitStack) -> Loop:
    """The notifier role. Without a channel it runs, and says of each incident that nobody was told."""
    _cluster(settings, (EVENTS,))
    codec, clock = _codec_of(settings, stack), BrokerClock()
    if not channels:
        telemetry.log().warning("no channel", hint="docs/operations.md: Notifications")
    with _named_settings():
        outbox = Outbox(producer_settings(settings.kafka, settings.group, settings.extra), clock)
    handler = Notifier(channels, codec, outbox, clock)
    stack.callback(handler.close)
    return _loop("notifier", settings, handler, clock)


def keeper(settings: RoleSettings, policy: Policy, tables: Tables, stack: ExitStack) -> Keeper:
    """The keeper role. It belongs to no group: a lock in Postgres says which one works."""
    cluster = _cluster(settings, (EVENTS,))
    codec, clock = _codec_of(settings, stack), BrokerClock()
    with _named_settings():
        outbox = Outbox(producer_settings(settings.kafka, settings.group, settings.extra), clock)
    desk = Desk(outbox, codec, clock)
    stack.callback(desk.close)
    objects = Objects(settings.objects)
    archive = Archive(objects, cluster=cluster, topic=EVENTS)
    places = Places(settings.kafka, EVENTS, archive)
    stack.callback(places.close)
    keys = open_keystore(settings.keys, settings.objects)
    interval_s = policy.corruption.validation_interval_ms / 1000
    scrubber = Scrubber(
        tables,
        places,
        codec,
        Inspection(keys, keys_optional=settings.keys_optional),
        objects,
        desk,
        interval_s=interval_s,
        per_second=settings.scrub_rate,
        errors=policy.corruption.enabled,
        # Passes of one process begin where the last one stopped; the first begins anywhere, so that processes that
        # end early do not prove the same few for ever.
        after=(random.choice(sorted(places.bounds())), -1),
    )
    retention = Retention(tables, places, archive, codec, desk, policy.retention)
    orphans = Orphans(tables, places, codec, objects, grace_s=settings.orphan_grace_s)
    jobs = [
        Job("scrub", scrubber.steps, interval_s),
        Job("retention", retention.steps, settings.retention_interval_s),
        Job("orphans", orphans.steps, ORPHANS_INTERVAL_S, rests_s=ORPHANS_INTERVAL_S),
    ]
    return Keeper(tables, jobs)


def run(role: str, settings: RoleSettings, build: Callable[[ExitStack], Runs]) -> None:
    """Run until told to stop; FatalError or RetriableError when it cannot start or go on.

    A stop that takes longer than `stop_timeout_s` ends the process at once: the next owner does the rest again.
    """
    telemetry.setup_logs(role, level=settings.log_level)
    port = telemetry.serve_metrics(settings.metrics_port, settings.metrics_host)
    log = telemetry.log()
    with ExitStack() as stack:
        loop = build(stack)
        with _signals(loop, settings.stop_timeout_s), short_pauses():
            log.info("started", metrics=f"http://{settings.metrics_host}:{port}/metrics", group=settings.group)
            try:
                loop.run()
            except (FatalError, RetriableError) as error:
                log.error("stopped by an error", error=error, hint=error.hint)
                raise
    log.info("stopped")


def _loop(
    role: str,
    settings: RoleSettings,
    handler: Handler,
    clock: BrokerClock,
    *,
    topic: str = EVENTS,
    batch_records_max: int = BATCH_RECORDS_MAX,
) -> Loop:
    own = consumer_settings(settings.kafka, settings.group, settings.extra)
    if "session.timeout.ms" in own and "session.timeout.ms" not in settings.extra:
        own["session.timeout.ms"] = _session_timeout_ms(settings.kafka)
    with _named_settings():
        return Loop(role, topic, own, handler, clock, batch_records_max=batch_records_max)


@contextmanager
def _named_settings() -> Iterator[None]:
    """A setting that librdkafka does not know, or a value that it does not take, is a wrong configuration."""
    try:
        yield
    except KafkaException as error:
        raise ConfigError(f"-X: {describe(error.args[0])}") from None


def _registry(settings: RoleSettings, stack: ExitStack) -> Registry:
    """Every schema we write must be registered already; asked now, not at the first error of a workflow."""
    registry = stack.enter_context(Registry(settings.registry))
    for schema in shipped().values():
        registry.id_of(schema)
    return registry


def _admin(servers: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": servers, "log_level": 0})


def _cluster(settings: RoleSettings, topics: tuple[str, ...]) -> str:
    """Id of the cluster: one made anew under the same address has other offsets."""
    try:
        metadata = _admin(settings.kafka).list_topics(timeout=_METADATA_TIMEOUT_S)
    except KafkaException as error:
        raise RetriableError(
            f"KINTSUGI_KAFKA: {settings.kafka} does not answer: {describe(error.args[0])}", hint="run: kintsugi status"
        ) from error
    missing = [topic for topic in topics if topic not in metadata.topics]
    if missing:
        raise ConfigError(f"topic {', '.join(missing)} does not exist", hint="run: kintsugi topics create")
    return str(metadata.cluster_id or "unknown")


def _session_timeout_ms(servers: str) -> int:
    """As short as this broker allows, so that a dead member's partitions are taken over soon."""
    try:
        admin = _admin(servers)
        broker = str(next(iter(admin.list_topics(timeout=_METADATA_TIMEOUT_S).brokers)))
        resource = ConfigResource(ResourceType.BROKER, broker)
        found = admin.describe_configs([resource], request_timeout=_METADATA_TIMEOUT_S)[resource].result()
        least = int(found["group.min.session.timeout.ms"].value)
    except (KafkaException, KeyError, ValueError, TypeError, StopIteration):
        return SESSION_TIMEOUT_MS  # not allowed to ask
    return max(least, SESSION_TIMEOUT_MS_WANTED)


@contextmanager
def _signals(loop: Runs, timeout_s: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        loop.stop()
        watchdog = threading.Timer(timeout_s, _give_up, [timeout_s])
        watchdog.daemon = True
        watchdog.start()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _give_up(timeout_s: float) -> None:
    telemetry.log().error("did not stop in time", timeout_s=timeout_s)
    os._exit(_EXIT_STUCK)
