"""Why the engine did what it did to a workflow: each decision with its policy, its rule, and what was passed over."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from itertools import takewhile
from typing import Any

import yaml

from consumers.history import History
from consumers.policies import Applied
from engine.policy import Policy, default_policy, default_text, load_policy
from schemas.archive_format import Gap
from schemas.codec import Codec
from schemas.errors import ConfigError
from schemas.records.events import ErrorClassified, RecoveryDecided, WorkflowErrorOccurred

from .restore import events_of

Row = dict[str, Any]
_ROOT = "workflow_error_handling"


class Rules:
    """Texts of policies by their version: those applied, the one that ships, and a file that somebody names."""

    def __init__(self, applied: Applied, more: str | None = None) -> None:
        self._texts = {entry.version: entry.text for entry in applied.entries}
        for text in (default_text(), more):
            if text is not None:
                self._texts.setdefault(_version(text), text)
        self._sources = {entry.version: f"applied by {entry.actor}: {entry.reason}" for entry in applied.entries}
        self._sources.setdefault(default_policy().version, "the policy that ships")

    def source(self, version: str) -> str | None:
        """Where a version comes from; None when it is not known here."""
        return self._sources.get(version) or ("the file given" if version in self._texts else None)

    def text(self, version: str, ladder: str) -> str | None:
        """What the policy says about a ladder, as YAML; None when the policy is not known, or says nothing of it."""
        content = self._content(version)
        for rule in content.get("recovery_rules") or ():
            if rule.get("name") == ladder:
                return _yaml([rule])
        entry = (content.get("recovery_strategies") or {}).get(ladder)
        return None if entry is None else _yaml({ladder: entry})

    def policy(self, version: str) -> Policy | None:
        """The policy of this version, where it is known and loads."""
        text = self._texts.get(version)
        return None if text is None else _loaded(text)

    def _content(self, version: str) -> Row:
        text = self._texts.get(version)
        return {} if text is None else _parsed(text)


@lru_cache(maxsize=64)
def _loaded(text: str) -> Policy | None:
    try:
        return load_policy(text, "policy")
    except ConfigError:
        return None


@lru_cache(maxsize=64)
def _parsed(text: str) -> Row:
    """Nothing of a text that does not load: it was applied by another version."""
    if _loaded(text) is None:
        return {}
    content: Row = yaml.safe_load(text)[_ROOT] or {}
    return content


def _version(text: str) -> str:
    return load_policy(text, "policy").version


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, sort_keys=False)).rstrip()


def explain(
    history: History, codec: Codec, workflow: Row, rules: Rules, *, on_gap: Callable[[Gap], None]
) -> Iterator[Row]:
    """A row per decision, in log order. `workflow` is its row in the tables. Raises as `History` does."""
    errors: dict[str, WorkflowErrorOccurred] = {}
    classified: dict[str, ErrorClassified] = {}
    for event in events_of(history, codec, str(workflow["id"]), workflow, on_gap):
        record = event.record
        if isinstance(record, WorkflowErrorOccurred):
            errors.setdefault(record.error_id, record)
        elif isinstance(record, ErrorClassified):
            classified.setdefault(record.error_id, record)
        elif isinstance(record, RecoveryDecided):
            place = {"at": datetime.fromtimestamp(event.timestamp_us / 1e6, UTC), "offset": event.offset}
            error, kind = errors.get(record.error_id), classified.get(record.error_id)
            row = {**place, **_decision(record, rules), **_error(record, error, kind)}
            yield {**row, "other_rules": _others(record, error, rules.policy(record.policy_version))}


def _decision(record: RecoveryDecided, rules: Rules) -> Row:
    ladder = record.ladder or record.error_type
    return {
        "attempt": record.attempt_number,
        "strategy": record.strategy,
        "stage": record.stage or None,
        "command": record.command_type,
        "wait_ms": record.execute_after_ms,
        "rule": record.rule,
        "ladder": ladder,
        "rung": record.rung + 1,
        "cost": record.cost,
        "policy_version": record.policy_version,
        "policy_source": rules.source(record.policy_version),
        "policy_text": rules.text(record.policy_version, ladder),
        "evidence": _json(record.evidence),
        "passed_over": _json(record.alternatives),
    }


def _others(record: RecoveryDecided, error: WorkflowErrorOccurred | None, policy: Policy | None) -> list[Row] | None:
    """The rules before the one that chose, and what of each did not fit; None where that cannot be said.

    It cannot when the error was joined by another one since: what the ladder was chosen by is not all in this one.
    """
    if policy is None or error is None:
        return None
    asked = record.error_type, record.workflow_type, record.step_id, error.error_code, error.error_message or ""
    ladder, _ = policy.ladder_for(*asked)
    if ladder.name != record.ladder:
        return None
    passed = takewhile(lambda rule: rule.name != ladder.name, policy.rules)
    return [{"rule": rule.name, "did_not_fit": rule.match.misses(*asked)} for rule in passed]


def _error(record: RecoveryDecided, error: WorkflowErrorOccurred | None, kind: ErrorClassified | None) -> Row:
    return {
        "error_id": record.error_id,
        "error_type": record.error_type,
        "error_code": None if error is None else error.error_code,
        "step": record.step_id or None,
        "classified_by": None if kind is None else kind.rule,
    }


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
