"""A replay's document as text: JSON, YAML, one HTML page that needs nothing beside itself, or lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .diff import diff, path_text
from .output import printable

FORMATS = ("json", "yaml", "html")
#: Characters of a value in a line.
_VALUE_CHARS_MAX = 200


def written(document: dict[str, Any], form: str) -> bytes:
    """The document in a form."""
    if form == "html":
        from .replay_html import html

        return html(document).encode()
    if form == "yaml":
        import yaml

        dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        text: str = yaml.dump(document, Dumper=dumper, sort_keys=False, allow_unicode=True, explicit_start=True)
        return text.encode()
    return _json(document, newline=True)


def step_lines(step: dict[str, Any]) -> Iterator[str]:
    """A step for a terminal: the event, what changed, what follows."""
    yield printable(f"{step['place']}  {step['at']}  {step['event']}  workflow {step['record'].get('workflow_id')}")
    for name in ("engine", "state"):
        for change in diff(step[name]["before"], step[name]["after"]):
            line = f"  {name} {path_text(change.path)}: {_short(change.before)} -> {_short(change.after)}"
            yield printable(line)
    for found in step["effects"]:
        said = ", ".join(f"{k} {v}" for k, v in found.items() if k not in ("does", "record", "event_id"))
        yield printable(f"  would {found['does']} {found['record']} {said}")


def difference_rows(differences: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Differences for a terminal: a row for each field; one where a side is missing altogether."""
    for found in differences:
        start = {name: found[name] for name in ("verdict", "place", "record", "workflow_id")}
        fields = found["fields"] or {None: {"recorded": None, "now": None}}
        for name, sides in fields.items():
            yield {**start, "field": name, **{side: _short(value) for side, value in sides.items()}}


def _json(value: Any, *, newline: bool = False) -> bytes:
    import orjson

    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | (orjson.OPT_APPEND_NEWLINE if newline else 0))


def _short(value: Any) -> str:
    text = _json(value).decode().replace("\n", " ")
    return text if len(text) <= _VALUE_CHARS_MAX else f"{text[:_VALUE_CHARS_MAX]}..."
