"""An operator's action is written down before it is done, and so is how it ended."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from ops import audit
from ops.audit import ACTOR_CHARS_MAX, REASON_CHARS_MAX, actor, audited
from schemas.canonical import canonical_bytes
from schemas.errors import ConfigError, RetriableError
from schemas.topics import AUDIT


class Log:
    """Takes records, until it is away."""

    def __init__(self) -> None:
        self.records: list[tuple[str, bytes]] = []
        self.room = 100

    def publish(self, topic: str, key: str, value: bytes) -> None:
        """As `ops.publish.Publisher.publish`."""
        assert topic == AUDIT
        if len(self.records) >= self.room:
            raise RetriableError("Kafka is away")
        self.records.append((key, value))

    def entries(self) -> Iterator[dict[str, object]]:
        """What was written."""
        for _, value in self.records:
            yield json.loads(value)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    made = Log()
    monkeypatch.setattr(audit, "Publisher", lambda kafka: made)
    monkeypatch.setenv("KINTSUGI_ACTOR", "ann")
    return made


def test_an_action_leaves_two_records_of_one_operation(log: Log) -> None:
    with audited("kafka", "keys.erase", subject="w", reason="asked to") as detail:
        assert [entry["outcome"] for entry in log.entries()] == ["begun"]
        detail["keys_deleted"] = 2
    begun, done = log.entries()
    assert {key for key, _ in log.records} == {"ann"}
    assert set(begun) == {
        "action", "actor", "at", "detail", "operation_id", "outcome", "reason", "subject", "version"
    }  # fmt: skip
    assert (begun["action"], begun["actor"], begun["subject"], begun["reason"]) == (
        "keys.erase",
        "ann",
        "w",
        "asked to",
    )
    assert (done["outcome"], done["detail"]) == ("done", {"keys_deleted": 2})
    assert begun["operation_id"] == done["operation_id"]
    assert all(canonical_bytes(json.loads(value)) == value for _, value in log.records)


def test_what_cannot_be_written_down_is_not_done(log: Log) -> None:
    log.room = 0
    with pytest.raises(RetriableError), audited("kafka", "keys.erase", subject="w", reason="r"):
        pytest.fail("it was done all the same")


def test_a_failure_is_written_down_without_its_message(log: Log) -> None:
    def fail() -> None:
        with audited("kafka", "keys.erase", subject="w", reason="r") as detail:
            detail["number"] = 1
            raise ValueError("a secret")

    with pytest.raises(ValueError, match="secret"):
        fail()
    failed = list(log.entries())[1]
    assert (failed["outcome"], failed["detail"]) == ("failed", {"number": 1, "error": "ValueError"})


def test_a_failure_that_cannot_be_written_down_is_still_the_one_that_is_told(log: Log) -> None:
    log.room = 1
    with pytest.raises(ValueError, match="the cause"), audited("kafka", "keys.erase", subject="w", reason="r"):
        raise ValueError("the cause")


def test_an_end_that_cannot_be_written_down_is_told(log: Log) -> None:
    log.room = 1
    with pytest.raises(RetriableError), audited("kafka", "keys.erase", subject="w", reason="r"):
        pass


def test_the_actor_is_named_by_the_environment_or_is_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINTSUGI_ACTOR", " ann@example.org ")
    assert actor() == "ann@example.org"
    monkeypatch.setenv("KINTSUGI_ACTOR", " ")
    assert actor()
    monkeypatch.setattr(audit.os, "getuid", lambda: 4_000_000)
    assert actor() == "uid 4000000"


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "x" * (ACTOR_CHARS_MAX + 1)])
def test_an_actor_is_a_short_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINTSUGI_ACTOR", name)
    with pytest.raises(ConfigError, match="KINTSUGI_ACTOR"):
        actor()


def test_a_reason_is_bounded(log: Log) -> None:
    long = "x" * (REASON_CHARS_MAX + 1)
    with pytest.raises(ConfigError, match="the reason has"), audited("kafka", "a", subject="w", reason=long):
        pytest.fail("it was done all the same")
    assert log.records == []
