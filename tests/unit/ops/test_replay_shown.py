"""What a replay shows of what services wrote: cut, hidden, and text wherever it is shown."""

from __future__ import annotations

import json
from base64 import b64encode
from hashlib import sha256
from html import unescape
from html.parser import HTMLParser
from typing import Any

import orjson
import pytest
import yaml

from engine.events import Delivered
from ops.hidden import Hidden
from ops.replay_export import step_lines, written
from ops.replay_html import html
from ops.replay_shown import TEXT_CHARS_MAX, Shown, cut, engine_state
from schemas.canonical import canonical_bytes, digest_of
from schemas.records.events import StatePersisted, WorkflowErrorOccurred

from .replay_kit import recorded, repaired, replayed

W = "6b696e74-7375-4769-8000-000000000001"
HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>'\"&\x1b[2J\x00\u202e"
#: More than any text of a service's state that a test shows whole.
WIDE = 100_000


def error(**fields: Any) -> Delivered:
    common: dict[str, Any] = {"event_id": W, "workflow_id": W, "workflow_type": "development", "occurred_at": 1}
    common |= {"producer": "test", "error_id": W, "step_id": "build", "error_code": "E", "error_message": "no"}
    return Delivered(WorkflowErrorOccurred(**{**common, "detected_by": "service", **fields}), 0, 7, 1)


def state(data: Any, **fields: Any) -> Delivered:
    kept = canonical_bytes({"workflow_id": W, "step_id": "build", "status": "running", "data": data})
    common: dict[str, Any] = {"event_id": W, "workflow_id": W, "workflow_type": "development", "occurred_at": 1}
    common |= {"producer": "test", "step_id": "build", "version": "1", "state_version": "1", "codec": "identity"}
    common |= {"status": "running", "size_bytes": len(kept), "digest": digest_of(kept), "state": kept}
    return Delivered(StatePersisted(**{**common, **fields}), 0, 7, 1)


def shown(*paths: str, size_bytes_max: int = WIDE, states: bool = True, places: Any = None) -> Shown:
    return Shown(Hidden(places or {}), paths, size_bytes_max, states=states)


def test_a_state_over_the_bound_is_shown_cut_and_one_at_it_whole() -> None:
    event = state({"text": "é" * 50})
    whole = shown().state(event)
    size = len(orjson.dumps(whole))
    assert shown(size_bytes_max=size).state(event) == whole
    for bound in range(size - 12, size):
        found = shown(size_bytes_max=bound).state(event)
        assert (found["$kintsugi"], found["size_bytes"]) == ("cut", size)
        assert orjson.dumps(whole).decode().startswith(found["text"])
        assert bound - 1 <= len(found["text"].encode()) <= bound
    assert shown(size_bytes_max=0).state(event)["text"] == ""


@pytest.mark.parametrize("depth", [1, 200, 230, 253])
def test_what_is_nested_as_deep_as_can_be_is_still_written_in_each_form(depth: int) -> None:
    context = "[" * depth + "]" * depth
    record = shown().record(error(context=context))
    document = {**DOCUMENT, "steps": [step(record)]}
    for form in ("json", "yaml", "html"):
        assert written(document, form)
    assert (record["context"] == json.loads(context)) or record["context"]["text"] == context


def test_what_policy_or_tables_hide_is_hidden_here_too_also_in_what_is_cut() -> None:
    event = state({"card": "4111", "name": "Ada", "n": 1})
    by_policy = shown("data.card").state(event)["data"]
    by_tables = shown(places={0: [(0, ("data.name",))]}).state(event)["data"]
    both = shown("data.card", places={0: [(0, ("data.name",))]}).state(event)["data"]
    assert by_policy == {"card": "[redacted]", "name": "Ada", "n": 1}
    assert by_tables == {"card": "4111", "name": "[redacted]", "n": 1}
    assert both == {"card": "[redacted]", "name": "[redacted]", "n": 1}
    assert "4111" not in shown("data.card", size_bytes_max=60).state(event)["text"]
    assert shown("**.card").record(error(context='{"a": {"card": "4111"}}'))["context"] == {"a": {"card": "[redacted]"}}


def test_states_are_not_shown_where_the_policy_does_not_allow_it() -> None:
    found = shown(states=False).state(state({"card": "4111"}))
    assert found["$kintsugi"] == "hidden" and "4111" not in json.dumps(found)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"digest": "0" * 64}, "unreadable"),
        ({"state": b"garbage", "size_bytes": 7}, "unreadable"),
        ({"state": b"", "claim_uri": "s3://bucket/x"}, "claim"),
        ({"protection": "aes-256-gcm", "state": b"garbage"}, "unreadable"),
        ({"protection": "rot13"}, "unreadable"),
    ],
)
def test_a_state_that_cannot_be_looked_into_is_named(fields: dict[str, Any], said: str) -> None:
    assert shown().state(state({}, **fields))["$kintsugi"] == said


