"""From the text of a policy file to a Policy, or to an error that names the path, the value and what is allowed."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import yaml
from pydantic import ValidationError

from schemas.errors import ConfigError

from .build import build
from .check import problems, remarks
from .file import PolicyFile, WorkflowErrorHandling
from .model import Policy

#: A policy file is a page of YAML; anything larger is not one.
TEXT_SIZE_BYTES_MAX = 1024 * 1024
_HINT = "see docs/policy.md for every key"
#: Problems shown; a file with more is wrong as a whole.
_PROBLEMS_SHOWN = 100


def load_policy(text: str, source: str) -> Policy:
    """Parse and validate. ConfigError lists every problem with its path, value and what is allowed."""
    parsed = parse_policy(text, source)
    return build(parsed, tuple(remarks(parsed)))


def parse_policy(text: str, source: str) -> WorkflowErrorHandling:
    """The file's content with every default, validated. ConfigError as `load_policy`."""
    if len(text) > TEXT_SIZE_BYTES_MAX:
        raise ConfigError(f"{source}: {len(text)} characters, {TEXT_SIZE_BYTES_MAX} allowed")
    try:
        raw = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{source}: not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: the top level must be a mapping with the key 'workflow_error_handling'")
    try:
        parsed = PolicyFile.model_validate(raw).workflow_error_handling
    except ValidationError as error:
        raise ConfigError(_describe(error, source), hint=_HINT) from None
    found = list(problems(parsed))
    if found:
        raise ConfigError(_listed(source, [f"workflow_error_handling.{p}" for p in found]), hint=_HINT)
    return parsed


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice and YAML's aliases, whose expansion has no bound."""

    def compose_node(self, parent: object, index: object) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed in a policy")
        return super().compose_node(parent, index)  # type: ignore[arg-type]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        keys = [k.value for k, _ in node.value]
        twice = {str(k) for k in keys if keys.count(k) > 1}
        if twice:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: key given twice: {', '.join(sorted(twice))}")
        return super().construct_mapping(node, deep)


@cache
def default_policy() -> Policy:
    """The story's configuration file, which ships with the engine."""
    return load_policy(default_text(), "default policy")


def default_text() -> str:
    """The text of the policy that ships."""
    return (files(__package__) / "default.yaml").read_text(encoding="utf-8")


def _describe(error: ValidationError, source: str) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        path = ".".join(str(p) for p in problem["loc"])
        value = problem["input"]
        shown = "" if problem["type"] in ("missing", "extra_forbidden") else f" (got {value!r:.80})"
        message = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"]
        lines.append(f"{path}: {message}{shown}")
    return _listed(source, lines)


def _listed(source: str, found: list[str]) -> str:
    more = [f"  and {len(found) - _PROBLEMS_SHOWN} more"] if len(found) > _PROBLEMS_SHOWN else []
    return "\n".join([f"{source}: {len(found)} problem(s)", *(f"  {f}" for f in found[:_PROBLEMS_SHOWN]), *more])
