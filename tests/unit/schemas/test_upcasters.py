"""What older records say is read as what it meant; what today's writers say is never touched."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fastavro import parse_schema, schemaless_writer
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import codec, release, upcasters
from schemas.catalog import RELEASED, shipped
from schemas.codec import Codec
from schemas.errors import DecodeError
from schemas.generate import snake
from schemas.records import RECORD_TYPES, Record
from schemas.records.events import InterventionRequested, RecoveryDecided
from schemas.upcasters import UPCASTERS, Upcaster

from .kit import Ids, changed, records, step_started

ROOT = Path(__file__).parents[3]
PRODUCT = ("schemas", "engine", "consumers", "projections", "ops", "client", "examples")
VERSIONS = release.versions()
DECIDED: dict[str, Any] = {
    "event_id": "e", "workflow_id": "w", "workflow_type": "t", "occurred_at": 1, "producer": "kintsugi",
    "error_id": "e", "attempt_id": "a", "attempt_number": 1, "error_type": "timeout", "rung": 0, "step_id": "build",
    "policy_version": "1", "evidence": "{}", "alternatives": "[]",
}  # fmt: skip


def written_by(version: str, record: Record) -> bytes:
    """The record's bytes as a service of that release writes them."""
    text = (RELEASED / version / "avsc" / f"{snake(type(record).__name__)}.avsc").read_text(encoding="utf-8")
    return rewritten(json.loads(text), record)


def rewritten(schema: dict[str, Any], record: Record) -> bytes:
    """The record's bytes by another schema, in Confluent's form; `READER` knows its id."""
    out = BytesIO()
    values = codec._dumper(shipped()[type(record).__name__])(record)
    schemaless_writer(out, parse_schema(schema, named_schemas={}), values)  # passes over the fields it does not know
    return b"\x00" + IDS.add(schema).to_bytes(4, "big") + out.getvalue()


IDS = Ids()
READER = Codec(IDS)


@pytest.mark.parametrize("upcaster", UPCASTERS, ids=lambda u: f"{u.record}.{u.field}")
def test_the_table_names_the_release_that_brought_the_field(upcaster: Upcaster) -> None:
    kind = RECORD_TYPES[upcaster.record]
    assert upcaster.before in VERSIONS and upcaster.field in kind.__dataclass_fields__
    for version in VERSIONS:
        path = RELEASED / version / "avsc" / f"{snake(upcaster.record)}.avsc"
        names = {f["name"] for f in json.loads(path.read_text(encoding="utf-8"))["fields"]}
        assert (upcaster.field in names) == (VERSIONS.index(version) >= VERSIONS.index(upcaster.before))


def test_one_field_is_filled_in_by_one_function() -> None:
    assert len({(u.record, u.field) for u in UPCASTERS}) == len(UPCASTERS)


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
@pytest.mark.parametrize(
    ("strategy", "rule", "cost"),
    [
        ("retry_step", "recovery_strategies.timeout: rung 1, try 1 of 3", 1.0),
        ("restart_from_checkpoint", "recovery_strategies.timeout: rung 2, try 1 of 2", 1.0),
        ("manual_intervention", "the ladder is exhausted", 0.0),
        ("retry_step", "operator ann: retry", 0.0),
    ],
)
def test_an_attempt_of_an_old_engine_is_not_free(version: str, strategy: str, rule: str, cost: float) -> None:
    made = RecoveryDecided(**DECIDED, strategy=strategy, rule=rule)
    found = READER.decode(written_by(version, made))
    assert found == replace(made, cost=cost)


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_what_could_be_answered_to_an_old_question_still_can(version: str) -> None:
    asked = release.sample(shipped()["InterventionRequested"], bare=True)
    assert isinstance(asked, InterventionRequested) and asked.options == ()
    assert READER.decode(written_by(version, asked)) == replace(asked, options=("retry", "restart", "cancel"))


@pytest.mark.parametrize("upcaster", UPCASTERS, ids=lambda u: f"{u.record}.{u.field}")
def test_what_todays_writers_say_is_never_touched(upcaster: Upcaster) -> None:
    later = VERSIONS[VERSIONS.index(upcaster.before) :]

    @settings(max_examples=50, deadline=None)
    @given(record=records(upcaster.record), version=st.sampled_from(later))
    def untouched(record: Record, version: str) -> None:
        assert READER.decode(Codec(IDS).encode(record)) == record
        assert READER.decode(written_by(version, record)) == record

    untouched()


def test_a_record_of_today_costs_nothing_more() -> None:
    """The builder of a writer that has every field is the one there was before there were upcasters."""
    writer = codec._writer_of(shipped()["RecoveryDecided"].text)
    assert writer.build is not None and "upcast" not in writer.build.__qualname__
    older = (RELEASED / "0.2.0" / "avsc" / "recovery_decided.avsc").read_text(encoding="utf-8")
    assert "upcast" in getattr(codec._writer_of(older).build, "__qualname__", "")


def test_each_function_sees_what_the_writer_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(value: Any) -> str:
        return f"{value['external_id']}, {value['correlation_id']}"

    made = [
        Upcaster(record="StepStarted", field=f, before="9.9.9", fill=said) for f in ("external_id", "correlation_id")
    ]
    monkeypatch.setattr(upcasters, "UPCASTERS", tuple(made))
    older = changed("StepStarted", lambda raw: raw.update(fields=[f for f in raw["fields"] if not _added(f)]))
    found = READER.decode(rewritten(older, step_started()))
    assert found == step_started(external_id="None, None", correlation_id="None, None")
    only = changed(
        "StepStarted", lambda raw: raw.update(fields=[f for f in raw["fields"] if f["name"] != "external_id"])
    )
    assert READER.decode(rewritten(only, step_started(correlation_id="c"))) == step_started(
        external_id="None, c", correlation_id="c"
    )


def _added(field: dict[str, Any]) -> bool:
    return field["name"] in ("external_id", "correlation_id")


def test_a_record_that_cannot_be_upcast_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Upcaster(record="StepStarted", field="external_id", before="9.9.9", fill=lambda value: value["nothing"])
    monkeypatch.setattr(upcasters, "UPCASTERS", (failing,))
    older = changed("StepStarted", lambda raw: raw.update(fields=[f for f in raw["fields"] if not _added(f)]))
    with pytest.raises(DecodeError, match="StepStarted: KeyError"):
        READER.decode(rewritten(older, step_started()))


def test_every_record_is_decoded_in_one_place() -> None:
    """`log_record` reads the frame of the archive, whose values are records' bytes."""
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in PRODUCT
        for path in (ROOT / folder).rglob("*.py")
        if "schemaless_reader(" in path.read_text(encoding="utf-8") and "_schemas" not in path.parts
    }
    assert found == {"schemas/codec.py", "schemas/log_record.py"}
