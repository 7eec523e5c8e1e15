"""Bytes of every released version are read by today's code, for ever; a release is whole and never changes."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from schemas import release
from schemas.admission import check
from schemas.catalog import RELEASED, load, shipped
from schemas.codec import Codec
from schemas.errors import ConfigError
from schemas.generate import snake
from schemas.records import Part, Record
from schemas.records.events import StepSpec
from schemas.upcasters import UPCASTERS

from .kit import NAMES, Ids

FIXTURES = sorted(RELEASED.glob("*/bin/*.bin"))
NEWEST = release.versions()[-1]


def assert_holds(found: Record | Part, stored: dict[str, Any]) -> None:
    """Every stored field that the record still has is equal, every newer field has its default or is filled in."""
    filled = {u.field: u.fill for u in UPCASTERS if u.record == type(found).__name__}
    for field in fields(found):
        value = getattr(found, field.name)
        if field.name not in stored:
            assert field.default is not MISSING
            fill = filled.get(field.name)
            assert release.plain(value) == release.plain(field.default if fill is None else fill(stored))
        elif field.name == "steps":
            assert len(value) == len(stored["steps"])
            for step, expected in zip(value, stored["steps"], strict=True):
                assert isinstance(step, StepSpec)
                assert_holds(step, expected)
        else:
            assert release.plain(value) == stored[field.name]


def test_there_are_fixtures() -> None:
    assert len(FIXTURES) >= 2 * len(NAMES)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda p: f"{p.parts[-3]}-{p.stem}")
def test_released_bytes_are_read_as_what_they_were(path: Path) -> None:
    stem, kind = path.stem.rsplit(".", 1)
    stored = json.loads(path.with_name(f"{stem}.json").read_text(encoding="utf-8"))
    found = Codec().decode(path.read_bytes())
    assert type(found).__name__ == stored["record"]
    assert isinstance(found, Record)
    assert_holds(found, stored[kind])
    check(found)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda p: f"{p.parts[-3]}-{p.stem}")
def test_released_bytes_are_read_by_schema_id_too(path: Path) -> None:
    ids = Ids()
    text = (path.parents[1] / "avsc" / f"{path.stem.rsplit('.', 1)[0]}.avsc").read_text(encoding="utf-8")
    data = path.read_bytes()
    assert load(text).fingerprint == data[2:10]
    by_id = b"\x00" + ids.add(text).to_bytes(4, "big") + data[10:]
    assert Codec(ids).decode(by_id) == Codec().decode(data)


@pytest.mark.parametrize("name", NAMES)
def test_newest_release_holds_every_record(name: str) -> None:
    folder = RELEASED / NEWEST
    assert (folder / "avsc" / f"{snake(name)}.avsc").is_file(), f"release first: python -m schemas.release (has {name})"
    stored = json.loads((folder / "bin" / f"{snake(name)}.json").read_text(encoding="utf-8"))
    assert None not in stored["full"].values()
    assert {"full", "bare"} < set(stored)
    for kind in ("full", "bare"):
        assert (folder / "bin" / f"{snake(name)}.{kind}.bin").stat().st_size > 10


def test_fixtures_hold_what_is_hard_to_carry() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (RELEASED / NEWEST / "bin").glob("*.json"))
    assert "é 漢 😀" in text
    assert bytes(range(256)).hex() in text
    started = json.loads((RELEASED / NEWEST / "bin" / "workflow_started.json").read_text(encoding="utf-8"))
    assert len(started["full"]["steps"]) == 2
    assert started["bare"]["steps"] == []
    assert None in started["bare"].values()


def test_release_is_whole_and_the_same_whenever_it_is_made(tmp_path: Path) -> None:
    places = [release.write("1.2.3", tmp_path / n) for n in ("a", "b")]
    contents = [{p.name: p.read_bytes() for p in place.rglob("*.*") if p.is_file()} for place in places]
    assert contents[0] == contents[1]
    assert len(contents[0]) == 4 * len(NAMES)
    assert {p.read_text(encoding="utf-8") for p in (places[0] / "avsc").iterdir()} == {
        s.text for s in shipped().values()
    }


@pytest.mark.parametrize("version", ["1", "1.2", "v1.2.3", "1.2.3rc1", "../1.2.3", "1.2.3\n", ""])
def test_version_must_be_three_numbers(version: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="VERSION"):
        release.write(version, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_released_version_is_not_written_again(tmp_path: Path) -> None:
    place = release.write("1.2.3", tmp_path)
    (place / "avsc" / "step_started.avsc").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="never changes"):
        release.write("1.2.3", tmp_path)
    assert (place / "avsc" / "step_started.avsc").read_text(encoding="utf-8") == "mine"


def test_versions_go_up(tmp_path: Path) -> None:
    for version in ("1.2.9", "1.2.10", "2.0.0"):
        release.write(version, tmp_path)
    assert release.versions(tmp_path) == ["1.2.9", "1.2.10", "2.0.0"]
    with pytest.raises(ConfigError, match=r"older than 2\.0\.0"):
        release.write("1.3.0", tmp_path)


def test_command_refuses_a_released_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert release.main([NEWEST]) == 1
    assert "never changes" in capsys.readouterr().err
    assert release.main([]) == 2
    assert "usage" in capsys.readouterr().err
