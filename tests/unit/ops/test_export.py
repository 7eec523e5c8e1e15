"""Files of exported checkpoints: whole or not at all, for their owner alone, and never written over."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from engine.policy.model import StateInspection
from ops.export import ExistsError, document, file_name, put, putting, written
from schemas.errors import FatalError, StateError

ROW: dict[str, Any] = {
    "id": "c", "workflow_id": "w", "epoch": 1, "sequence": 12, "size_bytes": 10, "log_partition": 3, "log_offset": 7,
    "metadata": None, "state_data": {"data": {}}, "protection": "none",
}  # fmt: skip
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "on", "1", "ü", "~"]), inner),
    max_leaves=12,
)  # fmt: skip


@given(state=DOCUMENTS)
def test_both_formats_say_the_same(state: Any) -> None:
    content = {"state": state}
    assert json.loads(written(content, "json")) == content
    assert json.loads(written(content, "json", one_line=True)) == content
    assert written(content, "json", one_line=True).count(b"\n") == 1
    assert list(yaml.safe_load_all(written(content, "yaml") * 2)) == [content, content]


def test_a_file_is_written_once(tmp_path: Path) -> None:
    path = put(tmp_path / "a" / "b", "x.json", b"one")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"one", 0o600)
    with pytest.raises(ExistsError, match="nothing is written over"):
        put(tmp_path / "a" / "b", "x.json", b"two")
    assert path.read_bytes() == b"one" and os.listdir(path.parent) == ["x.json"]


def test_a_file_written_in_pieces_is_there_when_the_last_one_is(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.jsonl"
    with putting(path) as write:
        for piece in (b"one\n", b"two\n"):
            write(piece)
            assert not path.exists()
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"one\ntwo\n", 0o600)
    assert os.listdir(path.parent) == ["x.jsonl"]


def test_who_fails_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with putting(tmp_path / "x.jsonl") as write:
            write(b"one")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_a_name_that_is_taken_is_told_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"one")
    with pytest.raises(ExistsError), putting(tmp_path / "x.jsonl"):
        pytest.fail("the block was entered")
    assert os.listdir(tmp_path) == ["x.jsonl"]


def test_a_name_that_is_taken_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with pytest.raises(ExistsError), putting(path):
        path.write_bytes(b"one")
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"one", ["x.jsonl"])


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "x.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ExistsError):
        put(tmp_path, "x.json", b"one")
    assert not (tmp_path / "elsewhere").exists()


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FatalError, match="No space left"):
        put(tmp_path, "x.json", b"one")
    assert os.listdir(tmp_path) == []


def test_names_sort_as_the_checkpoints_do() -> None:
    names = [file_name({**ROW, "epoch": e, "sequence": s}, "json") for e, s in ((0, 2), (0, 10), (1, 1))]
    assert names == sorted(names)


@pytest.mark.parametrize("marker", ["sealed", "claim", "unreadable"])
def test_a_state_that_the_table_does_not_show_is_not_exported(marker: str) -> None:
    with pytest.raises(StateError, match="c "):
        document({**ROW, "state_data": {"$kintsugi": marker}}, StateInspection(), None)


def test_a_state_beyond_the_limit_is_not_exported() -> None:
    with pytest.raises(StateError, match="max_state_size allows 9"):
        document(ROW, StateInspection(state_size_bytes_max=9), None)
    assert document(ROW, StateInspection(state_size_bytes_max=10), None)["state"] == {"data": {}}
