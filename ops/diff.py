"""What changed between two JSON documents, as a list of changes by path. Applying it to the first gives the second.

Pure. Arrays are compared by index: an item put in at the front shows as a change of every item behind it, and that is
what a reader of a state, in which places matter, wants to see. Numbers are compared by value (1 and 1.0 are one number
to JSON), and true is no number.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")

Step = str | int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One difference. `before` is None for what was added, `after` for what was removed."""

    kind: Literal["added", "removed", "changed"]
    path: tuple[Step, ...]
    before: Any = None
    after: Any = None


def diff(before: Any, after: Any, path: tuple[Step, ...] = ()) -> Iterator[Change]:
    """Changes that turn `before` into `after`, in the order in which they can be applied."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            if key not in after:
                yield Change(kind="removed", path=(*path, key), before=before[key])
            elif key not in before:
                yield Change(kind="added", path=(*path, key), after=after[key])
            else:
                yield from diff(before[key], after[key], (*path, key))
    elif isinstance(before, list) and isinstance(after, list):
        common = min(len(before), len(after))
        for index in range(common):
            yield from diff(before[index], after[index], (*path, index))
        for index in range(common, len(after)):
            yield Change(kind="added", path=(*path, index), after=after[index])
        for index in range(len(before) - 1, common - 1, -1):  # from the end, so that the others keep their places
            yield Change(kind="removed", path=(*path, index), before=before[index])
    elif not _same(before, after):
        yield Change(kind="changed", path=path, before=before, after=after)


def apply(document: Any, changes: Iterable[Change]) -> Any:
    """A copy of the document with the changes made, in their order. KeyError or IndexError when they do not fit it."""
    root = [copy.deepcopy(document)]
    for change in changes:
        holder: Any = root
        steps: tuple[Step, ...] = (0, *change.path)
        for step in steps[:-1]:
            holder = holder[step]
        last = steps[-1]
        if change.kind == "removed":
            del holder[last]
        elif change.kind == "added" and isinstance(holder, list):
            holder.insert(int(last), copy.deepcopy(change.after))
        else:
            holder[last] = copy.deepcopy(change.after)
    return root[0]


def path_text(path: Iterable[Step]) -> str:
    """A path as people write it: `$.steps[2].name`, and `$["odd key"]`."""
    parts = ["$"]
    for step in path:
        if isinstance(step, int):
            parts.append(f"[{step}]")
        elif _PLAIN_KEY.fullmatch(step):
            parts.append(f".{step}")
        else:
            escaped = step.replace("\\", "\\\\").replace('"', '\\"')
            parts.append(f'["{escaped}"]')
    return "".join(parts)


def _same(before: Any, after: Any) -> bool:
    """Equal scalars. Of other pairs only one with itself is: containers of one kind were taken apart before."""
    if isinstance(before, bool) or isinstance(after, bool):
        return before is after
    if isinstance(before, dict | list) or isinstance(after, dict | list):
        return False
    return bool(before == after)
