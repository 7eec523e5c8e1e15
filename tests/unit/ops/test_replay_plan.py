"""What the policy in force allows of a replay, and where its document is kept."""

from __future__ import annotations

import hashlib
import subprocess
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from engine.policy import default_policy
from engine.policy.model import ReplayMode
from ops import replay_kept, replay_plan, replay_scratch, replay_session
from ops.commands import replay as replay_command
from ops.commands.replay import replay
from ops.output import NotFoundError
from ops.replay import Plan
from ops.replay_kept import ChangedError, Kept
from ops.replay_plan import Asked, planned
from ops.replay_range import Range
from ops.replaying import Request
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


class Ended:
    """A session of which only the end is kept."""

    status = ""

    def __init__(self, *_: Any) -> None:
        pass

    def finish(self, status: str, results: dict[str, Any]) -> None:
        Ended.status = status


@pytest.mark.parametrize(
    ("code", "status", "done"), [(0, "completed", ["create", "finish"]), (75, "failed", ["create", "drop"])]
)
def test_a_scratch_schema_stays_only_when_its_replay_came_to_its_end(
    monkeypatch: pytest.MonkeyPatch, code: int, status: str, done: list[str]
) -> None:
    calls: list[str] = []
    for name in ("create", "finish", "drop"):
        monkeypatch.setattr(replay_scratch, name, lambda *_, name=name, **__: calls.append(name))
    monkeypatch.setattr(replay_session, "Session", Ended)
    ended = subprocess.CompletedProcess[bytes]([], code, b"{}")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    plan = Plan(ranges=(Range(partition=0, first=0, start=0, end=1),), facts="recorded", into="kintsugi_replay_x")
    request = Request(plan=plan, form="json", step=False, interactive=False)
    with nullcontext() if code == 0 else pytest.raises(click.exceptions.Exit):
        assert replay_command._replayed(AT, request, None, SESSION, replace=False) == b"{}"
    assert (calls, Ended.status) == (done, status)


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
