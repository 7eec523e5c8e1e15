"""The demo's processes: started in a session of their own, so that Ctrl-C reaches only the demo, which stops them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from schemas.errors import FatalError

_CHECKOUT = Path(__file__).resolve().parents[2]
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.1
_TAIL_BYTES = 3_000


class Child:
    """One process and its log."""

    def __init__(self, name: str, module: str, arguments: list[str], *, environment: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self.expected = True
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=_CHECKOUT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def has_partitions(self) -> bool:
        """Whether a role's log tells that Kafka has given it its partitions."""
        return b'"partitions assigned"' in self.log.read_bytes()

    def kill(self) -> None:
        """SIGKILL: it gets no chance to tidy up."""
        self.expected = False
        self._process.kill()
        self._process.wait()

    def terminate(self) -> None:
        """SIGTERM: from now on it is expected to end."""
        self.expected = False
        if self.running:
            self._process.terminate()

    def wait(self, timeout_s: float) -> None:
        """Until it has ended; beyond the time it is killed."""
        try:
            self._process.wait(max(0.0, timeout_s))
        except subprocess.TimeoutExpired:
            self.kill()

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace")


class Children:
    """All of them. However the block is left, none is left running."""

    def __init__(self, environment: dict[str, str], logs: Path) -> None:
        self._environment = environment
        self._logs = logs
        self._children: list[Child] = []

    def __enter__(self) -> Children:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop(self._children)

    def start(self, name: str, module: str, *arguments: str) -> Child:
        """Start a process; its log is named after it."""
        log = self._logs / f"{name.replace(' ', '-')}.log"
        child = Child(name, module, list(arguments), environment=self._environment, log=log)
        self._children.append(child)
        return child

    def stop(self, children: list[Child]) -> None:
        """SIGTERM to all, then wait; what does not end within the time is killed."""
        for child in children:
            child.terminate()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for child in children:
            child.wait(deadline - time.monotonic())

    def check(self) -> None:
        """FatalError with the end of its log when one has ended that should run."""
        for child in self._children:
            if child.expected and not child.running:
                raise FatalError(f"{child.name} ended by itself; its log {child.log} ends with:\n{child.tail()}")

    def wait_until(self, what: str, true: Callable[[], bool], timeout_s: float) -> None:
        """Wait for a condition; FatalError when it does not come true in time, or a process ends meanwhile."""
        deadline = time.monotonic() + timeout_s
        while not true():
            self.check()
            if time.monotonic() > deadline:
                raise FatalError(f"not within {timeout_s:.0f} s: {what}")
            time.sleep(_POLL_S)
