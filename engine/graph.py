"""The step graph of a workflow, shared by all workflows that declare the same one."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from schemas.records.events import StepSpec

#: Distinct graphs kept for sharing; a graph beyond that is merely not shared.
GRAPHS_SHARED_MAX = 4096
#: Steps of one workflow, declared or first seen running.
STEPS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Graph:
    """Steps in declared order. `index` maps step_id to its number."""

    steps: tuple[StepSpec, ...]
    index: dict[str, int] = field(compare=False, hash=False)

    def spec(self, step_id: str) -> StepSpec | None:
        """The step's declaration; None when it is not part of the graph."""
        number = self.index.get(step_id)
        return None if number is None else self.steps[number]

    def with_step(self, step_id: str) -> Graph:
        """This graph with one more step, which the workflow ran without declaring it."""
        return graph_of((*self.steps, StepSpec(step_id=step_id)))

    def dependants(self, step_id: str) -> tuple[int, ...]:
        """Numbers of the steps that need this one, directly or through others, in declared order."""
        needed_by: dict[str, list[int]] = {}
        for number, spec in enumerate(self.steps):
            for dependency in spec.depends_on:
                needed_by.setdefault(dependency, []).append(number)
        found: set[int] = set()
        queue = [step_id]
        while queue:
            for number in needed_by.get(queue.pop(), ()):
                if number not in found:
                    found.add(number)
                    queue.append(self.steps[number].step_id)
        return tuple(sorted(found - {self.index.get(step_id, -1)}))


def leaves_effects(spec: StepSpec) -> bool:
    """Whether its completion has to be remembered: it can be undone, or must not happen twice."""
    return spec.compensation is not None or not spec.idempotent


@lru_cache(maxsize=GRAPHS_SHARED_MAX)
def graph_of(steps: tuple[StepSpec, ...]) -> Graph:
    """The shared graph of these steps; a step declared twice keeps its first declaration."""
    index: dict[str, int] = {}
    kept: list[StepSpec] = []
    for spec in steps:
        if spec.step_id not in index and len(kept) < STEPS_MAX:
            index[spec.step_id] = len(kept)
            kept.append(spec)
    return Graph(tuple(kept), index)


EMPTY = graph_of(())
