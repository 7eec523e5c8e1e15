"""Text and JSON that every reader accepts: no lone surrogate, no U+0000, bounded. Nothing here raises.

Used for what explains (messages, stack traces, context), never for state: state is refused, not bent.
"""

from __future__ import annotations

import json
import re
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
