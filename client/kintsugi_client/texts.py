"""Text and JSON that every reader accepts: no lone surrogate, no U+0000, bounded. Nothing here raises.

Used for what explains (messages, stack traces, context), never for state: state is refused, not bent.
"""

from __future__ import annotations

import json
import re
from collections.abc import ItemsView, Iterable
from typing import Any

MESSAGE_MAX = 10_000
STACK_MAX = 100_000
CODE_MAX = 100
STEP_ID_MAX = 255
DETAIL_MAX = 1_000
#: Error context is for a human to read; a result may be larger. Both in characters.
CONTEXT_MAX = 100_000
RESULT_MAX = 1_000_000
#: Beyond these an explanation explains nothing, and costs the step its time.
_DEPTH_MAX = 32
_ITEMS_MAX = 10_000
_INTEGER_MAX = 2**53 - 1

_UNFIT = re.compile("[\x00\ud800-\udfff]")
_CUT = "\n[...]\n"


def clean(text: str, limit: int) -> str:
    """The text, without what Avro or Postgres refuse; a long one keeps its beginning and its end."""
    if len(text) > limit:
        half = (limit - len(_CUT)) // 2
        text = text[:half] + _CUT + text[-half:] if half > 0 else text[:limit]
    return _UNFIT.sub("\ufffd", text)


def describe(value: object, limit: int = MESSAGE_MAX) -> str:
    """`str(value)`, whatever the value's own method does."""
    try:
        text = str(value)
    except Exception as error:
        text = f"<{type(value).__name__}: str() failed with {type(error).__name__}>"
    return clean(text, limit)


def represent(value: object, limit: int = MESSAGE_MAX) -> str:
    """`repr(value)`, whatever the value's own method does."""
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__}: repr() failed with {type(error).__name__}>"
    return clean(text, limit)


def outline(value: object, limit: int) -> str:
    """`repr(value)` of data of any size, depth and shape, also one that holds itself: not much more is looked at than
    fits. Objects speak for themselves, so a call may take as long as theirs do."""
    parts: list[str] = []
    _outline(value, 0, _Budget(limit), parts)
    return clean("".join(parts), limit)


class _Budget:
    """What an outline may still look at. Its beginning and its end are shown, so twice the limit is written."""

    __slots__ = ("characters", "items")

    def __init__(self, limit: int) -> None:
        self.characters = 2 * limit
        self.items = _ITEMS_MAX

    @property
    def spent(self) -> bool:
        return self.characters <= 0 or self.items <= 0


def _outline(value: object, depth: int, left: _Budget, parts: list[str]) -> None:
    left.items -= 1
    kind = type(value)
    if left.spent or (depth >= _DEPTH_MAX and kind in (dict, list, tuple, set, frozenset)):
        _write(f"<{kind.__name__}>" if depth >= _DEPTH_MAX else "...", left, parts)
    elif isinstance(value, str) and kind is str:
        _write(repr(value if len(value) <= left.characters else clean(value, left.characters)), left, parts)
    elif kind is dict and isinstance(value, dict):
        _outline_items(value.items(), "{}", depth, left, parts)
    elif kind in (list, tuple, set, frozenset) and isinstance(value, list | tuple | set | frozenset):
        _outline_items(value, "[]" if kind is list else "()" if kind is tuple else "{}", depth, left, parts)
    elif isinstance(value, bytes | bytearray):
        _write(repr(value[: left.characters]), left, parts)
    else:
        _write(represent(value, max(left.characters, 1)), left, parts)


def _outline_items(values: Iterable[Any], marks: str, depth: int, left: _Budget, parts: list[str]) -> None:
    _write(marks[0], left, parts)
    pairs = isinstance(values, ItemsView)
    try:
        for number, item in enumerate(values):
            if number:
                _write(", ", left, parts)
            if left.spent:
                _write("...", left, parts)
                break
            if pairs:
                _outline(item[0], depth + 1, left, parts)
                _write(": ", left, parts)
            _outline(item[1] if pairs else item, depth + 1, left, parts)
    except RuntimeError:  # another thread changed it meanwhile
        _write("<changed meanwhile>", left, parts)
    _write(marks[1], left, parts)


def _write(text: str, left: _Budget, parts: list[str]) -> None:
    left.characters -= len(text)
    parts.append(text)


def json_text(value: Any, limit: int) -> str | None:
    """JSON for a text field. What is no JSON is written as its repr, what is too long as its beginning and end."""
    if value is None:
        return None
    text = json.dumps(_plain(value, 0, [_ITEMS_MAX]), ensure_ascii=False, allow_nan=False)
    if len(text) <= limit:
        return text
    # Quotes and backslashes double when the text becomes a string of its own.
    cut = {"$kintsugi": "cut", "characters": len(text), "text": clean(text, limit // 2 - 100)}
    return json.dumps(cut, ensure_ascii=False)


def _plain(value: Any, depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if value is None or type(value) is bool:
        return value
    if type(value) is str:
        return clean(value, MESSAGE_MAX)
    if type(value) is int and -_INTEGER_MAX <= value <= _INTEGER_MAX:
        return value
    if type(value) is float and value - value == 0:  # neither NaN nor infinite
        return value
    if left[0] <= 0 or depth >= _DEPTH_MAX:
        return f"<{type(value).__name__}>"
    try:
        if isinstance(value, dict):
            return {describe(k, 255): _plain(v, depth + 1, left) for k, v in list(value.items()) if left[0] > 0}
        if isinstance(value, list | tuple | set | frozenset):
            return [_plain(item, depth + 1, left) for item in list(value) if left[0] > 0]
    except Exception:  # a subclass may do anything when it is looked through
        return f"<{type(value).__name__}>"
    return represent(value)
