"""The notifier role on the real stack, with real servers in place of Slack, PagerDuty and the mail server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ops.stack import Addresses
from schemas.errors import PoisonError
from schemas.records.events import (
    IncidentChanged,
    InterventionClaimed,
    InterventionRequested,
    InterventionResolved,
    NotificationDelivered,
)
from schemas.topics import EVENTS

from ..receivers import HANG, Answer, HttpReceiver, SmtpReceiver
from ..unit.consumers.notifier.kit import incident
from .kit import Role, Topics, build, failing, stand_at_end, wait_for

WEBHOOK = "/services/T0canary/B0canary/s3cr3tcanary"
KEY = "c4n4ryc4n4ryc4n4ryc4n4ryc4n4ry00"
ALL = ("slack", "email", "pagerduty")
POLICY = str(Path(__file__).with_name("tell_people.yaml"))


@pytest.fixture
def slack() -> Iterator[HttpReceiver]:
    with HttpReceiver() as receiver:
        yield receiver


@pytest.fixture
def pagerduty() -> Iterator[HttpReceiver]:
    with HttpReceiver() as receiver:
        receiver.default = Answer(202, '{"status": "success"}')
        yield receiver


@pytest.fixture
def mail() -> Iterator[SmtpReceiver]:
    with SmtpReceiver() as receiver:
        yield receiver


@pytest.fixture
def told(
    environment: dict[str, str], slack: HttpReceiver, pagerduty: HttpReceiver, mail: SmtpReceiver, tmp_path: Path
) -> dict[str, str]:
    """Environment with all three channels; one secret comes from a file."""
    key = tmp_path / "pagerduty.key"
    key.write_text(f"{KEY}\n")
    return {
        **environment,
        "NO_PROXY": "127.0.0.1",
        "KINTSUGI_SLACK_WEBHOOK": slack.url + WEBHOOK,
        "KINTSUGI_PAGERDUTY_KEY_FILE": str(key),
        "KINTSUGI_PAGERDUTY_URL": pagerduty.url,
        "KINTSUGI_SMTP_URL": f"smtp://127.0.0.1:{mail.port}",
        "KINTSUGI_EMAIL_FROM": "kintsugi@example.org",
        "KINTSUGI_EMAIL_TO": "oncall@example.org",
    }


@pytest.fixture
def notify(told: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Role]]:
    """Starts notifiers of one group, which stands at the log's end; what still runs at the end is killed."""
    roles: list[Role] = []
    group = f"test-{uuid.uuid4()}"
    stand_at_end(told["KINTSUGI_KAFKA"], group)

    def start(crash_at: str = "", **changed: str) -> Role:
        log = tmp_path / f"notifier-{len(roles)}.log"
        roles.append(Role("notifier", {**told, **changed}, log, "--group", group, crash_at=crash_at))
        return roles[-1]

    yield start
    for role in roles:
        role.kill()


def put(topics: Topics, incident_id: str, revision: int, **fields: Any) -> IncidentChanged:
    record = incident(revision, incident_id, **fields)
    topics.put(record)
    return record


def facts(topics: Topics, *incident_ids: str) -> list[tuple[str, str, str]]:
    """(channel, kind, outcome) of what was noted, each fact once."""
    found = {fact.event_id: fact for fact in topics.events(NotificationDelivered, set(incident_ids))}
    return sorted((fact.channel, fact.kind, fact.outcome) for fact in found.values())


def everywhere(kind: str) -> list[tuple[str, str, str]]:
    return [(channel, kind, "delivered") for channel in sorted(ALL)]


def actions(pagerduty: HttpReceiver, incident_id: str) -> list[str]:
    """What PagerDuty was told of one incident."""
    return [e["event_action"] for e in pagerduty.documents() if e["dedup_key"] == f"kintsugi-{incident_id}"]


