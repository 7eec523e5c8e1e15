"""Which stack: the addresses in the environment, else Docker compose, else child processes."""

from __future__ import annotations

import os
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

from . import local
from .local import PartStatus, Say
from .processes import free_port, tail
from .state import VARIABLES, Addresses, Part, StackError, from_environment, home_of, locked
from .state import addresses as known_addresses
from .state import read as read_state
from .state import write as write_state

_COMPOSE_FILE = Path(__file__).resolve().parents[2] / "docker-compose.yml"
_COMPOSE_TIMEOUT_S = 900
_PORT_VARIABLES = {
    "kafka": "KINTSUGI_KAFKA_PORT",
    "registry": "KINTSUGI_REGISTRY_PORT",
    "postgres": "KINTSUGI_POSTGRES_PORT",
}


def docker_answers() -> bool:
    """Whether a Docker engine with compose is within reach."""
    if shutil.which("docker") is None:
        return False
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        try:
            done = subprocess.run(command, capture_output=True, timeout=15, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return False
        if done.returncode != 0:
            return False
    return True


def is_given() -> bool:
    """Whether the environment names all servers: then they are not ours to start, change or stop."""
    return len(from_environment(os.environ)) == len(VARIABLES)


def ensure(home: Path | None = None, say: Say = lambda _: None) -> Addresses:
    """A running stack. StackError tells what is missing or which part did not start."""
    if is_given():
        say("using the addresses in the environment")
        return known_addresses(home)
    home = home_of(home)
    backend = read_state(home).backend
    if backend == "docker" or (not backend and docker_answers()):
        _compose_up(home, say)
    else:
        local.up(home, say)
    return known_addresses(home)


def down(home: Path | None = None, *, purge: bool = False, say: Say = lambda _: None) -> None:
    """Stop the stack that `ensure` started. Servers named by the environment are not ours to stop."""
    home = home_of(home)
    if _backend_of(home) == "docker":
        _compose(home, ["down", *(["--volumes"] if purge else [])])
        say("docker compose is down")
        if purge:
            shutil.rmtree(home, ignore_errors=True)
        return
    local.down(home, purge=purge, say=say)


def _backend_of(home: Path) -> str:
    """Who runs the stack. A damaged file is for `local.down` to judge: it can clear up without one."""
    try:
        return read_state(home).backend
    except StackError:
        return ""


def logs(name: str, home: Path | None = None, *, lines: int) -> str:
    """The end of a part's log; KeyError for an unknown part, empty when it was never started."""
    home = home_of(home)
    state = read_state(home)
    if name not in VARIABLES:
        raise KeyError(name)
    if name not in state.parts:
        return ""
    if state.backend == "docker":
        return _compose(home, ["logs", "--no-color", "--tail", str(lines), name])
    return tail(local.log_of(home, name), lines)


def status(home: Path | None = None) -> list[PartStatus]:
    """State of each part of the local stack."""
    home = home_of(home)
    if read_state(home).backend != "docker":
        return local.status(home)
    state = read_state(home)
    running = _compose(home, ["ps", "--services", "--status", "running"]).split()
    return [
        PartStatus(
            name=name,
            state="running" if name in running else "crashed",
            pid=None,
            address=f"127.0.0.1:{part.port}",
            log=f"docker compose logs {name}",
            log_tail="" if name in running else _compose(home, ["logs", "--tail", "20", name]),
        )
        for name, part in state.parts.items()
    ]


def _compose_up(home: Path, say: Say) -> None:
    with locked(home):
        state = read_state(home)
        state.backend = "docker"
        for name in _PORT_VARIABLES:
            state.parts.setdefault(name, Part(free_port()))
        write_state(home, state)
        say("docker compose up (kafka, registry, postgres)")
        _compose(home, ["up", "--detach", "--wait", *_PORT_VARIABLES])


def _compose(home: Path, arguments: list[str]) -> str:
    state = read_state(home)
    ports = {variable: str(state.parts[name].port) for name, variable in _PORT_VARIABLES.items() if name in state.parts}
    project = f"kintsugi-{sha256(str(home).encode()).hexdigest()[:8]}"
    done = subprocess.run(
        ["docker", "compose", "--project-name", project, "--file", str(_COMPOSE_FILE), *arguments],
        capture_output=True,
        text=True,
        timeout=_COMPOSE_TIMEOUT_S,
        check=False,
        env={**os.environ, **ports},
    )
    if done.returncode != 0:
        raise StackError(f"docker compose {arguments[0]} failed:\n{done.stderr[-2000:]}")
    return done.stdout