def test_an_events_fields_are_bounded_and_its_bytes_counted() -> None:
    record = shown().record(state({"a": 1}))
    assert record["state"].endswith(" bytes") and "claim_uri" not in record
    assert shown().state(error()) is None
    long = shown().record(error(stack_trace="x" * (TEXT_CHARS_MAX + 1)))["stack_trace"]
    assert long.startswith("x" * TEXT_CHARS_MAX) and len(long) < TEXT_CHARS_MAX + 50
    assert shown().record(error(context="no JSON"))["context"]["text"] == "no JSON"
    assert shown(size_bytes_max=10).record(error(context='{"a": "' + "x" * 50 + '"}'))["context"]["size_bytes"] > 50


def step(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "place": "0:7",
        "at": "2026-11-20T10:00:00.000Z",
        "event": "WorkflowErrorOccurred",
        "record": record,
        "engine": {"before": None, "after": engine_state(None)},
        "state": {"before": {"text": "a"}, "after": {"text": HOSTILE}},
        "effects": [{"does": "append", "record": "RecoveryDecided", "event_id": W, "rule": HOSTILE}],
    }


DOCUMENT: dict[str, Any] = {
    "replay": {"topic": "workflow.events", "policy": HOSTILE},
    "records": 1,
    "verdicts": {"differs": 1},
    "decisions": [
        {"place": "0:7", "error_type": HOSTILE, "verdict": "differs", "recorded": {HOSTILE: HOSTILE}},
        {"place": "0:8", "error_type": "E", "verdict": "same", "recorded": {}},
    ],
    "injected": [],
}


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_a_service_wrote_is_text_in_the_page() -> None:
    document = {**DOCUMENT, "steps": [step(shown().record(error(error_message=HOSTILE, step_id=HOSTILE)))]}
    text = html(document)
    page = Page(text)
    structure = {"html", "head", "body", "meta", "title", "style", "h1", "h2", "pre", "details", "summary"}
    assert page.tags == structure | {"table", "tr", "th", "td"}
    assert page.names <= {"lang", "charset", "http-equiv", "content", "class", "name"}
    assert "<script>alert(1)</script>" in page.text and "onerror=alert(1)" in page.text
    assert "\x1b" not in text and "\x00" not in text
    assert text.count('<tr class="wrong">') == 1 and text.count('<tr class="same">') == 1
    assert "default-src &#x27;none&#x27;" in text and "unsafe" not in text
    assert "\u202e" not in text, "text that is turned around reads as another"


def test_the_page_shows_ranges_decisions_with_their_evidence_and_states_on_both_sides() -> None:
    steps: list[dict[str, Any]] = []
    document = {**replayed(recorded(repaired()), steps=steps, commands=[]), "steps": steps}
    text = html(document)
    assert html(document) == text, "the same document gives the same page"
    page, [decision] = Page(text), document["decisions"]
    assert decision["evidence"] and decision["rule"]
    said = ("Ranges", "evidence", decision["rule"], "engine's state before", "engine's state after", "not_recorded")
    assert [text for text in (*said, *decision["evidence"]) if text not in page.text] == []
    style = text.split("<style>")[1].split("</style>")[0]
    assert b64encode(sha256(style.encode()).digest()).decode() in unescape(text), "no style but this one is allowed"
    assert "src=" not in text and "href" not in text and "<script" not in text


def test_every_form_holds_the_same_document() -> None:
    assert orjson.loads(written(DOCUMENT, "json")) == DOCUMENT
    assert yaml.safe_load(written(DOCUMENT, "yaml")) == DOCUMENT
    assert all(written(DOCUMENT, form) == written(DOCUMENT, form) for form in ("json", "yaml", "html"))


def test_a_step_on_a_terminal_says_what_changed_and_what_follows_and_rewrites_nothing() -> None:
    lines = list(step_lines(step({"workflow_id": W})))
    assert lines[0].startswith("0:7") and W in lines[0]
    assert any(line.startswith("  state ") and "->" in line for line in lines)
    assert lines[-1].startswith("  would append RecoveryDecided")
    assert not any("\x1b" in line or "\x00" in line or "\n" in line for line in lines)


def test_a_value_is_cut_between_characters() -> None:
    assert cut("é", 3) == {"$kintsugi": "cut", "size_bytes": 4, "text": '"é'}
    assert cut("é", 2) == {"$kintsugi": "cut", "size_bytes": 4, "text": '"'}
    assert cut("é", 4) == "é"
