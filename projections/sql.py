"""SQL from files, in blocks headed `-- name: x`."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import LiteralString, cast

_HEAD = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


@cache
def blocks(package: str, file: str) -> dict[str, LiteralString]:
    """Named statements of one file. They ship with the program, so they are as trusted as its code."""
    text = (files(package) / file).read_text(encoding="utf-8")
    parts = _HEAD.split(text)[1:]
    return {name: cast(LiteralString, body.strip()) for name, body in zip(parts[::2], parts[1::2], strict=True)}