def test_each_channel_is_told_once_of_each_turn(
    topics: Topics,
    notify: Callable[..., Role],
    told: dict[str, str],
    slack: HttpReceiver,
    pagerduty: HttpReceiver,
    mail: SmtpReceiver,
    own: Addresses,
) -> None:
    role = notify()
    role.wait_log("partitions assigned")
    it = str(uuid.uuid4())
    put(topics, it, 1)
    wait_for("pages", lambda: facts(topics, it) == everywhere("trigger"))
    put(topics, it, 2, error_count=20_000)
    put(topics, it, 3, owner="ann")
    wait_for("acknowledged", lambda: len(facts(topics, it)) == 6)
    put(topics, it, 4, owner="ann", reason="escalated")
    put(topics, it, 4, owner="ann", reason="escalated")
    wait_for("escalated", lambda: len(facts(topics, it)) == 9)
    put(topics, it, 5, owner="ann", state="resolved")
    kinds = ("acknowledge", "escalate", "resolve", "trigger")
    wait_for("resolved", lambda: len(facts(topics, it)) == 12)
    assert facts(topics, it) == sorted(row for kind in kinds for row in everywhere(kind))
    assert actions(pagerduty, it) == ["trigger", "acknowledge", "trigger", "resolve"]
    headlines = [document["text"] for document in slack.documents()]
    title = "payments does not answer"
    assert headlines == [title, f"Acknowledged: {title}", f"ESCALATED: {title}", f"Resolved: {title}"]
    assert [m.message["Subject"].split("] ")[-1] for m in mail.mails] == headlines
    wait_for("no lag", lambda: role.metric("kintsugi_consumer_lag_records") == 0)
    assert role.metric("kintsugi_notifications_total", outcome="delivered") == 12
    assert role.stop() == 0
    text = role.log_file.read_text()
    assert "people told" in text
    assert all(secret not in text for secret in (WEBHOOK, "s3cr3tcanary", KEY))
    assert not any(
        "s3cr3tcanary" in str(fact) or KEY in str(fact) for fact in topics.events(NotificationDelivered, {it})
    )

    command = [sys.executable, "-m", "ops.cli", "notify", "list", "--incident", it, "--output", "json"]
    projector = Role(
        "projector", {**told, **own.environment()}, role.log_file.with_name("projector.log"), "--group", it
    )
    try:

        def listed() -> list[dict[str, Any]]:
            done = subprocess.run(
                command, env={**told, **own.environment()}, capture_output=True, check=True, timeout=60
            )
            found: list[dict[str, Any]] = json.loads(done.stdout)
            return found

        rows = wait_for("rows", lambda: found if len(found := listed()) == 12 else None)
    finally:
        projector.kill()
    assert sorted((row["channel"], row["kind"], row["outcome"]) for row in rows) == facts(topics, it)
    assert rows[0]["kind"] == "resolve"


@pytest.mark.parametrize("crash_at", ["after_write", "after_write:2", "after_write:3"])
def test_killed_in_the_middle_it_opens_no_second_page_and_closes_it_once(
    topics: Topics, notify: Callable[..., Role], pagerduty: HttpReceiver, crash_at: str
) -> None:
    """Dead between a delivery, the first to the third, and its fact."""
    its = [str(uuid.uuid4()) for _ in range(3)]
    role = notify(crash_at)
    role.wait_log("partitions assigned")
    for it in its:
        put(topics, it, 1, channels=("pagerduty",))
    wait_for(f"the crash at {crash_at}", lambda: role.process.poll() is not None)
    assert role.process.returncode == -signal.SIGKILL
    role = notify()
    wait_for("pages", lambda: facts(topics, *its) == [("pagerduty", "trigger", "delivered")] * 3)
    for it in its:
        told = actions(pagerduty, it)
        assert set(told) == {"trigger"}, "told again, it is the same page: one key"
        assert len(told) <= 2
        put(topics, it, 2, channels=("pagerduty",), state="resolved")
    wait_for("ends", lambda: Counter(kind for _, kind, _ in facts(topics, *its)) == {"trigger": 3, "resolve": 3})
    role.process.kill()
    role.process.wait()
    assert [actions(pagerduty, it)[-1] for it in its] == ["resolve"] * 3
    role = notify()
    for it in its:
        put(topics, it, 3, channels=("pagerduty",))
    wait_for("pages anew", lambda: Counter(kind for _, kind, _ in facts(topics, *its)) == {"trigger": 6, "resolve": 3})
    assert [actions(pagerduty, it).count("resolve") for it in its] == [1, 1, 1]
    assert [actions(pagerduty, it)[-2:] for it in its] == [["resolve", "trigger"]] * 3
    assert role.stop() == 0


def test_who_waits_for_a_human_pages_one_and_is_over_with_the_answer(
    topics: Topics,
    start: Callable[..., Role],
    notify: Callable[..., Role],
    slack: HttpReceiver,
    pagerduty: HttpReceiver,
) -> None:
    """Through all roles: an error that only a human can mend, who takes it, and mends it."""
    start("recovery", "--policy", POLICY).wait_log("partitions assigned")
    start("coordinator", "--policy", POLICY).wait_log("partitions assigned")
    notify().wait_log("partitions assigned")
    workflow_id = str(uuid.uuid4())
    topics.put(*failing(workflow_id, code=f"Unheard{workflow_id[:8]}"))
    (asked,) = wait_for("a request", lambda: topics.events(InterventionRequested, {workflow_id}))
    it = wait_for("an incident", lambda: incident_of(topics, workflow_id))
    wait_for("a page", lambda: actions(pagerduty, it) == ["trigger"])
    asked_id = asked.intervention_id
    topics.put(build(InterventionClaimed, workflow_id, intervention_id=asked_id, actor="ann", reason="mine"))
    wait_for("its owner", lambda: actions(pagerduty, it) == ["trigger", "acknowledge"])
    answer = {"error_id": asked.error_id, "step_id": "build", "decision": "cancel", "actor": "ann", "reason": "gone"}
    topics.put(build(InterventionResolved, workflow_id, intervention_id=asked_id, **answer))
    wait_for("its end", lambda: actions(pagerduty, it) == ["trigger", "acknowledge", "resolve"])
    # Slack takes a message a second, and the log holds other tests' incidents: what has come is in order, and once.
    messages = [d for d in slack.documents() if it in str(d)]
    beginnings = ("", "Acknowledged: ", "Resolved: ")
    assert len(messages) <= len(beginnings)
    assert all(m["text"].startswith(said) for m, said in zip(messages, beginnings, strict=False))
    assert "it failed" not in str(messages), "messages quote no error"


