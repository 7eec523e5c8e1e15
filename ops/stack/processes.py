"""Child processes that outlive the command that started them, and are known again by pid and start time."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from .state import Part

#: A start time read back differs from the one written by rounding alone.
_START_TOLERANCE_S = 0.05
_POLL_S = 0.05
#: Below those that Linux gives to outgoing connections (32768 and up): a server takes seconds to start, and one that
#: was killed comes back to its port.
_PORTS = range(15_000, 32_000)
_PORT_TRIES_MAX = 100


def free_port() -> int:
    """A TCP port nobody listens on, and that no connection is given by chance while no server listens on it yet."""
    for _ in range(_PORT_TRIES_MAX):
        port = secrets.choice(_PORTS)
        if port_is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Whether the port can be bound on loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def running(part: Part) -> psutil.Process | None:
    """The part's process; None when it has ended, also when its pid now belongs to another."""
    if part.pid is None:
        return None
    try:
        process = psutil.Process(part.pid)
        same = abs(process.create_time() - part.started_at) < _START_TOLERANCE_S
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def start(part: Part, command: Sequence[str], *, log: Path, env: Mapping[str, str], user: int | None) -> None:
    """Start in a session of its own, output appended to `log`."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
            cwd=log.parent,
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=[] if user is not None else None,
        )
    part.pid = child.pid
    part.started_at = psutil.Process(child.pid).create_time()
    child.returncode = 0  # it is meant to outlive us; silences the warning about a child still running


def stop(part: Part, *, timeout_s: float, sign: signal.Signals = signal.SIGTERM) -> None:
    """Ask the process to end, then end it; returns when neither it nor its children run."""
    process = running(part)
    if process is not None:
        family = [process, *_children(process)]
        with contextlib.suppress(psutil.Error):
            process.send_signal(sign)
        alive = _wait(family, timeout_s)
        for straggler in alive:
            with contextlib.suppress(psutil.Error):
                straggler.kill()
        _wait(alive, timeout_s)
    part.pid = None


def stop_strays(matches: Callable[[psutil.Process], bool], *, timeout_s: float) -> int:
    """End processes of ours that no state file knows, as a killed `up` can leave them. Returns how many."""
    strays = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and matches(process):
                strays.append(process)
    for stray in strays:
        with contextlib.suppress(psutil.Error):
            stray.terminate()
    for straggler in _wait(strays, timeout_s):
        with contextlib.suppress(psutil.Error):
            straggler.kill()
    return len(strays)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def _wait(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    deadline = time.monotonic() + timeout_s
    while True:
        alive = [p for p in processes if _alive(p)]
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(_POLL_S)


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def tail(log: Path, lines: int) -> str:
    """Last lines of a log file; at most 64 KiB are read."""
    if not log.exists():
        return ""
    with log.open("rb") as handle:
        handle.seek(max(0, log.stat().st_size - 64 * 1024))
        return "\n".join(handle.read().decode("utf-8", "replace").splitlines()[-lines:])
