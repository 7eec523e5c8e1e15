"""A service's checkpoint call -> acknowledged, by size of its state."""

from __future__ import annotations

import os
import random
import time
from itertools import accumulate

from kintsugi_client import Client, StepContext, WorkflowType

from schemas.canonical import canonical_bytes, compress, digest_of
from schemas.keys import KeyRing
from schemas.records.events import CheckpointCreated
from schemas.registry import Registry
from schemas.sealing import SECRET_BYTES

from .errors import build
from .figures import Benchmark, Figure, Latencies, Setup
from .processes import timed_writes
from .workload import document

#: State sizes, and how many checkpoints of each.
SIZES_KB = {1: 500, 100: 400, 1000: 100}
_QUICK_SHARE = 0.1
#: First calls pay for connections and for the broker's compilation.
_WARM = 30
_GOAL_KB, _GOAL_P99_MS = 100, 10.0


def _measure(setup: Setup) -> list[Figure]:
    figures = []
    key_file = setup.folder / "keys.json"
    key_file.touch(mode=0o600)
    key_file.write_bytes(KeyRing("bench", {"bench": os.urandom(SECRET_BYTES)}).dump())
    for sealed in (False, True):
        keys = key_file.as_uri() if sealed else ""
        client = Client.connect(
            "bench",
            kafka=setup.stack.kafka,
            registry=setup.stack.registry,
            objects=(setup.folder / "objects").as_uri(),
            keys=keys,
        )
        try:
            kind = client.workflow_type(f"bench-checkpoint{'-sealed' if sealed else ''}", checkpoint_types=())
            for size_kb, count in SIZES_KB.items():
                count = max(10, int(count * _QUICK_SHARE)) if setup.quick else count
                figures += _measure_size(setup, kind, size_kb, count, sealed=sealed)
        finally:
            client.close()
    return figures


def _measure_size(setup: Setup, kind: WorkflowType, size_kb: int, count: int, *, sealed: bool) -> list[Figure]:
    name = f"checkpoint {size_kb} KB{', sealed' if sealed else ''}"
    setup.say(f"{count} times {name}")
    workflow = kind.begin(data_of(size_kb * 1000, random.Random(size_kb)))
    with workflow.step("build") as step:
        _calls(step, min(_WARM, count))
        calls = _calls(step, count)
        state = {**step.state, "workflow_id": workflow.workflow_id}
    workflow.complete()
    goal = _GOAL_P99_MS if size_kb == _GOAL_KB else None
    return [*calls.figures(name, p99_ms_max=goal), *([] if sealed else _parts(setup, state, size_kb, count))]


def data_of(size_bytes: int, draw: random.Random) -> dict[str, object]:
    """Data whose canonical form has about this size."""
    data = document(2 * size_bytes, draw)
    sizes = accumulate(len(canonical_bytes(entry)) + 1 for entry in data["files"])
    return {**data, "files": [entry for entry, size in zip(data["files"], sizes, strict=True) if size <= size_bytes]}


def _calls(step: StepContext, count: int) -> Latencies:
    """Change the state a little and save it, one call after the other, as a step does."""
    taken = Latencies()
    for number in range(count):
        step.state["counters"]["tokens"] = number
        began_s = time.perf_counter()
        step.checkpoint()
        taken.samples_s.append(time.perf_counter() - began_s)
    return taken


def _parts(setup: Setup, state: dict[str, object], size_kb: int, count: int) -> list[Figure]:
    """What the call consists of: making the bytes, and the broker's answer for a record of that size."""
    made = Latencies()
    for _ in range(count):
        began_s = time.perf_counter()
        data = canonical_bytes(state)
        digest = digest_of(data)
        codec, stored = compress(data, codec="gzip", min_size_bytes=1024)
        made.samples_s.append(time.perf_counter() - began_s)
    record = build(
        CheckpointCreated,
        str(state["workflow_id"]),
        checkpoint_id=str(state["workflow_id"]),
        step_id="build",
        checkpoint_type="manual",
        sequence=1,
        state_version="1",
        codec=codec,
        size_bytes=len(data),
        digest=digest,
        chain_digest=digest,
        status="running",
        state=stored,
        evidence=True,  # a copy without meaning: never restored from, and its workflow has ended
    )
    with Registry(setup.stack.registry) as registry:
        answered = Latencies(timed_writes(setup.stack.kafka, registry, record, count))
    return [
        Figure(
            name=f"checkpoint {size_kb} KB: canonical, digest, gzip p50",
            measured=made.ms(0.5),
            unit="ms",
            note=f"{len(data):,} -> {len(stored):,} bytes",
        ),
        Figure(name=f"checkpoint {size_kb} KB: broker alone p99", measured=answered.ms(0.99), unit="ms"),
    ]


BENCHMARK = Benchmark(
    name="checkpoint",
    measures="kintsugi_client's checkpoint() until the broker has confirmed it, one call after the other",
    compared_to="making the stored bytes alone, and the bare write of a record of that size, in the same run",
    run=_measure,
)
