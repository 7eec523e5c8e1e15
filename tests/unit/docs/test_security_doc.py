"""docs/security.md names the limits, reasons, fields and layout that the code has."""

from __future__ import annotations

import inspect
from dataclasses import fields
from importlib import import_module

import pytest

from schemas.keys import ENTRY_POINTS, VARIABLE, KeyProvider, KeyRing
from schemas.keystore import ERASURE_SEEN_WITHIN_S, ROTATION_SEEN_WITHIN_S
from schemas.records.events import CheckpointCreated
from schemas.sealing import PROTECTIONS, DataKey, binding_of, seal
from schemas.stored_keys import ERASED, FOLDER

from .pages import ROOT, bare, blocks, rows, sections, text_of

PAGE = text_of(ROOT / "docs" / "security.md")
SECTIONS = sections(PAGE)


@pytest.mark.parametrize("row", list(rows(SECTIONS["Limits"])), ids=lambda row: bare(row[2]))
def test_a_limit_is_what_the_code_says(row: list[str]) -> None:
    module, _, name = bare(row[2]).rpartition(".")
    assert getattr(import_module(module), name) == int(row[1])


def test_the_times_in_the_text_are_those_of_the_limits() -> None:
    assert f"within {ROTATION_SEEN_WITHIN_S:.0f} s" in SECTIONS["Rotation"]
    assert f"within {ERASURE_SEEN_WITHIN_S:.0f} s" in SECTIONS["Erasure"]
    assert f"`{FOLDER}/<2 hex>/<workflow id>/{ERASED}`" in SECTIONS["Erasure"]


def test_protections_and_reasons_are_the_codes() -> None:
    text = SECTIONS["What is protected"]
    assert [p for p in PROTECTIONS if f"| `{p}` |" in text] == list(PROTECTIONS)
    assert all(f"| `{reason}` |" in text for reason in ("decryption", "unsealed", "key_missing", "key_erased"))


def test_the_layout_is_the_codes() -> None:
    sealed = seal(b"payload", DataKey("w", 1, bytes(32)), protection="hmac-sha256", binding=b"")
    assert len(sealed) == 2 + 1 + 1 + 4 + 32 + len(b"payload")
    assert len(seal(b"", DataKey("w", 1, bytes(32)), protection="aes-256-gcm", binding=b"")) == 2 + 1 + 1 + 4 + 12 + 16


def test_the_fields_that_are_not_bound_are_named() -> None:
    record = CheckpointCreated(
        **{f.name: 7 if f.type == "int" else True if f.type == "bool" else "x" for f in fields(CheckpointCreated)}
    )
    bound = binding_of(record).decode()
    free = {f.name for f in fields(CheckpointCreated) if f'"{f.name}":' not in bound}
    assert free
    assert all(f"`{name}`" in SECTIONS["What is protected"] for name in free)


def test_the_provider_interface_is_the_codes() -> None:
    text = SECTIONS["A key provider of your own"]
    (toml,) = [block.body for block in blocks(PAGE) if block.language == "toml"]
    assert ENTRY_POINTS in toml
    for name in ("wrap", "unwrap", "names"):
        signature = inspect.signature(getattr(KeyProvider, name))
        wanted = ", ".join(p for p in signature.parameters if p != "self")
        assert f"`{name}({wanted})`" in text
        assert hasattr(KeyRing, name)
    assert f"`{VARIABLE}=kms+example:" in text


def test_the_page_tells_how_to_begin() -> None:
    console = "".join(block.body for block in blocks(PAGE) if block.language == "console")
    assert all(f"kintsugi keys {name}" in console for name in ("init", "status", "rotate", "rewrap", "erase"))
