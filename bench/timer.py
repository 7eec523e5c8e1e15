"""Step deadline passed -> command received: what a timer costs beyond its own time."""

from __future__ import annotations

import uuid

from schemas.codec import Codec
from schemas.records.events import StepSpec, StepStarted, WorkflowCompleted, WorkflowStarted
from schemas.registry import Registry
from schemas.topics import COMMANDS

from .errors import build, commands_of
from .figures import Benchmark, Figure, Latencies, Setup
from .processes import LEAD_S, Publisher, Ready, Receiver, Role, ready, stand_at_end, write

STEPS_PER_S = 100
STEP_TIMEOUT_MS = 500
_SECONDS, _SECONDS_QUICK = 10.0, 2.0
_ANSWER_S = 20.0
#: Starts sent once more before the clock runs: a publisher's first records wait for its connections.
_FIRST = 50
_GOAL_P99_MS = 150.0


def _measure(setup: Setup) -> list[Figure]:
    at, seconds = setup.stack, _SECONDS_QUICK if setup.quick else _SECONDS
    count = int(STEPS_PER_S * seconds)
    group = f"bench-{uuid.uuid4()}"
    stand_at_end(at.kafka, group)
    role = Role(at, setup.folder, "recovery", group=group)
    try:
        role.wait("partitions", Role.caught_up)
        setup.say(f"{count:,} steps that never end, {STEPS_PER_S}/s, each with {STEP_TIMEOUT_MS} ms to live")
        with Registry(at.registry) as registry:
            overdue = _overdue(setup, Codec(registry), count, LEAD_S + seconds + _ANSWER_S)
    finally:
        role.end()
    return overdue.figures("deadline passed -> command", p99_ms_max=_GOAL_P99_MS)


def _overdue(setup: Setup, codec: Codec, count: int, timeout_s: float) -> Latencies:
    """From each step's deadline, which is its start by the broker's clock plus its time, to its command."""
    at = setup.stack
    ids = [str(uuid.uuid4()) for _ in range(count)]
    starts = [ready(codec, build(WorkflowStarted, i, workflow_version="1", steps=_STEPS)) for i in ids]
    write(at.kafka, starts)
    receiver = Receiver(at.kafka, COMMANDS, keys=[i.encode() for i in ids], timeout_s=timeout_s)
    publisher = Publisher(at.kafka, [_start(codec, i) for i in ids], per_second=STEPS_PER_S, first=starts[:_FIRST])
    published = publisher.result(timeout_s)
    answered = {command.workflow_id: item.wall_s for item, command in commands_of(codec, receiver.result())}
    write(at.kafka, [ready(codec, build(WorkflowCompleted, i)) for i in ids])
    if len(answered) < count:
        raise RuntimeError(f"{count - len(answered)} of {count} passed deadlines were not answered")
    deadlines = [(sent.timestamp_ms + STEP_TIMEOUT_MS) / 1000 for sent in published]
    return Latencies([answered[i] - deadline_s for i, deadline_s in zip(ids, deadlines, strict=True)])


_STEPS = (StepSpec(step_id="build"),)


def _start(codec: Codec, workflow_id: str) -> Ready:
    fields = {"step_id": "build", "step_run_id": str(uuid.uuid4()), "timeout_ms": STEP_TIMEOUT_MS}
    return ready(codec, build(StepStarted, workflow_id, **fields))


BENCHMARK = Benchmark(
    name="timer",
    measures="a step's deadline passed (its start by the broker's clock plus its timeout) -> command received",
    compared_to="the deadline itself: broker, role and receiver share this machine's clock",
    run=_measure,
)