def incident_of(topics: Topics, workflow_id: str) -> str | None:
    """The incident that a workflow belongs to, once there is one."""
    for message in topics.read(EVENTS):
        with suppress(PoisonError):  # other tests write what nobody can read
            record = topics.codec.decode(message.value())
            if isinstance(record, IncidentChanged) and workflow_id in record.samples:
                return record.incident_id
    return None


def test_a_hung_slack_keeps_no_mail_waiting(
    topics: Topics, notify: Callable[..., Role], slack: HttpReceiver, mail: SmtpReceiver
) -> None:
    slack.default = HANG
    role = notify()
    role.wait_log("partitions assigned")
    its = [str(uuid.uuid4()) for _ in range(5)]
    for it in its:
        put(topics, it, 1, channels=("slack", "email"))
    wait_for("mails", lambda: facts(topics, *its) == [("email", "trigger", "delivered")] * 5)
    assert len(mail.mails) == 5
    assert slack.requests, "Slack was asked, and has not answered"
    assert role.metric("kintsugi_notifications_waiting", channel="slack") == 5
    wait_for("that what is not settled is not committed", lambda: role.metric("kintsugi_consumer_lag_records") > 0)
    assert role.stop() == 0, "a hung request does not keep the process"
    slack.default = Answer(200, "ok")
    role = notify()
    wait_for("Slack", lambda: len(facts(topics, *its)) == 10)
    assert len(mail.mails) == 5, "the next owner tells what is missing and nothing else"
    assert role.stop() == 0


def test_without_a_channel_it_says_that_nobody_was_told(topics: Topics, notify: Callable[..., Role]) -> None:
    role = notify(KINTSUGI_SLACK_WEBHOOK="", KINTSUGI_PAGERDUTY_KEY_FILE="", KINTSUGI_SMTP_URL="")
    role.wait_log("no channel")
    role.wait_log("partitions assigned")
    it = str(uuid.uuid4())
    put(topics, it, 1, channels=("slack",))
    wait_for("a fact", lambda: facts(topics, it) == [("slack", "trigger", "given_up")])
    role.wait_log("people not told", incident_id=it, reason="not configured here")
    assert role.stop() == 0


def command(told: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "ops.cli", "notify", *arguments]
    return subprocess.run(line, env=told, capture_output=True, text=True, timeout=60, check=False)


def test_a_channel_can_be_tried(
    told: dict[str, str], slack: HttpReceiver, pagerduty: HttpReceiver, mail: SmtpReceiver
) -> None:
    done = [command(told, "test", channel) for channel in ALL]
    assert [(d.returncode, d.stdout.splitlines()) for d in done[:2]] == [
        (0, ["slack: 200 ok"]),
        (0, ["email: taken for 1 of 1 addresses"]),
    ]
    assert done[2].stdout.startswith("pagerduty: trigger: 202")
    assert slack.documents()[0]["text"].startswith("TEST, nothing is wrong")
    assert "TEST, nothing is wrong" in mail.mails[0].message["Subject"]
    assert [e["event_action"] for e in pagerduty.documents()] == ["trigger", "resolve"]


def test_a_channel_that_cannot_be_tried_says_why(told: dict[str, str], slack: HttpReceiver) -> None:
    slack.default = Answer(403, "invalid_token")
    refused = command(told, "test", "slack")
    assert refused.returncode == 1
    assert "slack answered 403 invalid_token" in refused.stderr
    assert "check KINTSUGI_SLACK_WEBHOOK" in refused.stderr
    off = command({**told, "KINTSUGI_SLACK_WEBHOOK": ""}, "test", "slack")
    assert off.returncode == 1
    assert "set KINTSUGI_SLACK_WEBHOOK or KINTSUGI_SLACK_WEBHOOK_FILE" in off.stderr
    wrong = command({**told, "KINTSUGI_SLACK_WEBHOOK": f"http://hooks.example.org{WEBHOOK}"}, "test", "slack")
    assert wrong.returncode == 1
    assert "KINTSUGI_SLACK_WEBHOOK: an https:// URL" in wrong.stderr
    slack.default = Answer(500, "")
    assert command(told, "test", "slack").returncode == 75
    for done in (refused, off, wrong):
        assert "s3cr3tcanary" not in done.stderr + done.stdout
