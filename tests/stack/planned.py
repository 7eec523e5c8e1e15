"""A service whose steps do what each workflow's plan says, in this process or as a child.

The plan is part of the input: per step, what its first run does, its second, and so on; after the last entry all is
well. Runs are counted in a file, so the plan goes on when another process takes the workflow over.

    ok          complete
    fail:CODE   raise an error with this code
    hang        wait until the run is replaced, or for the file `release`
    hold        wait for the file `release`, whatever happens to the run
    die         kill the process
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Message
from kintsugi_client import Client, StepContext, WorkflowType
from kintsugi_client.inbox import Received
from kintsugi_client.listener import Listener

STEPS = ("one", "two", "three")
HELD_S_MAX = 120.0


class PlannedError(Exception):
    """A failure with a code."""

    def __init__(self, code: str) -> None:
        super().__init__(f"planned: {code}")
        self.code = code


class Planned:
    """The workflow type, and the file in which each run of a step is noted."""

    def __init__(self, client: Client, name: str, folder: Path, **options: Any) -> None:
        self.client = client
        self.folder = folder
        self.kind: WorkflowType = client.workflow_type(name, **options)
        for step_id in STEPS:
            self.kind.step(step_id)(self._step)

    def _step(self, ctx: StepContext) -> None:
        number = note_run(self.folder, ctx)
        plan = ctx.state.get("plan", {}).get(ctx.step_id, [])
        what = plan[number] if number < len(plan) else "ok"
        if what.startswith("fail:"):
            raise PlannedError(what[5:])
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        end_s = time.monotonic() + HELD_S_MAX
        while what in ("hang", "hold") and time.monotonic() < end_s:
            if (self.folder / "release").exists():
                break
            if what == "hang":
                ctx.check()
            time.sleep(0.02)
        ctx.state.setdefault("done", []).append(ctx.step_id)


def note_run(folder: Path, ctx: StepContext) -> int:
    """Write down that a step runs; returns how often it ran before."""
    workflow_id = ctx.workflow.workflow_id
    before = len([r for r in runs(folder) if (r["workflow_id"], r["step_id"]) == (workflow_id, ctx.step_id)])
    line = {"workflow_id": workflow_id, "step_id": ctx.step_id, "command_id": ctx.run.command_id, "pid": os.getpid()}
    handle = os.open(folder / "runs", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
    try:
        os.write(handle, (json.dumps(line) + "\n").encode())
    finally:
        os.close(handle)
    return before


def runs(folder: Path) -> list[dict[str, Any]]:
    """Every run of a step so far, of all processes."""
    path = folder / "runs"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _die_after_commit() -> None:
    """Die as soon as a command's position is committed, before it is accepted."""
    committed = Listener._committed

    def commit_and_die(self: Listener, consumer: Consumer, messages: list[Message]) -> list[Received]:
        if committed(self, consumer, messages):
            os.kill(os.getpid(), signal.SIGKILL)
        return []

    Listener._committed = commit_and_die  # type: ignore[method-assign]


def main() -> None:
    """Serve until stdin says `close`: lines of JSON in, a line of JSON out for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("service")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--consumer", default="{}")
    parser.add_argument("--die-after-commit", action="store_true")
    given = parser.parse_args()
    if given.die_after_commit:
        _die_after_commit()
    client = Client.connect(given.service, consumer_config=json.loads(given.consumer))
    planned = Planned(client, given.service, given.folder)
    print(json.dumps({"ready": client.listen()}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        answer: Any = None
        if asked["do"] == "start":
            workflow = planned.kind.start(asked["data"], workflow_id=asked["workflow_id"])
            while workflow.known_partition() < 0:
                time.sleep(0.005)
        elif asked["do"] == "start and end":
            workflow = planned.kind.start(asked["data"], workflow_id=asked["workflow_id"])
            while workflow.status != "completed":
                time.sleep(0.001)
            return
        elif asked["do"] == "stats":
            answer = {**client.stats(), "partitions": sorted(client._listener._mine) if client._listener else []}
        elif asked["do"] == "held":
            answer = [w.workflow_id for w in client.workflows()]
        elif asked["do"] == "close":
            answer = bool(client.close())
        print(json.dumps({"answer": answer}), flush=True)
        if asked["do"] == "close":
            assert [t.name for t in threading.enumerate() if not t.daemon] == ["MainThread"]
            return


if __name__ == "__main__":
    main()
