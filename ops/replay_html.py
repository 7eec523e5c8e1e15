"""A replay's document as one HTML page that needs nothing beside itself.

Whatever a service wrote is text in it: everything is escaped, control characters and those that turn the direction of
text are shown as U+FFFD, and the page's own policy allows no script, no request and no style but the one it carries.
The same document gives the same page.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from .diff import diff, path_text
from .output import printable
from .replay_compare import WRONG

#: Characters that turn the direction of text around: what is shown would read as something else.
_TURNING = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
#: Changes of one state shown in a step; the whole states stand below.
_CHANGES_MAX = 200
_DECISION = ("place", "at", "workflow_id", "attempt", "error_type", "step_id", "strategy", "command", "policy_version")
_WHY = ("rule", "evidence", "alternatives")
#: Parts with a section of their own; all others that are lists become tables as they are.
_OWN = frozenset(
    {"replay", "decisions", "differences", "command_differences", "commands", "commands_compared", "steps"}
)


def html(document: dict[str, Any]) -> str:
    """The page."""
    page, style = (_file(name) for name in ("replay.html", "replay.css"))
    allowed = f"sha256-{b64encode(sha256(style.encode()).digest()).decode()}"
    policy = f"default-src 'none'; style-src '{allowed}'; base-uri 'none'; form-action 'none'"
    return Template(page).substitute(policy=escape(policy), style=style, body="\n".join(_body(document)))


def _body(document: dict[str, Any]) -> Iterator[str]:
    yield from _asked(document["replay"])
    yield _heading("Outcome")
    facts = {k: v for k, v in document.items() if k not in _OWN and not isinstance(v, list)}
    yield from _pairs(facts)
    yield _heading("Decisions")
    yield from _decisions(document.get("decisions", ()))
    yield from _differing("Differences from what was recorded", document.get("differences", ()))
    if document.get("commands") or document.get("commands_compared"):
        yield _heading("Commands")
        sent, compared = (document.get(name, {}) for name in ("commands", "commands_compared"))
        yield from _pairs({"would be sent": sent, "held against those sent": compared})
    yield from _differing("Commands that differ", document.get("command_differences", ()))
    for name, value in document.items():
        if isinstance(value, list) and value and name not in _OWN:
            yield _heading(name.replace("_", " ").capitalize())
            yield from _table(value)
    if document.get("steps"):
        yield _heading("Step by step")
        for step in document["steps"]:
            yield from _step(step)


def _asked(plan: Mapping[str, Any]) -> Iterator[str]:
    yield _heading("Ranges")
    if plan.get("ranges"):
        yield from _table(
            [
                {"partition": r["partition"], "state from": r["first"], "from": r["start"], "up to": r["end"]}
                for r in plan["ranges"]
            ]
        )
    yield from _pairs({k: v for k, v in plan.items() if k != "ranges" and v not in (None, [], (), "")})


def _decisions(decisions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not decisions:
        yield "<p>No repair was decided in this range.</p>"
        return
    names = [name for name in _DECISION if any(name in d for d in decisions)]
    yield "<table>" + _head([*names, "verdict", "why", "recorded otherwise"])
    for decision in decisions:
        why = {name: decision[name] for name in _WHY if decision.get(name) is not None}
        cells = [_cell(decision.get(name)) for name in (*names, "verdict")]
        cells += [_folded("evidence", why) if why else "", _cell(decision.get("recorded"))]
        yield _row(cells, _kind(decision.get("verdict")))
    yield "</table>"


def _differing(title: str, differences: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not differences:
        return
    yield _heading(title)
    yield "<table>" + _head(["verdict", "place", "record", "workflow id", "field", "recorded", "now"])
    for found in differences:
        start = [_cell(found.get(name)) for name in ("verdict", "place", "record", "workflow_id")]
        fields = found.get("fields") or {"": {"recorded": None, "now": None}}
        for name, sides in fields.items():
            cells = [*start, _cell(name), _cell(sides["recorded"]), _cell(sides["now"])]
            yield _row(cells, _kind(found.get("verdict")))
    yield "</table>"


def _step(step: Mapping[str, Any]) -> Iterator[str]:
    title = _text(f"{step['place']} {step['event']} {step['at']}")
    yield f"<details><summary>{title}</summary>{_folded('the event', step['record'])}"
    for name, called in (("engine", "engine's state"), ("state", "service's state")):
        before, after = step[name]["before"], step[name]["after"]
        changes = list(diff(before, after))
        if changes:
            yield f"<table>{_head([called, 'before', 'after'])}"
            for change in changes[:_CHANGES_MAX]:
                sides = f'<td class="before">{_cell(change.before)}</td><td class="after">{_cell(change.after)}</td>'
                yield f"<tr><td>{_text(path_text(change.path))}</td>{sides}</tr>"
            yield "</table>"
            if len(changes) > _CHANGES_MAX:
                yield f"<p>and {len(changes) - _CHANGES_MAX} more</p>"
        for side, value in (("before", before), ("after", after)):
            if value is not None:
                yield _folded(f"{called} {side}", value)
    if step["effects"]:
        yield from _table(step["effects"])
    yield "</details>"


def _pairs(values: Mapping[str, Any]) -> Iterator[str]:
    yield "<table>"
    for name, value in values.items():
        yield f"<tr><th>{_text(name.replace('_', ' '))}</th><td>{_cell(value)}</td></tr>"
    yield "</table>"


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    yield "<table>" + _head(names)
    for row in rows:
        yield _row([_cell(row.get(name)) for name in names], _kind(row.get("verdict")))
    yield "</table>"


def _head(names: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<th>{_text(name.replace('_', ' '))}</th>" for name in names) + "</tr>"


def _row(cells: Sequence[str], kind: str) -> str:
    return f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _kind(verdict: Any) -> str:
    if verdict is None:
        return ""
    return f' class="{"same" if verdict == "same" else "wrong" if verdict in WRONG else "other"}"'


def _cell(value: Any) -> str:
    if isinstance(value, dict | list | tuple):
        return f"<pre>{_json(value)}</pre>" if value else ""
    return "" if value is None else _text(str(value))


def _folded(title: str, value: Any) -> str:
    return f"<details><summary>{_text(title)}</summary><pre>{_json(value)}</pre></details>"


def _heading(title: str) -> str:
    return f"<h2>{_text(title)}</h2>"


def _json(value: Any) -> str:
    import orjson

    return _text(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def _text(text: str) -> str:
    return escape(_TURNING.sub("\ufffd", printable(text)))


def _file(name: str) -> str:
    return (files("ops") / name).read_text(encoding="utf-8").strip()
