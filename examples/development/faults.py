"""The fault plan: which workflow fails, where and how often. A function of seed and index, so a run can be repeated.

How often a fault has struck is kept in files: the plan must not begin anew when the process that hit it is killed and
another one takes its workflow over.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

STEPS = ("code_generation", "build", "test", "deployment")

CRASH = "crash"
FLAKY = "flaky"
HUNG = "hung"
OUT_OF_MEMORY = "out_of_memory"
RATE_LIMIT = "rate_limit"
CORRUPT_CHECKPOINT = "corrupt_checkpoint"
PERMANENT = "permanent"

#: Faults in each block of workflows. The rest of a block, 60 %, is healthy.
BLOCK_SIZE = 20
_BLOCK = (CRASH, CRASH, FLAKY, HUNG, OUT_OF_MEMORY, RATE_LIMIT, CORRUPT_CHECKPOINT, PERMANENT)
KINDS = tuple(dict.fromkeys(_BLOCK))
#: A flaky step fails so often before it succeeds; less often than the policy tries.
FLAKY_TIMES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong in one workflow. `times` is None when it never stops; out of memory it is until it has more."""

    kind: str
    step_id: str
    times: int | None = 1

    @property
    def recoverable(self) -> bool:
        """Whether the workflow can be completed without a human."""
        return self.times is not None


def fault_of(index: int, seed: int) -> Fault | None:
    """The fault of a workflow; None when it is healthy. Every block of 20 holds every kind, in an order of its own."""
    block, place = divmod(index, BLOCK_SIZE)
    draw = random.Random(f"{seed}|{block}")
    kinds: list[str | None] = [*_BLOCK, *[None] * (BLOCK_SIZE - len(_BLOCK))]
    draw.shuffle(kinds)
    kind = kinds[place]
    if kind is None:
        return None
    step_id = random.Random(f"{seed}|{index}|step").choice(_steps_of(kind))
    return Fault(kind=kind, step_id=step_id, times={PERMANENT: None, FLAKY: FLAKY_TIMES}.get(kind, 1))


def _steps_of(kind: str) -> tuple[str, ...]:
    if kind == PERMANENT:
        return ("build", "test")  # what code_generation writes wrong: it does not compile, or fails its test
    if kind == CORRUPT_CHECKPOINT:
        return STEPS[1:]  # before the first step there is nothing to restore
    if kind == OUT_OF_MEMORY:
        return ("build", "test")  # the steps that run tools
    return STEPS


class Strikes:
    """Counts in a folder how often the fault of a workflow has struck."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, workflow_id: str, fault: Fault) -> int | None:
        """Strike once more: the number of this strike, from 1; None when the fault has struck often enough.

        A workflow runs in one process at a time, so reading and then writing is enough.
        """
        path = self._folder / workflow_id
        before = path.stat().st_size if path.exists() else 0
        if fault.times is not None and before >= fault.times:
            return None
        handle = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
        try:
            os.write(handle, b".")
        finally:
            os.close(handle)
        return before + 1
