"""Checkpoints as documents: what is known of one and its state, as JSON or YAML, to files of their own or to stdout.

A file is there whole or not at all, readable by its owner alone, and none is ever written over.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from projections.reader import snapshot
from projections.sql import blocks
from schemas.errors import FatalError, StateError

from .checkpoints import Row
from .output import CONFLICT
from .reveal import Revealer, check_size, why_hidden

if TYPE_CHECKING:
    from engine.policy.model import StateInspection

FORMATS = ("json", "yaml")
_QUERIES = blocks("ops", "checkpoints.sql")
_OWNER_ONLY = 0o600
#: What of a row is no fact about the checkpoint.
_APART = ("state_data", "metadata", "log_partition", "log_offset")


class ExistsError(click.ClickException):
    """There is a file of that name."""

    exit_code = CONFLICT


def rows(postgres: str, checkpoint_ids: list[str]) -> Iterator[Row]:
    """Checkpoints with their states, one at a time."""
    with snapshot(postgres) as tables:
        for checkpoint_id in checkpoint_ids:
            yield from tables.query(_QUERIES["checkpoint"], {"id": checkpoint_id})


def document(row: Row, allowed: StateInspection, opened: Revealer | None) -> dict[str, Any]:
    """A checkpoint to be exported. StateError for a state that may not be shown, or is not shown without --reveal."""
    import orjson

    check_size(row, allowed)
    state = row["state_data"]
    if opened is not None:
        state = opened.state(row)
    elif (why := why_hidden(row)) is not None:
        raise StateError("hidden", f"the state of {row['id']} {why}")
    content = {
        "checkpoint": {name: value for name, value in row.items() if name not in _APART},
        "place": f"{row['log_partition']}@{row['log_offset']}",
        "revealed": opened is not None,
        "metadata": row["metadata"],
        "state": state,
    }
    plain: dict[str, Any] = orjson.loads(orjson.dumps(content, default=str, option=orjson.OPT_UTC_Z))
    return plain


def written(content: dict[str, Any], form: str, *, one_line: bool = False) -> bytes:
    """The document as text. Several YAML documents, or several lines of JSON, may follow each other."""
    if form == "yaml":
        import yaml

        dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        text: str = yaml.dump(content, Dumper=dumper, sort_keys=False, allow_unicode=True, explicit_start=True)
        return text.encode()
    import orjson

    return orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE | (0 if one_line else orjson.OPT_INDENT_2))


def file_name(row: Row, form: str) -> str:
    """Sorts as the workflow's checkpoints do."""
    return f"{row['workflow_id']}-{row['epoch']:04d}-{row['sequence']:06d}-{row['id']}.{form}"


def put(folder: Path, name: str, data: bytes) -> Path:
    """Write a new file. ExistsError when it is there, FatalError when it cannot be written."""
    path = folder / name
    with putting(path) as write:
        write(data)
    return path


@contextmanager
def putting(path: Path) -> Iterator[Callable[[bytes], object]]:
    """Write a new file piece by piece: it is there when the block has ended, and not at all when that raised.

    Raises as `put`; a name that is taken is told before anything is written.
    """
    half = path.parent / f".{path.name}.{os.getpid()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path):
            raise FileExistsError
        handle = open(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY), "wb")  # noqa: SIM115 - below
        try:
            with handle:
                yield handle.write
                handle.flush()
                os.fsync(handle.fileno())
            os.link(half, path)  # unlike a rename, this refuses a name that is taken
        finally:
            half.unlink(missing_ok=True)
    except FileExistsError:
        raise ExistsError(f"{path} is there already; nothing is written over") from None
    except OSError as error:
        raise FatalError(f"{path} cannot be written: {error.strerror}") from error
