"""Metrics and logs of every role. Labels are bounded; workflow ids are in logs only, states in neither."""

from __future__ import annotations

import logging
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import orjson
import structlog
from prometheus_client import Counter, Gauge, Histogram, Info, start_http_server
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from schemas.errors import ConfigError

from .loggable import only_loggable, take_over

_FAST = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SLOW = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)

EVENTS_PROCESSED = Counter("kintsugi_events_processed_total", "Records processed", ["role", "outcome"])
PROCESSING_SECONDS = Histogram(
    "kintsugi_event_processing_seconds", "Handling of one batch, by record", ["role"], buckets=_FAST
)
LAG_RECORDS = Gauge("kintsugi_consumer_lag_records", "Records not yet processed", ["role", "topic", "partition"])
LAG_SECONDS = Gauge(
    "kintsugi_consumer_lag_seconds", "Now minus the broker time of the next record", ["role", "topic", "partition"]
)
HEARTBEAT = Gauge("kintsugi_heartbeat_timestamp_seconds", "When the loop last came round", ["role"])
PARTITIONS = Gauge("kintsugi_partitions_assigned", "Partitions this process owns", ["role"])
BACKOFFS = Counter("kintsugi_partition_backoffs_total", "Times a partition was paused to be tried again", ["role"])
REBALANCES = Counter("kintsugi_rebalances_total", "Changes of the assignment", ["role", "kind"])
FENCED_WRITES = Counter("kintsugi_fenced_writes_total", "Writes refused because another owner took over", ["role"])

