"""Where a stack keeps what it knows: one folder per checkout, one JSON file, one lock."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from schemas.errors import KintsugiError, RetriableError

#: Environment variables that name a stack that is already there.
VARIABLES = {"kafka": "KINTSUGI_KAFKA", "registry": "KINTSUGI_REGISTRY", "postgres": "KINTSUGI_POSTGRES"}
#: Parts start in threads, and each writes the file when its pid is known.
_write_lock = threading.Lock()
_CHECKOUT = Path(__file__).resolve().parents[2]


class StackError(KintsugiError):
    """The local stack cannot be started, or a part of it is not well."""


class StackDownError(RetriableError):
    """No stack is known; nothing to connect to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where the parts answer. `objects` is an object store URL."""

    kafka: str
    registry: str
    postgres: str
    objects: str

    def environment(self) -> dict[str, str]:
        """The variables that hand these addresses to a child process."""
        return {
            "KINTSUGI_KAFKA": self.kafka,
            "KINTSUGI_REGISTRY": self.registry,
            "KINTSUGI_POSTGRES": self.postgres,
            "KINTSUGI_OBJECTS": self.objects,
        }


@dataclass(slots=True)
class Part:
    """A server process: its port is kept for ever, its pid with the moment it began, so that no stranger is killed."""

    port: int
    pid: int | None = None
    started_at: float = 0.0
    extra: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class StackState:
    """Content of `stack.json`."""

    backend: str = ""
    parts: dict[str, Part] = field(default_factory=dict)


def home_of(home: Path | None = None) -> Path:
    """The stack's folder: the argument, KINTSUGI_HOME, or `.kintsugi` in the checkout."""
    return (home or Path(os.environ.get("KINTSUGI_HOME") or _CHECKOUT / ".kintsugi")).resolve()


def read(home: Path) -> StackState:
    """The stack's state; empty when there is none."""
    try:
        raw = json.loads((home / "stack.json").read_text(encoding="utf-8"))
        return StackState(raw["backend"], {name: Part(**part) for name, part in raw["parts"].items()})
    except FileNotFoundError:
        return StackState()
    except (ValueError, KeyError, TypeError) as error:
        raise StackError(
            f"{home / 'stack.json'} is damaged: {error}", hint="kintsugi down --purge starts afresh"
        ) from error


def write(home: Path, state: StackState) -> None:
    """Replace the file whole, so that a crash leaves the old or the new one."""
    with _write_lock:
        temporary = home / f"stack.json.{os.getpid()}"
        temporary.write_text(json.dumps(asdict(state), indent=2), encoding="utf-8")
        temporary.replace(home / "stack.json")


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """One `up` or `down` of a stack at a time."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Addresses that the environment gives, by part."""
    return {name: environment[variable] for name, variable in VARIABLES.items() if environment.get(variable)}


def objects_url(home: Path) -> str:
    """Object storage of a stack without one: a folder."""
    return os.environ.get("KINTSUGI_OBJECTS") or (home / "objects").as_uri()


def addresses_of(home: Path, state: StackState) -> Addresses:
    """Addresses of the parts in the state file."""
    ports = {name: part.port for name, part in state.parts.items()}
    return Addresses(
        kafka=f"127.0.0.1:{ports['kafka']}",
        registry=f"http://127.0.0.1:{ports['registry']}/apis/ccompat/v7",
        postgres=f"postgresql://kintsugi@127.0.0.1:{ports['postgres']}/kintsugi",
        objects=objects_url(home),
    )


def addresses(home: Path | None = None) -> Addresses:
    """The stack to talk to: the environment's, else the local one's. StackDownError says how to get one."""
    home = home_of(home)
    given = from_environment(os.environ)
    if len(given) == len(VARIABLES):
        return Addresses(objects=objects_url(home), **given)
    state = read(home)
    if len(state.parts) == len(VARIABLES):
        local = addresses_of(home, state)
        return Addresses(**{**asdict(local), **given})
    missing = ", ".join(v for n, v in VARIABLES.items() if n not in given)
    raise StackDownError(f"no stack is known: {missing} not set, none started here", hint="run: kintsugi up")
