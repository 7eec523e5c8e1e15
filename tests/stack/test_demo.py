"""`make demo` with few workflows, on a stack that it starts by itself: exit code, report, and nothing left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from examples.demo.report import VERSION
from ops import stack
from ops.stack import home_of
from ops.stack.state import VARIABLES
from tests.stack.kit import wait_for

CHECKOUT = Path(__file__).parents[2]
#: A block of the fault plan and a bit: every kind of fault is there.
WORKFLOWS = 24
TIMEOUT_S = 200
#: The demo folds the whole log with one policy, so it gets a log that no other test writes to.
GIVEN = (*VARIABLES.values(), "KINTSUGI_OBJECTS")

pytestmark = pytest.mark.timeout(2 * TIMEOUT_S)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of a stack that does not exist yet."""
    folder = tmp_path_factory.mktemp("demo")
    given = {k: v for k, v in os.environ.items() if k not in GIVEN}
    yield {**given, "KINTSUGI_HOME": str(folder)}
    stack.down(home_of(folder), purge=True)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "examples.demo", *arguments]


def run(home: dict[str, str], *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        command("--json", *arguments),
        cwd=CHECKOUT,
        env=home,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    report = json.loads(done.stdout)
    assert isinstance(report, dict)
    return report


def running(home: dict[str, str]) -> list[str]:
    """Roles and services that still run against this stack."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            mine = process.environ().get("KINTSUGI_HOME") == home["KINTSUGI_HOME"]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if mine and ("ops.cli run" in line or "examples.development" in line):
            found.append(line)
    return found


@pytest.fixture(scope="module")
def report(home: dict[str, str]) -> dict[str, Any]:
    """The report of a run on a fresh stack."""
    return run(home, "--workflows", str(WORKFLOWS), "--seed", "5")


def test_every_fault_is_repaired_and_reported(home: dict[str, str], report: dict[str, Any]) -> None:
    assert report["version"] == VERSION
    assert report["ok"]
    assert all(check["ok"] for check in report["checks"])
    beyond_repair = sum(f["workflows"] for f in report["faults"] if f["fault"] == "permanent")
    assert report["workflows"] == {"completed": WORKFLOWS - beyond_repair, "waiting_for_human": beyond_repair}
    assert len(report["waiting"]) == beyond_repair > 0
    assert all(w["error_code"] in ("BUILD_FAILED", "TEST_FAILED") and w["reason"] for w in report["waiting"])
    types = {error["error_type"] for error in report["errors"]}
    assert types == {"resource_exhaustion", "state_corruption", "timeout", "unknown_error"}
    strategies = {attempt["strategy"]: attempt for attempt in report["attempts"]}
    for repair in ("retry_step", "queue_for_later", "increase_timeout_and_retry"):
        assert strategies[repair]["succeeded"] > 0
    recovered = next(t for t in report["times"] if t["what"] == "error to recovered")
    assert 0 < recovered["p50_ms"] <= recovered["p99_ms"] <= recovered["max_ms"]
    assert running(home) == []


def test_a_second_run_on_the_same_stack_reports_only_itself(home: dict[str, str], report: dict[str, Any]) -> None:
    second = run(home, "--workflows", "6", "--seed", "2")
    assert second["run"] != report["run"]
    assert sum(second["workflows"].values()) == 6
    assert sum(line["workflows"] for line in second["faults"]) == 6


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_no_process_but_the_stack(
    home: dict[str, str], sign: signal.Signals, tmp_path: Path
) -> None:
    talk = tmp_path / "stderr"
    with talk.open("wb") as out:
        demo = subprocess.Popen(
            command(),
            cwd=CHECKOUT,
            env=home,
            stdout=subprocess.DEVNULL,
            stderr=out,
            # Whoever runs the tests in the background of a shell has SIGINT ignored, and so would the demo.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        wait_for("services are at work", lambda: "workflows have ended" in talk.read_text(), TIMEOUT_S)
        assert len(running(home)) == 6  # two recovery processes, a coordinator, a projector, two services
        demo.send_signal(sign)
        assert demo.wait(60) == 130
    finally:
        demo.kill()
        demo.wait(10)
    assert running(home) == []
    assert {part.state for part in stack.status(home_of(Path(home["KINTSUGI_HOME"])))} == {"running"}