EFFECTS = Counter("kintsugi_effects_total", "Facts appended and commands sent", ["kind"])
RECOVERY_ATTEMPTS = Counter("kintsugi_recovery_attempts_total", "Finished attempts", ["strategy", "outcome"])
RECOVERY_SECONDS = Histogram(
    "kintsugi_recovery_duration_seconds", "From decision to the end of the attempt", ["strategy"], buckets=_SLOW
)
DETECTION_SECONDS = Histogram(
    "kintsugi_error_detection_seconds",
    "From the moment an error was in the log, or a deadline passed, to its fold",
    ["detected_by"],
    buckets=_FAST,
)
INTERVENTIONS_OPEN = Gauge("kintsugi_interventions_open", "Repairs that wait for a human")
RECORDS_QUEUED = Gauge("kintsugi_records_queued", "Records that recovery has taken in and not handled yet")
WORKFLOWS_OPEN = Gauge("kintsugi_workflows_in_memory", "Workflow states kept in memory")
STATE_FAILURES = Counter("kintsugi_state_validation_failures_total", "Checkpoints that did not verify", ["reason"])
DEAD_LETTERS = Counter("kintsugi_dlq_records_total", "Records set aside", ["reason"])
PARKED_WORKFLOWS = Gauge(
    "kintsugi_parked_workflows", "Workflows with an event that the tables could not take", ["partition"]
)
PARKED_EVENTS = Gauge("kintsugi_parked_events", "Events of parked workflows, which wait", ["partition"])
PARKING_FULL = Counter("kintsugi_parking_full_total", "Batches that stopped because no more may be parked")
DISK_FULL = Counter("kintsugi_disk_full_total", "Batches of the tables that waited because a disk had no room")
TIMERS = Counter("kintsugi_timers_fired_total", "Timer facts written", ["kind"])
SNAPSHOTS = Counter("kintsugi_snapshots_total", "Snapshots written, read, and ignored", ["outcome"])
SNAPSHOT_SECONDS = Histogram(
    "kintsugi_snapshot_dump_seconds", "Time the loop stood still for a snapshot", buckets=_FAST
)
ARCHIVE_FILES = Counter("kintsugi_archive_files_total", "Files of the archive written, or not", ["outcome"])
ARCHIVE_BYTES = Counter("kintsugi_archive_bytes_total", "Bytes of the files written")
ARCHIVE_SECONDS = Histogram("kintsugi_archive_write_seconds", "Writing of one file to the store", buckets=_SLOW)
ARCHIVE_BUFFERED = Gauge("kintsugi_archive_buffered_bytes", "Memory taken by records that are not written yet")
ARCHIVE_MISSING = Counter("kintsugi_archive_missing_records_total", "Offsets that were recorded as a gap")
KEEPER_ACTIVE = Gauge("kintsugi_keeper_active", "Whether this process is the one keeper at work")
SCRUBBED = Counter("kintsugi_scrub_checkpoints_total", "Checkpoints read again by the scrub", ["outcome"])
SCRUB_BYTES = Counter("kintsugi_scrub_bytes_total", "Stored bytes of the states proven again")
SCRUB_PASSES = Counter("kintsugi_scrub_passes_total", "Passes of the scrub over all live workflows", ["outcome"])
SCRUB_SECONDS = Histogram("kintsugi_scrub_pass_seconds", "Time of a whole pass", buckets=_SLOW)
SCRUB_LAST = Gauge("kintsugi_scrub_last_pass_timestamp_seconds", "When the last whole pass ended")
TABLE_DRIFT = Counter("kintsugi_table_drift_total", "Rows that were not what the log says")
CHECKPOINTS_EXPIRED = Counter("kintsugi_checkpoints_expired_total", "Checkpoints whose retention ended", ["reason"])
CHECKPOINTS_HELD = Gauge("kintsugi_checkpoints_held", "Checkpoints beyond retention that the archive does not have yet")
WORKFLOWS_SPOILED = Gauge("kintsugi_workflows_without_checkpoint", "Live workflows of whose checkpoints none is sound")
COLLECTIONS = Counter("kintsugi_collections_total", "Collections of orphans", ["outcome"])
ORPHANS_DELETED = Counter("kintsugi_orphans_deleted_total", "Objects deleted that no row refers to")
ORPHAN_BYTES = Counter("kintsugi_orphans_deleted_bytes_total", "Bytes of the objects deleted")
NOTIFICATIONS = Counter("kintsugi_notifications_total", "Messages to people", ["channel", "kind", "outcome"])
NOTIFICATIONS_WAITING = Gauge(
    "kintsugi_notifications_waiting", "Messages that a channel has not taken yet", ["channel"]
)
NOTIFICATION_SECONDS = Histogram(
    "kintsugi_notification_seconds", "From the change of an incident to its delivery", ["channel"], buckets=_SLOW
)
LEASES_HELD = Gauge("kintsugi_leases_held", "Leases of shared resources that workflows hold")
LEASES_WAITING = Gauge("kintsugi_leases_waiting", "Wishes for shared resources that wait")
BREAKERS_OPEN = Gauge("kintsugi_breakers_open", "Breakers that hold repairs")
REPAIRS_HELD = Gauge("kintsugi_repairs_held", "Repairs that breakers hold, as far as the coordinator remembers them")
INCIDENTS_OPEN = Gauge("kintsugi_incidents_open", "Incidents that are not resolved")
LEASE_STRAYS = Counter("kintsugi_lease_returns_ignored_total", "Returns of leases that the workflow did not have")
DEADLOCKS = Counter("kintsugi_deadlocks_total", "Cycles of workflows that waited for each other")
AWAITS_OVERLOOKED = Counter(
    "kintsugi_awaits_overlooked_total", "Waits for workflows beyond the bound, in which no deadlock is looked for"
)
BREAKERS_REFUSED = Counter(
    "kintsugi_breakers_refused_total", "Failures that were a storm when as many breakers were open as may be"
)
HELD_OVERLOOKED = Counter(
    "kintsugi_held_repairs_overlooked_total", "Held repairs beyond the bound, which only their own timers let go"
)
FAILURES_FORGOTTEN = Counter(
    "kintsugi_failures_forgotten_total", "Things that failed lately whose count was given up for others"
)
INCIDENTS_INCOMPLETE = Counter(
    "kintsugi_incident_members_overlooked_total", "Workflows and interventions that no incident names, beyond the bound"
)
BUILD = Info("kintsugi_build", "Version of this process")


def setup_logs(role: str, *, level: str = "info") -> None:
    """One JSON object per line on stderr, with the role; `loggable` says what may stand in it. ValueError for an
    unknown level."""
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"log level {level!r}: one of debug, info, warning, error")
    structlog.configure(
        processors=[
            _with_role(role),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            only_loggable,
            structlog.processors.JSONRenderer(serializer=_dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    take_over(_of_library, _defect)


def _with_role(role: str) -> Processor:
    """In every thread's lines: context variables would be those of the main thread."""

    def processor(logger: Any, method: str, event: EventDict) -> EventDict:
        event["role"] = role
        return event

    return processor


def _of_library(logger: str, at: str) -> None:
    log().warning("library", logger=logger, at=at)


def _defect(error: BaseException) -> None:
    log().error("defect", error=error)


def log() -> FilteringBoundLogger:
    """The logger."""
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


def serve_metrics(port: int, host: str = "127.0.0.1") -> int:
    """Serve /metrics in a daemon thread; port 0 takes a free one. Returns the port. ConfigError when it is taken."""
    try:
        build = version("kintsugi")
    except PackageNotFoundError:
        build = "unknown"
    BUILD.info({"version": build})
    try:
        server, _ = start_http_server(port, addr=host)
    except OSError as error:
        raise ConfigError(
            f"metrics on {host}:{port}: {error}", hint="another --metrics-port; 0 takes a free one"
        ) from error
    return int(server.server_port)


def _dumps(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
