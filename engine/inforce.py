"""What is in force in a partition beyond its workflows: the policy, and which breakers are open.

Both change by facts in the partition itself, so folding it again gives the same decisions at the same places.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from schemas.errors import ConfigError
from schemas.records.events import (
    BreakerChanged,
    IncidentChanged,
    NotificationDelivered,
    PolicyChanged,
)

from .events import Delivered
from .policy import Policy, load_policy

#: Breakers remembered per partition; the coordinator opens no more at once.
BREAKERS_MAX = 4_096
#: Policies kept parsed: those of all partitions of a process, and of the replays beside them.
_LOADED_MAX = 64

#: Records of `workflow.events` that are not about the course of one workflow.
CONTROL = (PolicyChanged, BreakerChanged, IncidentChanged, NotificationDelivered)


class Breakers:
    """Which breakers are open. A breaker is known by its key: what failed. It never changes: `after` makes another."""

    __slots__ = ("_open", "_sequences")

    def __init__(self) -> None:
        self._open: set[str] = set()
        self._sequences: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._open)

    def is_open(self, key: str) -> bool:
        """Whether commands for what has this key are held."""
        return key in self._open

    def after(self, record: BreakerChanged) -> Breakers:
        """A breaker changed; an older change that arrives late counts no more."""
        if record.sequence <= self._sequences.get(record.breaker, -1):
            return self
        made = Breakers()
        made._open, made._sequences = self._open.copy(), self._sequences.copy()
        made._sequences.pop(record.breaker, None)
        made._sequences[record.breaker] = record.sequence
        if record.state == "closed":
            made._open.discard(record.breaker)
        else:
            made._open.add(record.breaker)
        while len(made._sequences) > BREAKERS_MAX:
            oldest = next(iter(made._sequences))
            del made._sequences[oldest]
            made._open.discard(oldest)
        return made

    def dump(self) -> list[tuple[str, int, bool]]:
        """As plain values, for a snapshot."""
        return [(key, sequence, key in self._open) for key, sequence in self._sequences.items()]

    @classmethod
    def load(cls, rows: list[tuple[str, int, bool]]) -> Breakers:
        """Inverse of `dump`."""
        made = cls()
        for key, sequence, is_open in rows:
            made._sequences[key] = sequence
            if is_open:
                made._open.add(key)
        return made


NO_BREAKERS = Breakers()


class InForce:
    """The policy and the breakers of one partition, at one place in its log."""

    __slots__ = ("breakers", "policy", "refused", "sequence", "text")

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        #: Offset of the policy's entry in `workflow.policies`; -1 for the one the process was started with.
        self.sequence = -1
        #: The applied policy's text, for a snapshot; empty for the one the process was started with.
        self.text = ""
        self.breakers = Breakers()
        #: Why the last policy that was not taken was not.
        self.refused = ""

    def take(self, event: Delivered) -> bool:
        """Fold a control record. False for any other, which is about a workflow."""
        record = event.record
        if not isinstance(record, CONTROL):
            return False
        if isinstance(record, PolicyChanged):
            self._change(record.policy_text, record.sequence, record.policy_version)
        elif isinstance(record, BreakerChanged):
            self.breakers = self.breakers.after(record)
        return True

    def restore(self, text: str, sequence: int) -> None:
        """Take up a policy that was applied before the place at which folding begins."""
        if text:
            self._change(text, sequence, "")

    def dump(self) -> dict[str, Any]:
        """As plain values, for a snapshot."""
        return {"text": self.text, "sequence": self.sequence, "breakers": self.breakers.dump()}

    def load(self, value: dict[str, Any]) -> None:
        """Take up what `dump` gave. ValueError, KeyError or TypeError for anything else."""
        breakers = Breakers.load([(str(key), int(sequence), bool(on)) for key, sequence, on in value["breakers"]])
        text, sequence = str(value["text"]), int(value["sequence"])
        self.breakers = breakers
        self.restore(text, sequence)

    def _change(self, text: str, sequence: int, version: str) -> None:
        if sequence <= self.sequence:
            return
        try:
            self.policy = _loaded(text)
        except ConfigError as error:  # it was checked when it was applied; another version may judge otherwise
            self.refused = f"{version}: {error}"[:1_000]
            return
        self.text, self.sequence, self.refused = text, sequence, ""


@lru_cache(maxsize=_LOADED_MAX)
def _loaded(text: str) -> Policy:
    return load_policy(text, "the applied policy")
