"""Tries migrations over the states that a restore would take, before the service that needs them is deployed."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from projections.reader import snapshot
from projections.sql import blocks
from schemas.admission import admit
from schemas.errors import ConfigError, KintsugiError, PoisonError, StateError
from schemas.log_record import LogRecord
from schemas.migrations import DataCheck, Migrations
from schemas.records.events import CheckpointCreated

if TYPE_CHECKING:
    from .checkpoint_log import CheckpointLog

Row = dict[str, Any]
#: A checkpoint's record, or why it cannot be had; None when it need not be read.
Written = CheckpointCreated | StateError | None

#: Of a partition's records; passing over so many is faster than to ask for the next one by itself.
PASSED_OVER_MAX = 2_000
#: Failures that a report lists; the counts are of all.
FAILURES_SHOWN_MAX = 100
_DETAIL_MAX = 500
_QUERIES = blocks("ops", "state.sql")
_WANTED = "package.module:OBJECT, where OBJECT is a Migrations or a WorkflowType that has some"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A state that would not be migrated, and why."""

    workflow_id: str
    checkpoint_id: str
    state_version: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionReport:
    """How the states of one version fared. `erased` ones can be read by nobody, so no migration matters to them."""

    state_version: str
    checkpoints: int
    passed: int
    failed: int
    erased: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What would happen to the live workflows of a type. `without` have no checkpoint: they begin at their input."""

    to_version: str
    workflows: int
    without: int
    versions: list[VersionReport]
    failures: list[Failure]

    @property
    def failed(self) -> int:
        """States that would not be migrated."""
        return sum(version.failed for version in self.versions)


def load_migrations(name: str) -> tuple[Migrations, str | None]:
    """The migrations that `package.module:OBJECT` names, and the version that goes with them where it says one.

    The module is looked for in the working directory first. ConfigError says what is wrong with it.
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise ConfigError(f"{name!r:.200} is not {_WANTED}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # somebody else's module may raise anything
        raise ConfigError(f"{name!r:.200} cannot be loaded: {type(error).__name__}: {error}"[:_DETAIL_MAX]) from error
    version = getattr(found, "version", None)
    items = getattr(getattr(found, "migrations", found), "items", None)
    migrations = Migrations()
    try:
        # The client's own class is another one than ours: what was registered is registered here again.
        for older, newer, function in items() if callable(items) else None:  # type: ignore[union-attr]
            migrations.add(older, newer)(function)
    except (TypeError, ValueError):
        raise ConfigError(f"{name!r:.200} is a {type(found).__name__}, not {_WANTED}") from None
    if not migrations:
        raise ConfigError(f"{name!r:.200} holds no migration")
    return migrations, version if isinstance(version, str) else None


def version_to_reach(migrations: Migrations, given: str | None, named: str | None) -> str:
    """The version given, else the one that goes with the migrations, else the one that all of them lead to."""
    if given is not None or named is not None:
        return given or named or ""
    ends = migrations.newest()
    if len(ends) != 1:
        raise ConfigError(f"the migrations end in several versions: {', '.join(ends)}", hint="say which one: --to")
    return ends[0]


def live_checkpoints(postgres: str, workflow_type: str) -> tuple[int, list[Row]]:
    """(number of live workflows of a type, the newest verified checkpoint of each that has one)."""
    with snapshot(postgres) as tables:
        parameters = {"workflow_type": workflow_type}
        count = tables.query(_QUERIES["live_workflows"], parameters)[0]["count"]
        return count, tables.query(_QUERIES["newest_verified"], parameters)


def try_migrations(
    log: CheckpointLog,
    rows: Iterable[Row],
    workflows: int,
    migrations: Migrations,
    to_version: str,
    *,
    check: DataCheck | None = None,
    tried: Callable[[int], None] = lambda done: None,
) -> Report:
    """Read each checkpoint, prove it, and run its chain. Nothing is written. RetriableError when something is away."""
    counts: Counter[tuple[str, str]] = Counter()
    failures: list[Failure] = []
    done = 0
    for row, record in _written(log, rows, to_version if check is None else None):
        version = row["state_version"]
        failure = _try(log, row, record, migrations, to_version, check)
        outcome = "passed" if failure is None else "erased" if failure.reason == "key_erased" else "failed"
        counts[version, outcome] += 1
        if failure is not None and outcome == "failed" and len(failures) < FAILURES_SHOWN_MAX:
            failures.append(failure)
        done += 1
        tried(done)
    return Report(
        to_version=to_version,
        workflows=workflows,
        without=workflows - done,
        versions=[_version(version, counts) for version in sorted({version for version, _ in counts})],
        failures=failures,
    )


def _written(log: CheckpointLog, rows: Iterable[Row], skipped: str | None) -> Iterator[tuple[Row, Written]]:
    """Each checkpoint as it was written, in the order of the log; states of the version `skipped` are not read."""
    stretch: list[Row] = []
    for row in sorted(rows, key=lambda r: (r["log_partition"], r["log_offset"])):
        if row["state_version"] == skipped:
            yield row, None
            continue
        if stretch and not _near(stretch[-1], row):
            yield from _read(log, stretch)
            stretch = []
        stretch.append(row)
    yield from _read(log, stretch)


def _near(row: Row, other: Row) -> bool:
    if row["log_partition"] != other["log_partition"]:
        return False
    apart: int = other["log_offset"] - row["log_offset"]
    return apart <= PASSED_OVER_MAX


def _read(log: CheckpointLog, stretch: list[Row]) -> Iterator[tuple[Row, Written]]:
    """Read a stretch of a partition once, and give what of it is wanted."""
    if not stretch:
        return
    partition = stretch[0]["log_partition"]
    wanted = {row["log_offset"]: row for row in stretch}
    known = log.bounds().get(partition)
    end = min(max(wanted) + 1, 0 if known is None else known.end)
    for found in log.history.read({partition: (min(wanted), end)}, on_gap=lambda gap: None):
        row = wanted.pop(found.offset, None)
        if row is not None:
            yield row, _checkpoint_of(log, row, found)
    for row in wanted.values():
        yield row, StateError("gone", "its record is neither in the log nor in the archive")


def _checkpoint_of(log: CheckpointLog, row: Row, found: LogRecord) -> CheckpointCreated | StateError:
    try:
        record = admit(log.codec, found.key, found.value)
    except PoisonError as error:
        return StateError("log", f"its record cannot be read: {error}")
    if not isinstance(record, CheckpointCreated) or record.checkpoint_id != str(row["id"]):
        return StateError("log", "the record at its place is another one")
    return record


def _try(
    log: CheckpointLog,
    row: Row,
    record: Written,
    migrations: Migrations,
    to_version: str,
    check: DataCheck | None,
) -> Failure | None:
    version = row["state_version"]
    try:
        if record is None:
            return None
        if isinstance(record, StateError):
            raise record
        data = log.state(record).get("data")
        if not isinstance(data, dict):
            raise StateError("structure", "it holds no state of a workflow")
        migrated = migrations.run(data, version, to_version, check=check)
        if check is not None and not migrated.links:
            check(migrated.data)
    except StateError as error:
        reason, detail = error.reason, str(error)
    except KintsugiError as error:
        if error.retriable or error.fatal:
            raise
        reason, detail = "unreadable", str(error)
    else:
        return None
    return Failure(
        workflow_id=str(row["workflow_id"]),
        checkpoint_id=str(row["id"]),
        state_version=version,
        reason=reason,
        detail=detail[:_DETAIL_MAX],
    )


def _version(version: str, counts: Counter[tuple[str, str]]) -> VersionReport:
    passed, failed, erased = (counts[version, outcome] for outcome in ("passed", "failed", "erased"))
    return VersionReport(
        state_version=version, checkpoints=passed + failed + erased, passed=passed, failed=failed, erased=erased
    )
