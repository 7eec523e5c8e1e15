"""What a human changes in a state before its workflow goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ._schemas.canonical import canonical_bytes
from ._schemas.errors import StateError
from .errors import RefusedError


def merge_patch(target: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7396) applied: objects are merged, null removes, all else replaces. `target` is kept."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def edited(data: dict[str, Any], text: str, check: Callable[[object], None]) -> dict[str, Any]:
    """The data with a merge patch applied that must leave them valid. RefusedError when it is none, or does not."""
    try:
        patch = json.loads(text)
        if not isinstance(patch, dict):
            raise RefusedError("edit_invalid", f"the edit is no JSON object but a {type(patch).__name__}")
        changed: dict[str, Any] = merge_patch(data, patch)
        canonical_bytes(changed)
        check(changed)
    except (ValueError, RecursionError) as error:
        raise RefusedError("edit_invalid", f"the edit is no JSON: {error}") from error
    except StateError as error:
        raise RefusedError("edit_invalid", f"the edited state is not valid: {error}") from error
    return changed
