"""A replay's document as text: JSON, YAML, one HTML page that needs nothing beside itself, or lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from .diff import diff, path_text
from .output import printable

FORMATS = ("json", "yaml", "html")
#: Characters of a value in a line.
_VALUE_CHARS_MAX = 200
#: No script, no request: the page shows what services wrote.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = (
    "body{font:14px/1.4 system-ui,sans-serif;margin:2em;max-width:100em}table{border-collapse:collapse;margin:1em 0}"
    "td,th{border:1px solid #bbb;padding:.2em .5em;text-align:left;vertical-align:top;overflow-wrap:anywhere}"
    "pre{background:#f4f4f4;padding:.5em;white-space:pre-wrap;overflow-wrap:anywhere}.differs{background:#fde8d0}"
)


def written(document: dict[str, Any], form: str) -> bytes:
    """The document in a form."""
    if form == "html":
        return html(document).encode()
    if form == "yaml":
        import yaml

        dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        text: str = yaml.dump(document, Dumper=dumper, sort_keys=False, allow_unicode=True, explicit_start=True)
        return text.encode()
    return _json(document, newline=True)


def html(document: dict[str, Any]) -> str:
    """One page. Whatever a service wrote is text in it."""
    facts = {k: v for k, v in document.items() if not isinstance(v, list) and k != "replay"}
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">',
        f"<title>Kintsugi replay</title><style>{_STYLE}</style></head><body><h1>Replay</h1>",
        f"<pre>{_escaped(document['replay'])}</pre>",
        f"<pre>{_escaped(facts)}</pre>",
    ]
    for name, value in document.items():
        if isinstance(value, list) and value and name != "steps":
            parts += [f"<h2>{escape(name.replace('_', ' '))}</h2>", *_table(value)]
    for step in document.get("steps", ()):
        title = escape(printable(f"{step['place']} {step['event']} {step['at']}"))
        parts.append(f"<details><summary>{title}</summary><pre>{_escaped(step)}</pre></details>")
    return "".join([*parts, "</body></html>\n"])


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


def _table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    names = list(rows[0])
    yield "<table><tr>" + "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names) + "</tr>"
    for row in rows:
        kind = ' class="differs"' if row.get("verdict") not in (None, "same") else ""
        cells = "".join(f"<td>{_cell(row.get(name))}</td>" for name in names)
        yield f"<tr{kind}>{cells}</tr>"
    yield "</table>"


def _cell(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"<pre>{_escaped(value)}</pre>" if value else ""
    return "" if value is None else escape(printable(str(value)))


def _escaped(value: Any) -> str:
    return escape(printable(_json(value).decode()))


def _json(value: Any, *, newline: bool = False) -> bytes:
    import orjson

    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | (orjson.OPT_APPEND_NEWLINE if newline else 0))


def _short(value: Any) -> str:
    text = _json(value).decode().replace("\n", " ")
    return text if len(text) <= _VALUE_CHARS_MAX else f"{text[:_VALUE_CHARS_MAX]}..."
