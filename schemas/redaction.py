"""Hides fields of states and contexts by their path, wherever they are shown: tables, logs, exports.

A path names keys from the root, joined by dots: `data.customer.email`. `*` is any one key, `[*]` any item of a list,
`[3]` one item, `**` any number of keys and items, also none: `**.password`. A key with dots or brackets in it is
written in quotes: `data."card.number"`. What a path leads to is replaced whole.

Total: no value makes `apply` raise. Bounded: the paths, and for each node of a value one look at each of their places.
Fails closed: what lies deeper than it looks is replaced if a path could still lead into it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

#: What stands in place of a hidden value.
REDACTED = "[redacted]"
PATHS_MAX = 100
PATH_CHARS_MAX = 500
#: Steps of one path, `**` included: states nest no deeper than 64.
STEPS_MAX = 64
#: States nest no deeper; a context of an error might.
DEPTH_MAX = 128
#: Steps remembered: places of the paths and what leads on from them. A few dozen, for paths that people write.
_REMEMBERED_MAX = 10_000
#: Stand for every key and item that no path names.
_OTHER_KEY, _OTHER_ITEM = "", -1

_KEY, _ANY_KEY, _ITEM, _ANY_ITEM, _ANY_DEPTH = range(5)
_STEP = re.compile(r'\*\*|\*|"[^"]+"|[^.\[\]"*]+')
_BRACKET = re.compile(r"\[(\*|\d{1,9})\]")


#: Where the paths stand: numbers of paths and of their next steps.
_Places = frozenset[tuple[int, int]]


class _Step(NamedTuple):
    kind: int
    name: str | int = ""


class Redaction:
    """Compiled paths. False when there are none, so that a caller can save itself the work."""

    def __init__(self, paths: Sequence[str] = ()) -> None:
        """ValueError says which path is none, and why."""
        if len(paths) > PATHS_MAX:
            raise ValueError(f"{len(paths)} paths, {PATHS_MAX} allowed")
        self.paths = tuple(paths)
        self._steps = tuple(_parsed(path) for path in self.paths)
        self._start = self._closed({(number, 0) for number in range(len(self._steps))})
        #: Keys and numbers that a path names; all others are alike, so what is remembered of them is bounded.
        self._named = {step.name for steps in self._steps for step in steps if step.kind in (_KEY, _ITEM)}
        self._next: dict[tuple[_Places, str | int], _Places] = {}

    def __bool__(self) -> bool:
        return bool(self.paths)

    def apply(self, value: Any) -> tuple[Any, bool]:
        """The value with what the paths lead to replaced, and whether anything was. The value itself is not changed."""
        if not self.paths:
            return value, False
        shown = self._shown(value, self._start, 0)
        return shown, shown is not value

    def _shown(self, value: Any, places: _Places, depth: int) -> Any:
        if self._reached(places):
            return REDACTED
        if not places or not isinstance(value, dict | list):
            return value
        if depth >= DEPTH_MAX:
            return REDACTED
        members = value.items() if isinstance(value, dict) else enumerate(value)
        changed = {}
        for name, item in members:
            shown = self._shown(item, self._after(places, name), depth + 1)
            if shown is not item:
                changed[name] = shown
        if not changed:
            return value
        if isinstance(value, dict):
            return {**value, **changed}
        return [changed.get(index, item) for index, item in enumerate(value)]

    def _reached(self, places: _Places) -> bool:
        return any(at == len(self._steps[path]) for path, at in places)

    def _after(self, places: _Places, name: str | int) -> _Places:
        """Where the paths stand one key (text) or item (number) further."""
        if name not in self._named:
            name = _OTHER_KEY if isinstance(name, str) else _OTHER_ITEM
        known = self._next.get((places, name))
        if known is None:
            if len(self._next) >= _REMEMBERED_MAX:
                self._next.clear()
            known = self._next[places, name] = self._found_after(places, name)
        return known

    def _found_after(self, places: _Places, name: str | int) -> _Places:
        found = set()
        for path, at in places:
            step = self._steps[path][at]
            if step.kind == _ANY_DEPTH:
                found.add((path, at))
            elif _fits(step, name):
                found.add((path, at + 1))
        return self._closed(found)

    def _closed(self, places: set[tuple[int, int]]) -> _Places:
        """With what is reached by taking `**` for nothing."""
        waiting = list(places)
        while waiting:
            path, at = waiting.pop()
            steps = self._steps[path]
            if at < len(steps) and steps[at].kind == _ANY_DEPTH and (path, at + 1) not in places:
                places.add((path, at + 1))
                waiting.append((path, at + 1))
        return frozenset(places)


#: Hides nothing.
NOTHING = Redaction()


def check_path(path: str) -> str:
    """The path itself. ValueError when it is none."""
    _parsed(path)
    return path


def _fits(step: _Step, name: str | int) -> bool:
    if isinstance(name, int):
        return step.kind == _ANY_ITEM or step == (_ITEM, name)
    return step.kind == _ANY_KEY or step == (_KEY, name)


def _parsed(path: str) -> tuple[_Step, ...]:
    if len(path) > PATH_CHARS_MAX:
        raise ValueError(f"a path of {len(path)} characters, {PATH_CHARS_MAX} allowed")
    steps: list[_Step] = []
    at = 0
    while at < len(path):
        bracket = _BRACKET.match(path, at)
        if bracket is not None:
            number = bracket.group(1)
            steps.append(_Step(_ANY_ITEM) if number == "*" else _Step(_ITEM, int(number)))
            at = bracket.end()
            continue
        if steps:
            if path[at] != ".":
                raise ValueError(f"{path!r}: a dot or a bracket is expected at character {at + 1}")
            at += 1
        step = _STEP.match(path, at)
        if step is None:
            raise ValueError(f"{path!r}: a key, * or ** is expected at character {at + 1}")
        steps.append(_named(step.group()))
        at = step.end()
    if not steps or all(step.kind == _ANY_DEPTH for step in steps):
        raise ValueError(f"{path!r} names no field")
    if len(steps) > STEPS_MAX:
        raise ValueError(f"{path!r:.80}: {len(steps)} steps, {STEPS_MAX} allowed")
    return tuple(steps)


def _named(text: str) -> _Step:
    if text == "**":
        return _Step(_ANY_DEPTH)
    if text == "*":
        return _Step(_ANY_KEY)
    return _Step(_KEY, text.strip('"'))
