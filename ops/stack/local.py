"""`up` and `down` of a stack made of child processes."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import processes, servers
from .state import Addresses, Part, StackError, StackState, addresses_of, home_of, locked, read, write

PARTS = ("postgres", "kafka", "registry")
START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.1
_TAIL_LINES = 20
#: Postgres: fast shutdown; it ends its clients instead of waiting for them.
_SIGNALS = {"postgres": signal.SIGINT}

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartStatus:
    """One line of `kintsugi status`; `log_tail` is set when the part is not well."""

    name: str
    state: str
    pid: int | None
    address: str
    log: str
    log_tail: str


def up(home: Path | None = None, say: Say = lambda _: None) -> Addresses:
    """Start what does not run, wait until each part answers. A second call changes nothing."""
    home = home_of(home)
    with locked(home):
        state = read(home)
        state.backend = "processes"
        _choose_ports(home, state)
        write(home, state)
        if not all(_answers(name, state) for name in PARTS):
            jars = servers.install(say)
            with ThreadPoolExecutor(2) as pool:
                # The registry keeps its schemas in Postgres, so it starts after it; Kafka meanwhile.
                kafka = pool.submit(_start, home, state, "kafka", jars, say)
                _start(home, state, "postgres", jars, say)
                _start(home, state, "registry", jars, say)
                kafka.result()
        write(home, state)
        return addresses_of(home, state)


def down(home: Path | None = None, *, purge: bool = False, say: Say = lambda _: None) -> None:
    """Stop every part; with `purge` delete its data too."""
    home = home_of(home)
    with locked(home):
        try:
            state = read(home)
        except StackError:
            if not purge:
                raise
            state = StackState()  # its servers are found without it
        for name in reversed(PARTS):
            if name in state.parts:
                if processes.running(state.parts[name]) is not None:
                    say(f"stopping {name}")
                processes.stop(state.parts[name], timeout_s=_STOP_TIMEOUT_S, sign=_SIGNALS.get(name, signal.SIGTERM))
            _stop_strays(home, name)
        if state.parts:
            write(home, state)
    if purge:
        shutil.rmtree(servers.postgres_folder(home), ignore_errors=True)
        shutil.rmtree(home, ignore_errors=True)


def status(home: Path | None = None) -> list[PartStatus]:
    """How each part is: running, not answering, crashed (it was started and is gone), stopped."""
    home = home_of(home)
    state = read(home)
    lines = []
    for name in PARTS:
        part = state.parts.get(name)
        if part is None:
            lines.append(PartStatus(name=name, state="stopped", pid=None, address="", log="", log_tail=""))
            continue
        alive = processes.running(part) is not None
        word = "stopped" if part.pid is None else "crashed"
        if alive:
            word = "running" if _answers(name, state) else "not answering"
        log = log_of(home, name)
        lines.append(
            PartStatus(
                name=name,
                state=word,
                pid=part.pid if alive else None,
                address=f"127.0.0.1:{part.port}",
                log=str(log),
                log_tail="" if word in ("running", "stopped") else processes.tail(log, _TAIL_LINES),
            )
        )
    return lines


def kill_part(name: str, home: Path | None = None, *, sign: signal.Signals = signal.SIGKILL) -> None:
    """Signal one part as a fault would; the state file goes on naming its pid."""
    part = read(home_of(home)).parts[name]
    process = processes.running(part)
    if process is not None:
        process.send_signal(sign)
        if sign == signal.SIGKILL:
            process.wait(_STOP_TIMEOUT_S)


def log_of(home: Path, name: str) -> Path:
    """Where a part's output goes."""
    return home / "logs" / f"{name}.log"


def _stop_strays(home: Path, name: str) -> None:
    processes.stop_strays(
        lambda process: servers.is_ours(home, name, process.cmdline(), process.cwd()), timeout_s=_STOP_TIMEOUT_S
    )


def _choose_ports(home: Path, state: StackState) -> None:
    for name in PARTS:
        part = state.parts.get(name)
        if part is not None and processes.running(part) is not None:
            continue
        _stop_strays(home, name)
        if part is not None and all(map(processes.port_is_free, (part.port, *part.extra.values()))):
            continue
        extra = {"kafka": ("controller",), "registry": ("management",)}.get(name, ())
        state.parts[name] = Part(processes.free_port(), extra={e: processes.free_port() for e in extra})


def _answers(name: str, state: StackState) -> bool:
    part = state.parts[name]
    ask = {"kafka": servers.kafka_answers, "registry": servers.registry_answers, "postgres": servers.postgres_answers}
    return processes.running(part) is not None and ask[name](part)


def _start(home: Path, state: StackState, name: str, jars: Path, say: Say) -> None:
    part = state.parts[name]
    began = time.monotonic()
    log = log_of(home, name)
    log.parent.mkdir(exist_ok=True)
    if processes.running(part) is None:
        user: int | None = None
        env: dict[str, str] = {}
        if name == "kafka":
            command = servers.kafka_command(home, jars, part)
        elif name == "postgres":
            command, user = servers.postgres_command(home, part), servers.postgres_user()
        else:
            command, env = servers.registry_command(jars), servers.registry_environment(part, state.parts["postgres"])
        processes.start(part, command, log=log, env=env, user=user)
        write(home, state)
    while not _answers(name, state):
        waited_s = time.monotonic() - began
        if processes.running(part) is None or waited_s > START_TIMEOUT_S:
            what = "ended" if processes.running(part) is None else f"did not answer within {START_TIMEOUT_S:.0f} s"
            raise StackError(f"{name} {what}; its log ends with:\n{processes.tail(log, _TAIL_LINES)}")
        time.sleep(_POLL_S)
    say(f"{name} answers on 127.0.0.1:{part.port} after {time.monotonic() - began:.1f} s")
