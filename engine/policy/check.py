"""What a policy file says that cannot be meant, though each value by itself is allowed.

`problems` are refused; `remarks` are warnings: the policy works, and not as it reads.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..classify import ERROR_TYPES
from ..recent import RECENT_MAX
from .build import match_of
from .file import Recovery, RecoveryRule, RuleRung, WorkflowErrorHandling
from .matching import Match, Pattern
from .model import TRIGGERS

_HUMAN = "manual_intervention"
_NEED_STEP = ("resume_from_step",)
#: Keys of a rule's rung that mean something for these strategies alone.
_USED_BY = {
    "delay": ("queue_for_later",),
    "timeout_multiplier": ("increase_timeout_and_retry",),
    "max_timeout": ("increase_timeout_and_retry",),
    "scaling_factor": ("scale_resources_and_retry",),
    "to_step": ("rollback", "resume_from_step"),
}


def _loop_problems(parsed: WorkflowErrorHandling) -> Iterator[str]:
    loop = parsed.error_detection.infinite_loop
    steps = loop.max_repeats * loop.detection_window
    if steps > RECENT_MAX:
        yield (
            f"error_detection.infinite_loop: max_repeats x detection_window may be at most {RECENT_MAX}, the steps "
            f"that the engine remembers of a workflow (got {loop.max_repeats} x {loop.detection_window} = {steps})"
        )


def problems(parsed: WorkflowErrorHandling) -> Iterator[str]:
    """Each with its path, its value and what is allowed."""
    yield from _loop_problems(parsed)
    for name, entry in _entries(parsed):
        if entry.to_step is None:
            for key in ("strategy", "fallback_strategy"):
                if getattr(entry, key) in _NEED_STEP:
                    yield f"recovery_strategies.{name}.to_step: missing; {getattr(entry, key)} needs the step to go to"
    matches: list[Match] = []
    for number, rule in enumerate(parsed.recovery_rules):
        path = f"recovery_rules.{number}"
        yield from _name_problems(path, rule, parsed.recovery_rules[:number])
        match = match_of(rule)
        yield from _match_problems(path, match)
        for earlier, other in enumerate(matches):
            if _covers(other, match):
                name = parsed.recovery_rules[earlier].name
                yield (
                    f"{path}: {rule.name!r} is never reached: recovery_rules.{earlier} ({name!r}) matches all that "
                    f"it matches ({match}); move it up, or let the earlier one match less"
                )
                break
        matches.append(match)
        if not rule.ladder:
            yield f"{path}.ladder: no rung; to ask a human at once, name {_HUMAN} (got [])"
        for place, rung in enumerate(rule.ladder):
            yield from _rung_problems(f"{path}.ladder.{place}", rung, rule, parsed)
        for place, rung in enumerate(rule.ladder[:-1]):
            if rung.strategy == _HUMAN:
                yield (
                    f"{path}.ladder.{place}: manual_intervention comes last: nothing can follow it "
                    f"(got {rule.ladder[place + 1].strategy!r} after it)"
                )


def remarks(parsed: WorkflowErrorHandling) -> Iterator[str]:
    """What works, and not as it reads."""
    matches = [match_of(rule) for rule in parsed.recovery_rules]
    for name, entry in _entries(parsed):
        path = f"recovery_strategies.{name}"
        if "queue_for_later" in (entry.strategy, entry.fallback_strategy) and _below(entry.max_time, entry.queue_delay):
            yield f"{path}.max_time: {entry.max_time} ms pass before one queue_delay ({entry.queue_delay} ms) is over"
        whole = Match(error_type=Pattern(name))
        for number, match in enumerate(matches):
            if _covers(match, whole):
                yield f"{path}: never used: recovery_rules.{number} matches every error of this type"
                break
    for number, rule in enumerate(parsed.recovery_rules):
        yield from _spent_early(f"recovery_rules.{number}", rule, parsed)
    yield from _asks_all_the_same(parsed)


def _asks_all_the_same(parsed: WorkflowErrorHandling) -> Iterator[str]:
    """Ladders that name a human: what the triggers leave out does not hold for them."""
    people = parsed.manual_intervention
    left_out = [trigger for trigger in TRIGGERS if trigger not in people.triggers]
    if not people.enabled or not left_out:
        return
    why = f"a human is asked, though manual_intervention.triggers leaves out {', '.join(left_out)}"
    for name, entry in _entries(parsed):
        for key in ("strategy", "fallback_strategy"):
            if getattr(entry, key) == _HUMAN:
                yield f"recovery_strategies.{name}.{key}: {why}"
                break
    for number, rule in enumerate(parsed.recovery_rules):
        if rule.ladder and rule.ladder[-1].strategy == _HUMAN:
            yield f"recovery_rules.{number}.ladder.{len(rule.ladder) - 1}: {why}"


def _entries(parsed: WorkflowErrorHandling) -> Iterator[tuple[str, Recovery]]:
    for name in ERROR_TYPES:
        entry = getattr(parsed.recovery_strategies, name)
        if entry is not None:
            yield name, entry


def _name_problems(path: str, rule: RecoveryRule, earlier: tuple[RecoveryRule, ...]) -> Iterator[str]:
    if rule.name in ERROR_TYPES:
        yield f"{path}.name: a rule may not have the name of an error type (got {rule.name!r})"
    for number, other in enumerate(earlier):
        if other.name == rule.name:
            yield f"{path}.name: given twice, first at recovery_rules.{number} (got {rule.name!r})"
            return


def _match_problems(path: str, match: Match) -> Iterator[str]:
    if match.error_type is not None and not _types(match):
        allowed = ", ".join(ERROR_TYPES)
        yield f"{path}.match.error_type: no error type is like this; allowed: {allowed} (got {match.error_type.text!r})"


def _types(match: Match) -> frozenset[str]:
    return frozenset(t for t in ERROR_TYPES if match.error_type is None or match.error_type.fits(t))


def _covers(one: Match, other: Match) -> bool:
    """As `Match.covers`, knowing which error types there are."""
    types = _types(other)
    if not types or not types <= _types(one):
        return False
    return all(
        mine is None or (theirs is not None and mine.covers(theirs))
        for (name, mine), (_, theirs) in zip(one.parts(), other.parts(), strict=True)
        if name != "error_type"
    )


def _rung_problems(path: str, rung: RuleRung, rule: RecoveryRule, parsed: WorkflowErrorHandling) -> Iterator[str]:
    if rung.strategy in _NEED_STEP and rung.to_step is None:
        yield f"{path}.to_step: missing; {rung.strategy} needs the step to go to"
    for key, users in _USED_BY.items():
        if key in rung.model_fields_set and rung.strategy not in users and getattr(rung, key) is not None:
            yield (
                f"{path}.{key}: means nothing for {rung.strategy}, only for {', '.join(users)} "
                f"(got {getattr(rung, key)!r})"
            )
    budgets = (
        (f"{path}.max_time", rung.max_time),
        (path.rsplit(".ladder.", 1)[0] + ".max_time", rule.max_time),
        ("budgets.workflow_max_time", parsed.budgets.workflow_max_time),
    )
    if rung.strategy == "queue_for_later":
        for name, budget_ms in budgets:
            if _below(budget_ms, rung.delay):
                yield f"{name}: shorter than the delay of {rung.delay} ms of {path} (got {budget_ms})"
    costs = (
        (path.rsplit(".ladder.", 1)[0] + ".max_cost", rule.max_cost),
        ("budgets.workflow_max_cost", parsed.budgets.workflow_max_cost),
    )
    for name, budget in costs:
        if budget is not None and rung.strategy != _HUMAN and rung.cost > budget:
            yield f"{path}.cost: one attempt costs more than {name}, {budget:g} (got {rung.cost:g})"


def _below(budget_ms: int | None, delay_ms: int) -> bool:
    return budget_ms is not None and budget_ms < delay_ms


def _spent_early(path: str, rule: RecoveryRule, parsed: WorkflowErrorHandling) -> Iterator[str]:
    """Rungs that are reached only when one before them is passed over, for a budget is spent by then."""
    attempts, cost = 0, 0.0
    attempts_max = parsed.budgets.workflow_max_attempts
    budgets = [b for b in (rule.max_cost, parsed.budgets.workflow_max_cost) if b is not None]
    cost_max = min(budgets) if budgets else None
    for place, rung in enumerate(rule.ladder):
        if rung.strategy == _HUMAN:
            return
        if attempts >= attempts_max or (cost_max is not None and cost >= cost_max):
            budget = "budgets.workflow_max_attempts" if attempts >= attempts_max else "the cost budget"
            yield f"{path}.ladder.{place}: the rungs before it can use up {budget}"
            return
        attempts += rung.attempts
        cost += rung.attempts * rung.cost
