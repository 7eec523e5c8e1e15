"""docs/policy.md says of every key what the models say, and of every key whether this version uses it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, get_args

import pytest
import yaml

from engine.policy import Policy, default_policy, load_policy
from engine.policy.file import GLOB_CHARS_MAX, PolicyFile, Strategy
from engine.strategies import STRATEGIES

from .pages import ROOT, bare, blocks, rows, sections, text_of

PAGE = text_of(ROOT / "docs" / "policy.md")
SECTIONS = sections(PAGE)
ROOT_KEY = "workflow_error_handling"
#: Any error type's entry has the same keys; the page writes them once.
ENTRY = "recovery_strategies.*"
USES = {"yes", "recorded", "client", "later"}
RULE = "recovery_rules.*"
#: Of a rule's rung, the strategy for which a key means something; any other key means something for `retry_step`.
RUNG_USES = {
    "delay": "queue_for_later",
    "timeout_multiplier": "increase_timeout_and_retry",
    "max_timeout": "increase_timeout_and_retry",
    "scaling_factor": "scale_resources_and_retry",
    "to_step": "rollback",
}

STRATEGY_NAMES = list(get_args(Strategy))
YEAR_MS = 365 * 24 * 3_600_000


class Key:
    """A key of the file, as its JSON schema describes it."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema
        self.value = next((s for s in schema.get("anyOf", []) if s.get("type") != "null"), schema)

    @property
    def default(self) -> str:
        value = self.schema["default"]
        if value is None:
            return "none"
        if isinstance(value, list):
            return ", ".join(value) or "empty"
        if isinstance(value, dict):
            return "none" if not value else str(value)
        return (
            str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
        )

    @property
    def allowed(self) -> str:
        value = self.value
        if value["type"] == "boolean":
            return "true, false"
        if value["type"] == "object":
            amount = value["additionalProperties"]
            return f"{amount['minimum']:,} to {amount['maximum']:,} each"
        if value["type"] == "array":
            words = value["items"].get("enum")
            return f"list of {', '.join(words)}" if words else "list of texts"
        if "enum" in value:
            return "a strategy" if value["enum"] == STRATEGY_NAMES else ", ".join(value["enum"])
        if value["type"] == "string":
            if "pattern" in value:
                return "a name"
            return {None: "any text", GLOB_CHARS_MAX: "name or glob"}.get(value.get("maxLength"), "a step")
        if value.get("maximum") == YEAR_MS:
            return "1 to 365 days"
        low = value.get("minimum", value.get("exclusiveMinimum"))
        sign = "from" if "minimum" in value else "above"
        return f"{sign} {low:g}" + (f" to {int(value['maximum'])}" if "maximum" in value else "")

    def other_value(self) -> Any:
        """A valid value that is not the default."""
        value, default = self.value, self.schema["default"]
        if value["type"] == "boolean":
            return not default
        if value["type"] == "object":
            return {"other": value["additionalProperties"]["minimum"]}
        if value["type"] == "array":
            return [w for w in value["items"].get("enum", ["extra"]) if w not in default] or default[:-1]
        if "enum" in value:
            return next(w for w in value["enum"] if w != default)
        if value["type"] == "string":
            return "other"
        return (default or value.get("minimum", 1)) + 1


@cache
def keys() -> dict[str, Key]:
    """Every key of the file, by its path below the root key."""
    schema = PolicyFile.model_json_schema()
    found: dict[str, Key] = {}

    def walk(part: dict[str, Any], path: str) -> None:
        if "$ref" in part.get("items", ()):
            walk(part["items"], f"{path}.*")
            return
        reference = next((s["$ref"] for s in (part, *part.get("anyOf", ())) if "$ref" in s), None)
        if reference is None:
            found[path.removeprefix(f"{ROOT_KEY}.")] = Key(part)
            return
        for name, inner in schema["$defs"][reference.rsplit("/", 1)[1]]["properties"].items():
            walk(inner, ENTRY + "." + name if path.startswith(f"{ROOT_KEY}.recovery_strategies.") else f"{path}.{name}")

    walk(schema["properties"][ROOT_KEY], ROOT_KEY)
    return found


