"""A digest changes with every column of every table, and with nothing else."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from projections.catalog import TABLES
from projections.digest import BUCKETS, NO_ROWS, bucket_of, compare_rows, row_digest, total
from projections.jsonb import jsonb_text
from projections.kit import Column, Table
from schemas.ids import derive_id

COLUMNS = [pytest.param(t, i, id=f"{t.name}.{c.name}") for t in TABLES for i, c in enumerate(t.columns)]


def value_of(column: Column, number: int) -> Any:
    """A value that a column of this kind may hold, another one for each number."""
    return {
        "text": f"text {number}",
        "uuid": derive_id("value", number),
        "jsonb": f'{{"b":[{number}],"aa":null}}',
        "bytea": bytes([number]),
        "bool": bool(number % 2),
    }.get(column.kind.split("->")[0], number)


def row_of(table: Table, number: int = 0) -> tuple[Any, ...]:
    return tuple(value_of(column, number) for column in table.columns)


@pytest.mark.parametrize(("table", "place"), COLUMNS)
def test_every_column_counts(table: Table, place: int) -> None:
    row = row_of(table)
    other = [*row]
    other[place] = value_of(table.columns[place], 1)
    empty = [*row]
    empty[place] = None
    assert len({row_digest(table, r) for r in (row, other, empty)}) == 3
    for changed in (other, empty):
        (drift,) = compare_rows(table, row, changed)
        assert (drift.table, drift.column) == (table.name, table.columns[place].name)


def test_values_do_not_run_into_each_other() -> None:
    table = Table(name="pairs", columns=(Column("a", "text"), Column("b", "text")), touches={})
    rows = [("", "11:"), ("1:", "1"), ("-", None), (None, "-"), ("", None), (None, ""), (None, None), ("", "")]
    assert len({row_digest(table, row) for row in rows}) == len(rows)


def test_rows_have_one_digest_in_any_order() -> None:
    digests = [row_digest(TABLES[0], row_of(TABLES[0], number)) for number in range(20)]
    mixed = [*digests]
    Random(7).shuffle(mixed)
    assert total(mixed) == total(digests)
    assert total(digests).rows == 20
    assert total(digests[1:]) != total(digests)
    assert total(()) == NO_ROWS


def test_workflows_spread_over_buckets() -> None:
    buckets = [bucket_of(derive_id("workflow", number)) for number in range(2_000)]
    assert 0 <= min(buckets) < BUCKETS // 10
    assert BUCKETS * 9 // 10 < max(buckets) < BUCKETS


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ('{"aa":1,"b":2}', '{"b": 2, "aa": 1}'),
        ("[1e21,1e-7,-0.0,1.0]", "[1000000000000000000000, 0.0000001, 0.0, 1.0]"),
        ('{"a":{},"b":[],"c":[[],{}]}', '{"a": {}, "b": [], "c": [[], {}]}'),
        ('"\\u00e9\\n\\"\\u0001\\u007f"', '"\u00e9\\n\\"\\u0001\x7f"'),
    ],
)
def test_json_is_written_as_jsonb_writes_it(written: str, kept: str) -> None:
    assert jsonb_text(written) == kept


def test_json_may_be_nested_as_deeply_as_it_is_read() -> None:
    deep = "[" * 1_000 + "]" * 1_000
    assert jsonb_text(deep) == deep
