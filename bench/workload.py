"""A realistic log to measure with: development workflows side by side, one in ten with an error that is repaired.

The engine itself writes what it writes, so decisions, acknowledgements and finished attempts are in the log in the
numbers and the order in which they would be.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from engine.events import Delivered
from engine.policy import default_policy
from engine.testing import Service, World
from schemas.canonical import canonical_bytes, compress, digest_of
from schemas.records.events import ResourceUsageReported, StepProgressed, StepSpec, WorkflowCompleted

STEPS = (
    StepSpec(step_id="code_generation", critical=True),
    StepSpec(step_id="build", depends_on=("code_generation",), timeout_ms=600_000),
    StepSpec(step_id="test", depends_on=("build",), heartbeat_timeout_ms=60_000),
    StepSpec(step_id="deployment", depends_on=("test",)),
)
#: Workflows that run at the same time; each turn moves one of them by one event.
OPEN_AT_ONCE = 500
FAILING_SHARE = 0.1
#: State of one checkpoint before compression: a page of JSON.
STATE_SIZE_BYTES = 2_000
#: TIMEOUT is answered without backoff, the others are what services report most.
CODES = ("TIMEOUT", "TIMEOUT", "OUT_OF_MEMORY", "STATE_CORRUPTION")
_COMPRESS_FROM_BYTES = 1_024
_TURN_US = 1_000

_WORDS = (
    *("build", "module", "compile", "passed", "failed", "src", "main", "test", "unit", "integration", "deploy"),
    *("release", "branch", "commit", "author", "review", "coverage", "artifact", "cache", "layer", "image", "zone"),
    *("registry", "region", "replica", "config", "feature", "flag", "owner", "team", "ticket"),
)


def document(size_bytes: int, draw: random.Random) -> dict[str, Any]:
    """The data of a state: nested JSON of about this size, with text, numbers, lists and flags."""
    files: list[dict[str, Any]] = []
    size = 0
    while size < size_bytes:
        name = "/".join(draw.choices(_WORDS, k=3)) + f"_{draw.randrange(10_000)}.py"
        entry: dict[str, Any] = {
            "path": name,
            "digest": f"{draw.getrandbits(128):032x}",
            "lines": draw.randrange(2_000),
            "changed": draw.random() < 0.5,
            "notes": " ".join(draw.choices(_WORDS, k=6)),
        }
        files.append(entry)
        size += 130 + len(name) + len(entry["notes"])
    return {"files": files, "counters": {"attempts": draw.randrange(5), "tokens": draw.randrange(100_000)}}


def history(workflows: int, *, seed: int = 1) -> list[Delivered]:
    """The log of so many workflows from start to end; the same for the same seed."""
    draw = random.Random(seed)
    world = World(default_policy())
    left = workflows
    running: list[Iterator[None]] = []
    while left or running:
        while left and len(running) < OPEN_AT_ONCE:
            running.append(_life(Service(world, STEPS), draw))
            left -= 1
        number = draw.randrange(len(running))
        world.now_us += _TURN_US
        if next(running[number], running) is running:
            running[number] = running[-1]
            running.pop()
    return world.log


def _life(service: Service, draw: random.Random) -> Iterator[None]:
    failing = draw.choice(STEPS).step_id if draw.random() < FAILING_SHARE else ""
    data = document(STATE_SIZE_BYTES, draw)

    def saved(workflow_id: str, step_id: str) -> dict[str, object]:
        state = {"workflow_id": workflow_id, "step_id": step_id, "status": "running", "data": data}
        kept = canonical_bytes(state)
        codec, stored = compress(kept, codec="gzip", min_size_bytes=_COMPRESS_FROM_BYTES)
        return {"codec": codec, "size_bytes": len(kept), "digest": digest_of(kept), "state": stored}

    for spec in STEPS:
        step_id = spec.step_id
        service.start(step_id)
        yield
        service.checkpoint(step_id, saved)
        yield
        if step_id == failing:
            yield from _repaired(service, step_id, draw)
            continue
        service.emit(StepProgressed, step_id=step_id, step_run_id=service.runs[step_id], progress=0.5)
        yield
        if draw.random() < 0.25:
            service.emit(ResourceUsageReported, step_id=step_id, memory_mb=512.0, cpu_percent=40.0)
            yield
        service.checkpoint(step_id, saved)
        yield
        service.complete(step_id)
        yield
    service.emit(WorkflowCompleted)


def _repaired(service: Service, step_id: str, draw: random.Random) -> Iterator[None]:
    """An error, the command that answers it, and the run of the step that succeeds."""
    world = service.world
    known = len(world.commands)
    service.fail(step_id, draw.choice(CODES))
    yield
    command = next((c for c in world.commands[known:] if c.workflow_id == service.workflow_id), None)
    if command is not None:
        service.acknowledge(command)
        yield
    service.start(step_id, command)
    yield
    service.complete(step_id, command)
    yield
    if command is not None:
        service.acknowledge(command, "succeeded")
