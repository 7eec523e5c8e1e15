"""Starts roles and commands by forking a process that has imported them, which is most of what a start takes.

Run as a program it takes requests of one line each from its input, and answers each with a line. As long as nothing
runs in it but this loop, what it forks is as good as new: imports start no thread and open no connection.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

WAIT_S = 120.0
_POLL_S = 0.02
#: What `kintsugi run` imports.
_IMPORTED = ("ops.cli", "ops.commands.run", "consumers.roles", "consumers.notifier.settings", "projections.store")


class Forked:
    """A process made by the starter; the part of `subprocess.Popen` that tests use."""

    def __init__(self, starter: Starter, pid: int) -> None:
        self._starter = starter
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            self.returncode = self._starter.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float = WAIT_S) -> int:
        """Its exit code; TimeoutExpired when it does not end in time."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(_POLL_S)
        return code

    def send_signal(self, sign: int) -> None:
        """Signal it, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, sign)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


@cache
def starter() -> Starter:
    """The one of this process of tests."""
    found = Starter()
    atexit.register(found.close)
    return found


class Starter:
    """The process that forks."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.stack.starter"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], out: Path, errors: Path | None = None
    ) -> Forked:
        """`kintsugi ARGUMENTS` in a process of its own; what it prints is appended to `out`, or a part to `errors`."""
        files = [str(out), str(errors or out)]
        out.touch()  # it may be read at once
        request = {"start": list(arguments), "environment": dict(environment), "files": files}
        return Forked(self, self.ask(request))

    def ask(self, request: dict[str, Any]) -> Any:
        """What the process answers."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


def command(
    environment: Mapping[str, str], *arguments: str, timeout_s: float = WAIT_S
) -> subprocess.CompletedProcess[str]:
    """`kintsugi ARGUMENTS` and what it printed, as `subprocess.run` gives it; a failure is the caller's to see."""
    with TemporaryDirectory() as folder:
        out, errors = Path(folder) / "out", Path(folder) / "errors"
        process = starter().start(arguments, environment, out, errors)
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
        return subprocess.CompletedProcess(
            ["kintsugi", *arguments], code, out.read_text(encoding="utf-8"), errors.read_text(encoding="utf-8")
        )


def _serve() -> None:
    for module in _IMPORTED:
        import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer: int | None = os.fork()
            if answer == 0:
                _become(request["start"], request["environment"], request["files"])
                return
        else:
            answer = _ended(request["poll"])
        print(json.dumps(answer), flush=True)


def _ended(pid: int) -> int | None:
    with contextlib.suppress(ChildProcessError):
        found, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if found else None
    return None


def _become(arguments: list[str], environment: dict[str, str], files: list[str]) -> None:
    """Be `kintsugi ARGUMENTS`, and nothing of what was before but its modules."""
    from ops.cli import main

    opened = [os.open(os.devnull, os.O_RDONLY), *(os.open(f, os.O_WRONLY | os.O_APPEND | os.O_CREAT) for f in files)]
    for number, file in enumerate(opened):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["kintsugi", *arguments]
    try:
        main()
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code if isinstance(ended.code, int) else int(ended.code is not None))  # modules need no end


if __name__ == "__main__":
    _serve()