@cache
def documented() -> dict[str, list[str]]:
    """Rows of the key tables: [default, allowed, used], by path. A section is headed by the key it describes."""
    found: dict[str, list[str]] = {}
    for section in {path.split(".")[0] for path in keys()}:
        for name, _, default, allowed, used, _meaning in rows(SECTIONS[section]):
            path = f"{section}.{bare(name)}"
            assert path not in found, f"{path} is described twice"
            found[path] = [bare(default), bare(allowed), bare(used)]
    return found


def test_every_key_is_described_and_no_other() -> None:
    assert len(keys()) >= 90
    assert set(documented()) == set(keys())


@pytest.mark.parametrize("path", keys())
def test_default_and_allowed_values_are_those_of_the_models(path: str) -> None:
    default, allowed, _ = documented()[path]
    key = keys()[path]
    required = "required" if "default" not in key.schema else key.default
    assert (default, allowed) == (required, key.allowed)


def test_every_error_type_is_described() -> None:
    types = PolicyFile.model_json_schema()["$defs"]["RecoveryStrategies"]["properties"]
    described = [bare(row[0]) for row in rows(SECTIONS["Error types"])]
    assert described == list(types)


@pytest.mark.parametrize("path", [p for p in keys() if "default" in keys()[p].schema])
def test_a_key_is_said_to_be_used_when_it_changes_what_the_engine_is_given(path: str) -> None:
    used = documented()[path][2]
    assert used in USES
    key = keys()[path]
    changes = given(file_with(path, key.schema["default"])) != given(file_with(path, key.other_value()))
    assert changes == (used not in ("client", "later"))


def test_every_strategy_is_described_and_said_to_be_used_when_it_is_there() -> None:
    described = {bare(row[0]): bare(row[1]) for row in rows(SECTIONS["Strategies"])}
    assert {name: name in STRATEGIES for name in STRATEGY_NAMES} == {n: used == "yes" for n, used in described.items()}


def test_the_ladders_of_the_file_that_ships_are_those_shown() -> None:
    shown = [tuple(bare(cell) for cell in row) for row in rows(SECTIONS["The file that ships, as ladders"])]
    meant = [
        (
            ladder.error_type,
            str(number + 1),
            rung.strategy,
            str(rung.attempts_max),
            "available" if rung.strategy in STRATEGIES else "passed over",
        )
        for ladder in default_policy().ladders.values()
        for number, rung in enumerate(ladder.rungs)
    ]
    assert [row[:5] for row in shown] == meant


@pytest.mark.parametrize("number", range(len([b for b in blocks(PAGE) if b.language == "yaml"])))
def test_every_example_loads(number: int) -> None:
    example = [b for b in blocks(PAGE) if b.language == "yaml"][number].body
    policy = load_policy(example, f"example {number + 1}")
    assert not policy.warnings, "an example shows what works"


def file_with(path: str, value: Any) -> str:
    """A policy file in which every key of an entry matters, with one key set; None leaves it out."""
    if path.startswith(RULE):
        return rule_with(path.removeprefix(f"{RULE}."), value)
    entry: dict[str, Any] = {"strategy": "queue_for_later", "backoff_strategy": "exponential"}
    content: dict[str, Any] = {"recovery_strategies": {"timeout": entry}}
    *parents, name = path.replace(ENTRY, "recovery_strategies.timeout").split(".")
    at = content
    for parent in parents:
        at = at.setdefault(parent, {})
    if value is not None:
        at[name] = value
    return yaml.safe_dump({ROOT_KEY: content})


def rule_with(path: str, value: Any) -> str:
    """A policy file with one rule, one key of which is set."""
    names = path.split(".")
    rung: dict[str, Any] = {"strategy": RUNG_USES.get(names[-1], "retry_step")}
    rule: dict[str, Any] = {"name": "rule", "match": {}, "ladder": [rung]}
    at = rung if names[0] == "ladder" else rule
    for parent in [n for n in names[:-1] if n not in ("ladder", "*")]:
        at = at.setdefault(parent, {})
    if names[-1] == "error_type" and value is not None:
        value = "timeout"
    if names[-1] == "to_step":
        value = value or "build"
    if value is not None:
        at[names[-1]] = value
    return yaml.safe_dump({ROOT_KEY: {"recovery_rules": [rule]}})


def given(text: str) -> Policy:
    """What the engine is given, without the digest of the file."""
    return replace(load_policy(text, "test"), version="")
