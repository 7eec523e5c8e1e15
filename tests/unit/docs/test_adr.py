"""Decision records are numbered, complete and listed."""

from __future__ import annotations

from pathlib import Path

import pytest

from .pages import ROOT, links, prose, sections, text_of

FOLDER = ROOT / "docs" / "adr"
RECORDS = sorted(FOLDER.glob("[0-9]*.md"))
SECTIONS = ["Status", "Context", "Decision", "Consequences", "Evidence", "In the code"]
STATUSES = ("Accepted", "Superseded by")
#: One page: what is longer is two decisions, or none.
LINES_MAX = 70


def test_numbers_follow_each_other() -> None:
    assert [record.name[:4] for record in RECORDS] == [f"{n:04}" for n in range(1, len(RECORDS) + 1)]
    assert len(RECORDS) >= 9


def test_the_index_lists_every_record() -> None:
    listed = [link for link in links(text_of(FOLDER / "README.md")) if link[0].isdigit()]
    assert listed == [record.name for record in RECORDS]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_a_record_is_complete(record: Path) -> None:
    text = text_of(record)
    title, *found = sections(text)
    assert title.startswith(f"{int(record.name[:4])}. ")
    assert found == SECTIONS
    parts = sections(text)
    assert all(parts[name].strip() for name in SECTIONS)
    assert parts["Status"].strip().startswith(STATUSES)
    assert "`" in parts["In the code"]
    assert len(prose(text).splitlines()) <= LINES_MAX


def test_the_index_gives_each_title() -> None:
    index = text_of(FOLDER / "README.md")
    for record in RECORDS:
        title = next(iter(sections(text_of(record)))).split(". ", 1)[1]
        assert f"({record.name}) | {title} |" in index
