"""What the policy in force allows of a replay, and where its document is kept."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from engine.policy import default_policy
from engine.policy.model import ReplayMode
from ops import replay_kept, replay_plan
from ops.commands.replay import replay
from ops.output import NotFoundError
from ops.replay_kept import ChangedError, Kept
from ops.replay_plan import Asked, planned
from ops.reveal import DeniedError
from ops.stack import Addresses
from schemas.errors import ConfigError, FatalError

AT = Addresses(kafka="nowhere:1", registry="http://nowhere", postgres="postgresql://nowhere", objects="memory:///")
SESSION = "6b696e74-7375-4769-8000-000000000001"


def test_a_policy_that_allows_no_replay_is_obeyed_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    forbidding = replace(default_policy(), replay_mode=ReplayMode(enabled=False))
    monkeypatch.setattr(replay_plan, "LogReader", lambda _: nullcontext())
    monkeypatch.setattr(replay_plan, "in_force", lambda *_: forbidding)
    with pytest.raises(DeniedError, match=r"replay_mode\.enabled"):
        planned(AT, Asked(), lambda _: None, facts="recorded")


def test_a_document_is_kept_as_it_was_and_shown_only_as_that(tmp_path: Path) -> None:
    for kept in (Kept("", tmp_path.as_uri()), Kept((tmp_path / "own").as_uri(), "memory:///")):
        data = b'{"replay": 1}\n'
        digest = hashlib.sha256(data).hexdigest()
        assert kept.put(SESSION, data).endswith(SESSION)
        assert kept.get(SESSION, digest) == data
        with pytest.raises(ChangedError):
            kept.get(SESSION, "0" * 64)
        with pytest.raises(NotFoundError):
            kept.get(SESSION.replace("1", "2"), digest)
    assert (tmp_path / "replays" / SESSION).exists() and (tmp_path / "own" / SESSION).exists()


def test_a_storage_that_is_none_is_named_by_its_key() -> None:
    with pytest.raises(ConfigError, match=r"debugging\.replay_mode\.storage"):
        Kept("no place at all", "memory:///")


def test_a_document_that_is_too_large_to_be_kept_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_kept, "KEPT_BYTES_MAX", 3)
    with pytest.raises(FatalError, match="4 bytes, 3 are kept"):
        Kept("memory:///", "").put(SESSION, b"four")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--seed", "3", "list"), "behind its name"),
        (("--replace",), "--into"),
        (("drop", "night"), "--reason"),
        (("show", "night"), "is no id"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused_with_why(arguments: tuple[str, ...], said: str) -> None:
    done: Any = CliRunner().invoke(replay, arguments)
    assert done.exit_code == 2 and said in done.output
