"""What a benchmark gives back: figures, some with a goal, and the arithmetic they are made with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from ops.stack import Addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured number. `at_most` or `at_least` is its goal; a figure without one is there to compare with."""

    name: str
    measured: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def goal(self) -> str:
        """The goal as people read it; empty when there is none."""
        if self.at_most is not None:
            return f"<= {self.at_most:g} {self.unit}"
        return f">= {self.at_least:g} {self.unit}" if self.at_least is not None else ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without a goal. A number that is none (NaN) reaches nothing."""
        if self.at_most is not None:
            return self.measured <= self.at_most
        return self.measured >= self.at_least if self.at_least is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a benchmark runs in. `folder` is empty and deleted afterwards; `addresses` is None without a stack."""

    quick: bool
    folder: Path
    say: Callable[[str], None]
    addresses: Addresses | None = None

    @property
    def stack(self) -> Addresses:
        """The stack's addresses, for a benchmark that asked for it."""
        assert self.addresses is not None
        return self.addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One benchmark: what it measures, what that is compared to, and how."""

    name: str
    measures: str
    compared_to: str
    run: Callable[[Setup], list[Figure]]
    needs_stack: bool = True


@dataclass(slots=True)
class Latencies:
    """Samples in seconds, and their percentiles in milliseconds."""

    samples_s: list[float] = field(default_factory=list)

    def ms(self, share: float) -> float:
        """The smallest sample that at least this share of the samples does not exceed, in milliseconds."""
        return percentile(self.samples_s, share) * 1000

    def figures(
        self, name: str, *, p50_ms_max: float | None = None, p99_ms_max: float | None = None, note: str = ""
    ) -> list[Figure]:
        """p50, p99 and the largest."""
        count = f"{len(self.samples_s)} samples"
        return [
            Figure(name=f"{name} p50", measured=self.ms(0.50), unit="ms", at_most=p50_ms_max, note=note),
            Figure(name=f"{name} p99", measured=self.ms(0.99), unit="ms", at_most=p99_ms_max, note=count),
            Figure(name=f"{name} max", measured=self.ms(1.0), unit="ms"),
        ]


def percentile(samples: Sequence[float], share: float) -> float:
    """By nearest rank, so that the answer is a sample; NaN of nothing."""
    if not 0 < share <= 1:
        raise ValueError(f"share {share} is outside 0..1")
    if not samples:
        return float("nan")
    return sorted(samples)[ceil(share * len(samples)) - 1]


def median(samples: Sequence[float]) -> float:
    """The lower median: a sample."""
    return percentile(samples, 0.5)


def document_of(benchmark: Benchmark, figures: Sequence[Figure], machine: dict[str, Any], *, quick: bool) -> Any:
    """The JSON that is stored."""
    return {
        "benchmark": benchmark.name,
        "measures": benchmark.measures,
        "compared_to": benchmark.compared_to,
        "quick": quick,
        "machine": machine,
        "figures": [
            {
                "figure": f.name,
                "measured": round(f.measured, 3),
                "unit": f.unit,
                "goal": f.goal or None,
                "met": f.met,
                "note": f.note or None,
            }
            for f in figures
        ],
    }
