"""Which workflows a proof is about: all, a part of them by bucket, or some by id."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256

from .digest import BUCKETS, bucket_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Workflows in the buckets from `first` up to `end`; of these only `ids`, where they are given."""

    first: int = 0
    end: int = BUCKETS
    ids: frozenset[str] | None = None

    def wants(self, workflow_id: str) -> bool:
        """Whether the proof is about this workflow."""
        if self.ids is not None and workflow_id not in self.ids:
            return False
        return self.end - self.first == BUCKETS or self.first <= bucket_of(workflow_id) < self.end

    def halves(self) -> tuple[Choice, Choice] | None:
        """The same workflows in two parts; None when a part is one bucket already."""
        middle = (self.first + self.end) // 2
        if middle == self.first:
            return None
        return replace(self, end=middle), replace(self, first=middle)


ALL = Choice()


def rank(seed: int, workflow_id: str) -> bytes:
    """Place of a workflow in the order of which a sample is the beginning. As `reader.sample` orders them."""
    return sha256(f"{seed}:{workflow_id}".encode()).digest()
