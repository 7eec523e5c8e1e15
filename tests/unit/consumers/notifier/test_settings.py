"""Which channels an environment means; a wrong one is told by its variable, and its value by nobody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from consumers.notifier.channels.email import Email
from consumers.notifier.notice import TRIED_MAX, clean, notice_of, raised
from consumers.notifier.settings import channels_of, configured
from schemas.errors import ConfigError

from .kit import incident

MAIL = {"KINTSUGI_EMAIL_FROM": "kintsugi@example.org", "KINTSUGI_EMAIL_TO": "a@example.org, b@example.org"}
CANARY = "c4n4ry"


def server_of(url: str) -> str:
    channel = channels_of({"KINTSUGI_SMTP_URL": url, **MAIL})["email"]
    assert isinstance(channel, Email)
    at = channel._server
    return f"{at.host} {at.port} {at.tls} {at.user} {at.password}".rstrip()


def test_nothing_is_configured_by_itself() -> None:
    assert channels_of({}) == {}
    assert configured({"KINTSUGI_SLACK_WEBHOOK": ""}) == []


def test_all_three(tmp_path: Path) -> None:
    file = tmp_path / "webhook"
    file.write_text("https://hooks.example.org/services/T/B/x\n")
    environment = {
        "KINTSUGI_SLACK_WEBHOOK_FILE": str(file),
        "KINTSUGI_PAGERDUTY_KEY": "0123456789abcdef0123456789abcdef",
        "KINTSUGI_SMTP_URL": "smtp://mail.example.org",
        **MAIL,
    }
    found = channels_of(environment)
    assert list(found) == configured(environment) == ["slack", "email", "pagerduty"]
    assert list(channels_of(environment, only="email")) == ["email"]
    for channel in found.values():
        channel.close()


@pytest.mark.parametrize(
    ("url", "means"),
    [
        ("smtp://mail.example.org", "mail.example.org 25 offered"),
        ("smtp://mail.example.org:2525", "mail.example.org 2525 offered"),
        ("smtp+starttls://me:p%40ss@mail.example.org", "mail.example.org 587 starttls me p@ss"),
        ("smtps://me:pass@mail.example.org", "mail.example.org 465 implicit me pass"),
        ("smtp://me:pass@mail.example.org", "mail.example.org 25 starttls me pass"),
        ("smtp://me:pass@127.0.0.1:25", "127.0.0.1 25 offered me pass"),
    ],
)
def test_a_mail_server_and_how_it_is_reached(url: str, means: str) -> None:
    assert server_of(url) == means


@pytest.mark.parametrize(
    ("environment", "variable"),
    [
        ({"KINTSUGI_SLACK_WEBHOOK": f"http://hooks.example.org/{CANARY}"}, "KINTSUGI_SLACK_WEBHOOK"),
        ({"KINTSUGI_SLACK_WEBHOOK": f"{CANARY}"}, "KINTSUGI_SLACK_WEBHOOK"),
        ({"KINTSUGI_SLACK_WEBHOOK": f"https://[{CANARY}"}, "KINTSUGI_SLACK_WEBHOOK"),
        ({"KINTSUGI_SLACK_WEBHOOK": f"https://a/{CANARY}\nb"}, "KINTSUGI_SLACK_WEBHOOK"),
        ({"KINTSUGI_SLACK_WEBHOOK": CANARY, "KINTSUGI_SLACK_WEBHOOK_FILE": CANARY}, "KINTSUGI_SLACK_WEBHOOK"),
        ({"KINTSUGI_SLACK_WEBHOOK_FILE": f"/nonexistent/{CANARY}"}, "KINTSUGI_SLACK_WEBHOOK_FILE"),
        ({"KINTSUGI_PAGERDUTY_KEY": f"{CANARY}-1"}, "KINTSUGI_PAGERDUTY_KEY"),
        ({"KINTSUGI_PAGERDUTY_KEY": CANARY, "KINTSUGI_PAGERDUTY_URL": "http://e.org"}, "KINTSUGI_PAGERDUTY_URL"),
        ({"KINTSUGI_SMTP_URL": f"http://me:{CANARY}@mail.example.org", **MAIL}, "KINTSUGI_SMTP_URL"),
        ({"KINTSUGI_SMTP_URL": f"smtp://me:{CANARY}@mail.example.org:99999", **MAIL}, "KINTSUGI_SMTP_URL"),
        ({"KINTSUGI_SMTP_URL": f"smtp://mail.example.org/{CANARY}", **MAIL}, "KINTSUGI_SMTP_URL"),
        ({"KINTSUGI_SMTP_URL": "smtp://mail.example.org", "KINTSUGI_EMAIL_TO": "a@b"}, "KINTSUGI_EMAIL_FROM"),
        ({"KINTSUGI_SMTP_URL": "smtp://mail.example.org", "KINTSUGI_EMAIL_FROM": "a@b"}, "KINTSUGI_EMAIL_TO"),
        ({**MAIL, "KINTSUGI_SMTP_URL": "smtp://m", "KINTSUGI_EMAIL_TO": "a@b\nBcc: c@d"}, "KINTSUGI_EMAIL_TO"),
        ({**MAIL, "KINTSUGI_SMTP_URL": "smtp://m", "KINTSUGI_EMAIL_TO": "a@b," * 51}, "KINTSUGI_EMAIL_TO"),
    ],
)
def test_what_is_wrong_is_named_and_not_quoted(environment: dict[str, str], variable: str) -> None:
    with pytest.raises(ConfigError, match=variable) as caught:
        channels_of(environment)
    assert CANARY not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\r\nBcc: b", "a Bcc: b"),
        ("a\x00\x1b[31mb\x7f", "a [31mb"),
        ("a\u2028b\u202ec", "a b c"),
        ("\ud800", ""),
        ("x" * 300, "x" * 199 + "…"),
        ("für alle 🔥", "für alle 🔥"),
    ],
)
def test_texts_are_one_line_of_what_can_be_seen(text: str, shown: str) -> None:
    assert clean(text) == shown


def test_an_escalation_is_one_step_worse() -> None:
    assert [raised(s) for s in ("low", "medium", "high", "critical", "odd")] == [
        "medium", "high", "critical", "critical", "critical",
    ]  # fmt: skip


def told(tried: str) -> str | None:
    return dict(notice_of(incident(tried=tried), "trigger", "n").facts).get("Tried")


def test_a_message_says_what_was_tried() -> None:
    rows = [{"strategy": f"s{n}\u202e", "succeeded": n, "failed": 1} for n in range(TRIED_MAX + 2)]
    some = "; ".join(f"s{n} {n} of {n + 1} succeeded" for n in range(TRIED_MAX))
    assert told(json.dumps(rows[:TRIED_MAX])) == some
    assert told(json.dumps(rows)) == f"{some}; and 2 more"


@pytest.mark.parametrize("tried", ["[]", "", "no JSON", "[1]", "null", '[{"strategy": "a"}]', "[" * 100_000])
def test_of_what_was_not_tried_a_message_says_nothing(tried: str) -> None:
    assert told(tried) is None


def test_a_message_quotes_no_note_and_no_reason() -> None:
    """People write those, and may paste what an error said."""
    record = incident(note="pasted: canary", reason="pasted: canary", samples=("w",) * 100)
    notice = notice_of(record, "trigger", "00000000-0000-4000-8000-00000000000c")
    assert "canary" not in repr(notice)
    assert dict(notice.facts)["For example"] == "w, w, w"
    assert dict(notice.facts)["First seen"] == "2027-01-15 08:00:00 UTC"
