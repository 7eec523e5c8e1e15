"""What is different between two policies: keys by their path, and the ladders that follow from them.

Pure. Defaults count as said, so that a file that spells one out differs in nothing. Rules are compared by name: a rule
that moved is a change of their order, not of every rule behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.classify import ERROR_TYPES, STATE_CORRUPTION
from engine.policy import Ladder, Policy, Rung, load_policy, parse_policy
from engine.policy.model import fitting

from .diff import diff

_ORDER = "(order)"


@dataclass(frozen=True, slots=True)
class Side:
    """A policy to compare: where it comes from, its text and what it means."""

    source: str
    text: str
    policy: Policy

    @classmethod
    def of(cls, text: str, source: str) -> Side:
        """ConfigError when the text is no policy."""
        return cls(source, text, load_policy(text, source))

    def content(self) -> dict[str, Any]:
        """The file with all defaults, rules by name."""
        content: dict[str, Any] = parse_policy(self.text, self.source).model_dump(mode="json")
        rules = content["recovery_rules"]
        content["recovery_rules"] = {rule.pop("name"): rule for rule in rules}
        return dict(_whole(content))


def _whole(value: Any) -> Any:
    """Lists of names become tuples, which are compared as one."""
    if isinstance(value, dict):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return list(map(_whole, value)) if any(isinstance(inner, dict) for inner in value) else tuple(value)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChange:
    """A key whose value is another; None where the key is not there."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderChange:
    """An error type or a rule whose ladder is another; None where there is no such rule."""

    ladder: str
    before: tuple[str, ...] | None
    after: tuple[str, ...] | None


def changed_keys(before: Side, after: Side) -> list[KeyChange]:
    """Keys in the order of the file."""
    changes = [
        KeyChange(key=".".join(str(step) for step in change.path), before=change.before, after=change.after)
        for change in diff(before.content(), after.content())
    ]
    old, new = ([rule.name for rule in side.policy.rules] for side in (before, after))
    both = set(old) & set(new)
    orders = [", ".join(name for name in names if name in both) for names in (old, new)]
    if orders[0] != orders[1]:
        changes.append(KeyChange(key=f"recovery_rules.{_ORDER}", before=orders[0], after=orders[1]))
    return changes


def changed_ladders(before: Side, after: Side) -> list[LadderChange]:
    """Error types by the ladder they end up with, also where that is the one of unknown errors; then rules."""
    old, new = _ladders(before.policy), _ladders(after.policy)
    return [
        LadderChange(ladder=name, before=old.get(name), after=new.get(name))
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def _ladders(policy: Policy) -> dict[str, tuple[str, ...]]:
    found = {error_type: _described(policy, policy.ladder(error_type)) for error_type in ERROR_TYPES}
    return found | {f"rule {rule.name}": _described(policy, rule.ladder) for rule in policy.rules}


def ending(policy: Policy, ladder: Ladder) -> str:
    """What comes after a ladder, in words."""
    critical = ladder.error_type == STATE_CORRUPTION
    exhausted, spent = (policy.asked_by(ladder, fitting(spent=s, critical=critical)) for s in (False, True))
    if exhausted and spent:
        return "then a human"
    if exhausted:
        return "then a human; given up when a budget is spent"
    return "then given up; a human when a budget is spent" if spent else "then given up"


def _described(policy: Policy, ladder: Ladder) -> tuple[str, ...]:
    """A ladder's rungs, what comes after them, and its budgets, in words."""
    limits = [f"at most {ladder.time_ms_max} ms"]
    if ladder.cost_max is not None:
        limits.append(f"at most {ladder.cost_max:g} in cost")
    return (*map(_rung, ladder.rungs), ending(policy, ladder), *limits)


def _rung(rung: Rung) -> str:
    parts = [f"{rung.attempts_max} x {rung.strategy}"]
    if rung.backoff is not None:
        parts.append(f"backoff {rung.backoff.base_ms}..{rung.backoff.max_ms} ms")
    if rung.strategy == "queue_for_later":
        parts.append(f"delay {rung.delay_ms} ms")
    if rung.strategy == "increase_timeout_and_retry":
        longest = "" if rung.timeout_ms_max is None else f" to {rung.timeout_ms_max} ms"
        parts.append(f"timeout x {rung.timeout_multiplier:g}{longest}")
    if rung.strategy == "scale_resources_and_retry":
        parts.append(f"size x {rung.scaling_factor:g}")
    if rung.to_step is not None:
        parts.append(f"to {rung.to_step}")
    if rung.cost != 1.0:
        parts.append(f"cost {rung.cost:g}")
    return ", ".join(parts)
