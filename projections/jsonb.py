"""JSON as Postgres' jsonb writes it, so that a state has one digest here and there.

Keys in the order of their lengths, then of their bytes; numbers without exponents; `, ` and `: ` between. Without
recursion: a context may be nested as deeply as the parser allows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import orjson

_quoted = json.encoder.JSONEncoder(ensure_ascii=False).encode


def jsonb_text(text: str) -> str:
    """`text::jsonb::text`, of what `values` writes: numbers in their shortest form, no U+0000."""
    written: list[str] = []
    stack: list[Iterator[str | Any]] = [iter((_Value(orjson.loads(text)),))]
    while stack:
        part = next(stack[-1], None)
        if part is None:
            stack.pop()
        elif isinstance(part, _Value):
            inside = _opened(part.value)
            if inside is None:
                written.append(_scalar(part.value))
            else:
                stack.append(inside)
        else:
            written.append(part)
    return "".join(written)


class _Value:
    """A value still to be written, among texts that are."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def _opened(value: Any) -> Iterator[Any] | None:
    if isinstance(value, dict):
        return _members(value)
    if isinstance(value, list):
        return _items(value)
    return None


def _members(value: dict[str, Any]) -> Iterator[Any]:
    comma = "{"
    for key in sorted(value, key=_rank):
        yield f"{comma}{_quoted(key)}: "
        yield _Value(value[key])
        comma = ", "
    yield "}" if value else "{}"


def _items(value: list[Any]) -> Iterator[Any]:
    comma = "["
    for item in value:
        yield comma
        yield _Value(item)
        comma = ", "
    yield "]" if value else "[]"


def _rank(key: str) -> tuple[int, bytes]:
    data = key.encode()
    return len(data), data


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        text = format(Decimal(repr(value)), "f")
        return text.removeprefix("-") if value == 0 else text
    return _quoted(value)
