"""Statements of a table, made from its columns once.

Rows go to Postgres as one array per column, in binary (`wire`). KNOWLEDGE: `%b` arrays write 27,000 to 33,000 rows a
second where `%s` arrays write 8,000.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, LiteralString

from .kit import Column, Table
from .wire import KINDS, Array, Kind, array

_STATE = "state_data"


def kind_of(column: Column) -> Kind:
    """How a column's values are written."""
    return KINDS[column.kind.split("->")[0]]


def _value(column: Column) -> str:
    name = f'u."{column.name}"'
    if column.references is None:
        return name
    # A reference to a row that is not there (the log's beginning was cut, or it came out of order) stays empty.
    return f"(SELECT r.id FROM {column.references} r WHERE r.id = {name})"


def shown(column: Column) -> LiteralString:
    """A column of `t` as folds have it: ids and JSON as text, times in microseconds."""
    name, kind = f't."{column.name}"', kind_of(column).type
    if kind in ("uuid", "jsonb"):
        return f"{name}::text"
    if kind == "timestamptz":
        return f"(extract(epoch FROM {name}) * 1000000)::bigint"
    return name


def write(table: Table) -> LiteralString:
    """Upsert of many rows at once; parameters are one array per column, named by it."""
    names = ", ".join(f'"{c.name}"' for c in table.columns)
    arrays = ", ".join(f"%(c{i})b::{kind_of(c).type}[]" for i, c in enumerate(table.columns))
    values = ", ".join(_value(c) for c in table.columns)
    if table.written_once:
        on_conflict = "DO NOTHING"
    else:
        changes = ", ".join(f'"{c.name}" = EXCLUDED."{c.name}"' for c in table.columns[1:])
        on_conflict = f"DO UPDATE SET {changes}"
    text = (
        f"INSERT INTO {table.name} ({names}) SELECT {values} FROM unnest({arrays}) AS u({names}) "
        f'ON CONFLICT ("{table.columns[0].name}") {on_conflict}'
    )
    return text


def write_from_twin(table: Table) -> LiteralString:
    """As `write` of a table written once, with each state taken from the row of its twin that `twin` names."""
    columns = _without_state(table)
    names = ", ".join(f'"{c.name}"' for c in columns)
    arrays = ", ".join(f"%(c{i})b::{kind_of(c).type}[]" for i, c in enumerate(columns))
    values = ", ".join(f'u."{c.name}"' for c in columns)
    text = (
        f"INSERT INTO {table.name} ({names}, {_STATE}) SELECT {values}, t.{_STATE} "
        f"FROM unnest({arrays}, %(twin)b::uuid[]) AS u({names}, twin) JOIN {table.twin} t ON t.id = u.twin "
        f'ON CONFLICT ("{columns[0].name}") DO NOTHING'
    )
    return text


def read(table: Table) -> LiteralString:
    """Rows by key, in the form that folds use. References come back as they were written, or NULL."""
    values = ", ".join(shown(c) for c in table.columns)
    # Not `id = ANY(...)`: without statistics the whole table is read, and each row compared with every id.
    return f"SELECT {values} FROM unnest(%(ids)b::uuid[]) AS k(id) JOIN {table.name} t ON t.id = k.id"


def delete(table: Table) -> LiteralString:
    """Deletes rows by key, where they belong to the workflow named beside it."""
    owner = table.columns[table.owner].name
    return (
        f"DELETE FROM {table.name} t USING unnest(%(ids)b::uuid[], %(owners)b::uuid[]) AS k(id, owner) "
        f'WHERE t.id = k.id AND t."{owner}" = k.owner'
    )


def read_all(table: Table) -> LiteralString:
    """Every row, in the form that folds use."""
    return f"SELECT {', '.join(shown(c) for c in table.columns)} FROM {table.name} t"


def parameters(table: Table, rows: Iterable[Sequence[Any]]) -> dict[str, Array]:
    """Rows turned into one array per column."""
    by_column = zip(table.columns, zip(*rows, strict=True), strict=True)
    return {f"c{i}": array(kind_of(column), values) for i, (column, values) in enumerate(by_column)}


def twin_parameters(table: Table, rows: Sequence[tuple[Sequence[Any], str]]) -> dict[str, Array]:
    """As `parameters`, for `write_from_twin`: rows, and the key of each one's twin."""
    columns = _without_state(table)
    places = [table.columns.index(column) for column in columns]
    parameters = {
        f"c{i}": array(kind_of(column), [row[place] for row, _ in rows])
        for i, (column, place) in enumerate(zip(columns, places, strict=True))
    }
    return {**parameters, "twin": array(KINDS["uuid"], [twin for _, twin in rows])}


def _without_state(table: Table) -> tuple[Column, ...]:
    """The columns of a row that takes its state from a twin: it refers to nothing else either."""
    return tuple(c for c in table.columns if c.name != _STATE and c.references is None)
