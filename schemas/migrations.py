"""Migrations of a service's state: functions from one version to the next, and the chain of them that a state needs.

    migrations = Migrations()

    @migrations.add("1", "2")
    def names(data):
        data["name"] = data.pop("title")
        return data

Between two versions there is at most one way: a migration that would open a second one, or lead back, is refused when
it is added. So which functions a state goes through never depends on the order of their registration.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .canonical import canonical_bytes, digest_of
from .errors import ConfigError, StateError

#: From the service's part of a state to the same in the next version.
Migration = Callable[[dict[str, Any]], dict[str, Any]]
#: Raises StateError for data that a state of the newest version must not be.
DataCheck = Callable[[dict[str, Any]], None]

#: What a state's version column holds.
VERSION_MAX = 50
#: Each is a deployment that changed the state. More are a mistake in a loop, and each is an event on a restore.
MIGRATIONS_MAX = 1_000
_DESCRIPTION_MAX = 500
_NUMBERS = re.compile(r"\d{1,9}(\.\d{1,9})*")


class MigrationError(StateError):
    """A state cannot be brought to the service's version. `reason` is one of

    migration_missing  no chain of migrations leads there
    migration_failed   one of them raised, or made what is no state of its version
    downgrade          the state is newer than the service
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One migration that was carried out, with the digests of the data before and after it."""

    from_version: str
    to_version: str
    digest_before: str
    digest_after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrated:
    """Data of the version asked for, and how it came about."""

    data: dict[str, Any]
    links: tuple[Link, ...]


class Migrations:
    """The migrations of one workflow type."""

    def __init__(self) -> None:
        self._next: dict[str, dict[str, Migration]] = {}
        self._before: dict[str, set[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._next)

    def add(self, from_version: str, to_version: str) -> Callable[[Migration], Migration]:
        """Register a migration. ConfigError when it leads back, or opens a second way between two versions."""
        for version in (from_version, to_version):
            if not isinstance(version, str) or not 1 <= len(version) <= VERSION_MAX or "\x00" in version:
                raise ConfigError(f"migration: version {version!r:.80} must be text of 1 to {VERSION_MAX} characters")

        def register(function: Migration) -> Migration:
            self._add(from_version, to_version, function)
            return function

        return register

    def _add(self, from_version: str, to_version: str, function: Migration) -> None:
        name = f"migration {from_version!r} -> {to_version!r}"
        if not callable(function) or inspect.iscoroutinefunction(function):
            raise ConfigError(f"{name} must be a plain function from the data to the new data")
        if to_version in self._next.get(from_version, {}):
            raise ConfigError(f"{name} is registered twice")
        if sum(map(len, self._next.values())) >= MIGRATIONS_MAX:
            raise ConfigError(f"{name}: more than {MIGRATIONS_MAX} migrations")
        behind, ahead = self._older(from_version), self._newer(to_version)
        if from_version in ahead:
            raise ConfigError(f"{name} leads back: there is a way from {to_version!r} to {from_version!r}")
        for old in behind:
            second = self._newer(old) & ahead
            if second:
                raise ConfigError(
                    f"{name} opens a second way from {old!r} to {min(second)!r}",
                    hint="keep one way between two versions: a state would depend on which was taken",
                )
        self._next.setdefault(from_version, {})[to_version] = function
        self._before.setdefault(to_version, set()).add(from_version)

    def items(self) -> Iterator[tuple[str, str, Migration]]:
        """Every migration: its two versions, and its function."""
        for older, following in self._next.items():
            for newer, function in following.items():
                yield older, newer, function

    def newest(self) -> tuple[str, ...]:
        """The versions from which no migration leads on."""
        return tuple(sorted(version for version in self._before if version not in self._next))

    def chain(self, from_version: str, to_version: str) -> tuple[str, ...]:
        """The versions that a state goes through, both ends included. MigrationError says what is missing."""
        came_from: dict[str, str] = {}
        waiting = [from_version]
        while waiting:
            at = waiting.pop()
            if at == to_version:
                way = [at]
                while at != from_version:
                    at = came_from[at]
                    way.append(at)
                return tuple(reversed(way))
            for version in self._next.get(at, ()):
                came_from[version] = at
                waiting.append(version)
        raise self._no_way(from_version, to_version)

    def run(
        self, data: dict[str, Any], from_version: str, to_version: str, *, check: DataCheck | None = None
    ) -> Migrated:
        """Bring data to a version; what was given stays as it is. MigrationError, which names the link that failed.

        `check` is asked about the result when anything was migrated.
        """
        way = self.chain(from_version, to_version)
        if len(way) == 1:
            return Migrated(data=data, links=())
        links = []
        digest = _digest_of(data, from_version)
        for older, newer in pairwise(way):
            made, before = self._step(data, older, newer), digest
            digest = _digest_of(made, newer, older)
            data = _copied(made)  # the function may keep what it returned, and change it later
            links.append(Link(from_version=older, to_version=newer, digest_before=before, digest_after=digest))
        if check is not None:
            try:
                check(data)
            except StateError as error:
                raise _failed(way[-2], way[-1], f"its result is refused: {error}", error.path) from error
        return Migrated(data=data, links=tuple(links))

    def _step(self, data: dict[str, Any], older: str, newer: str) -> dict[str, Any]:
        try:
            made = self._next[older][newer](_copied(data))
        except Exception as error:  # a service's own function may raise anything
            raise _failed(older, newer, f"{type(error).__name__}: {_text_of(error)}") from error
        if not isinstance(made, dict):
            raise _failed(older, newer, f"it returned {type(made).__name__}, not the new data")
        return made

    def _no_way(self, from_version: str, to_version: str) -> MigrationError:
        state = f"the state has version {from_version!r}, the service runs {to_version!r}"
        known = from_version in self._next or from_version in self._before
        if from_version in self._newer(to_version) or (not known and _is_larger(from_version, to_version)):
            return MigrationError(
                "downgrade",
                f"{state}: it is newer than the service",
                hint="deploy the newer version again, or restart the workflow from its input",
            )
        # What is missing lies between where the ways from the state end and where the ways to the service begin.
        ends = sorted(v for v in self._newer(from_version) if not self._next.get(v))
        starts = sorted(v for v in self._older(to_version) if not self._before.get(v))
        missing = ", or ".join(f"{end!r} -> {start!r}" for end in ends[:2] for start in starts[:2])
        return MigrationError(
            "migration_missing",
            f"{state}: no migration {missing} is registered",
            hint="register it with the workflow type: @kind.migration(...); kintsugi state migrate --dry-run tries it",
        )

    def _newer(self, version: str) -> set[str]:
        return _reached(version, self._next)

    def _older(self, version: str) -> set[str]:
        return _reached(version, self._before)


def _reached(version: str, edges: dict[str, Any]) -> set[str]:
    found, waiting = {version}, [version]
    while waiting:
        for other in edges.get(waiting.pop(), ()):
            if other not in found:
                found.add(other)
                waiting.append(other)
    return found


def _is_larger(version: str, other: str) -> bool:
    """Whether a version is the larger one, of two that are numbers: "10" and "9", "1.10" and "1.9"."""
    if not (_NUMBERS.fullmatch(version) and _NUMBERS.fullmatch(other)):
        return False
    return [int(part) for part in version.split(".")] > [int(part) for part in other.split(".")]


def _digest_of(data: dict[str, Any], version: str, older: str | None = None) -> str:
    try:
        return digest_of(canonical_bytes(data))
    except StateError as error:
        if older is None:  # verified data cannot be this; a caller's own may
            raise
        raise _failed(older, version, f"its result is no state: {error}", error.path) from error


def _failed(older: str, newer: str, why: str, path: str = "$") -> MigrationError:
    return MigrationError("migration_failed", f"migration {older!r} -> {newer!r}: {why:.{_DESCRIPTION_MAX}}", path=path)


def _text_of(error: Exception) -> str:
    try:
        return str(error)
    except Exception as failure:
        return f"<no text: {type(failure).__name__}>"


def _copied(value: Any) -> Any:
    """A copy of JSON data in the form that a restore gives it; `copy.deepcopy` takes ten times as long."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value
