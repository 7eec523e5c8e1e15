"""What each channel sends to a real server, and what it makes of the answers."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from consumers.notifier.channels import Channel, ChannelAwayError, ChannelRefusedError
from consumers.notifier.channels.email import Email, Server
from consumers.notifier.channels.pagerduty import PagerDuty
from consumers.notifier.channels.slack import Slack
from consumers.notifier.notice import DEDUP_PREFIX, notice_of, trial_notice
from schemas.errors import KintsugiError

from ....receivers import ECHO, HANG, RESET, Answer, HttpReceiver, SmtpReceiver
from .kit import INCIDENT, incident

SECRET = "T0canary0/B0canary0/s3cr3tcanary"
KEY = "c4n4ryc4n4ryc4n4ryc4n4ryc4n4ry00"
NOTIFICATION = "00000000-0000-4000-8000-00000000000c"
SHORT_S = 0.3
EVIL = "down\r\nBcc: all@example.org\r\n\r\n<!channel> <https://evil.example|click> & \u202egnp"


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def http() -> Iterator[HttpReceiver]:
    with HttpReceiver() as receiver:
        yield receiver


def slack(http: HttpReceiver) -> Slack:
    return Slack(f"{http.url}/services/{SECRET}", timeout_s=SHORT_S)


def pagerduty(http: HttpReceiver) -> PagerDuty:
    return PagerDuty(KEY, base_url=http.url, timeout_s=SHORT_S)


def test_slack_gets_title_counts_and_the_equal_command(http: HttpReceiver) -> None:
    assert slack(http).send(notice_of(incident(), "trigger", NOTIFICATION)) == "200 ok"
    (request,) = http.requests
    assert request.path == f"/services/{SECRET}"
    header, *facts, command = request.document["blocks"]
    assert header["text"] == {"type": "plain_text", "text": "payments does not answer", "emoji": False}
    texts = [field["text"] for section in facts for field in section["fields"]]
    assert all(len(section["fields"]) <= 10 for section in facts), "Slack refuses more"
    assert "*Tried*\nretry_step 2 of 40 succeeded" in texts
    assert "*Workflows affected*\n9000" in texts
    assert "*Errors*\n10000" in texts
    assert command["text"]["text"] == f"`kintsugi incidents show {INCIDENT}`"


def test_slack_is_given_no_text_that_links_or_calls_anybody(http: HttpReceiver) -> None:
    slack(http).send(notice_of(incident(title=EVIL, dependency=EVIL), "escalate", NOTIFICATION))
    (document,) = http.documents()
    assert document["text"].startswith("ESCALATED: down Bcc: all@example.org &lt;!channel&gt; &lt;https://")
    blocks = document["blocks"]
    shown = [field for block in blocks[1:] for field in (*block.get("fields", ()), block.get("text")) if field]
    assert all(text["verbatim"] for text in shown)
    assert not any("<" in text["text"] or ">" in text["text"] or "\u202e" in text["text"] for text in shown)
    assert "\n" not in blocks[0]["text"]["text"]


def test_pagerduty_gets_one_dedup_key_for_all_of_an_incident(http: HttpReceiver) -> None:
    channel = pagerduty(http)
    for kind in ("trigger", "escalate", "acknowledge", "resolve"):
        channel.send(notice_of(incident(), kind, NOTIFICATION))
    events = http.documents()
    assert [event["event_action"] for event in events] == ["trigger", "trigger", "acknowledge", "resolve"]
    assert {event["dedup_key"] for event in events} == {f"{DEDUP_PREFIX}{INCIDENT}"}
    assert len(events[0]["dedup_key"]) <= 255
    assert {event["routing_key"] for event in events} == {KEY}
    assert [event["payload"]["severity"] for event in events[:2]] == ["error", "critical"]
    assert events[0]["payload"]["summary"] == "payments does not answer"
    assert events[0]["payload"]["component"] == "payments"
    assert events[0]["payload"]["custom_details"]["Tried"] == "retry_step 2 of 40 succeeded"
    assert events[0]["payload"]["custom_details"]["Command"] == f"kintsugi incidents show {INCIDENT}"
    assert all("payload" not in event for event in events[2:])
    assert {request.path for request in http.requests} == {"/v2/enqueue"}


@pytest.mark.parametrize(
    ("severity", "sent"), [("critical", "critical"), ("HIGH", "error"), ("medium", "warning"), ("low", "info")]
)
def test_severities_are_pagerdutys(http: HttpReceiver, severity: str, sent: str) -> None:
    pagerduty(http).send(notice_of(incident(severity=severity), "trigger", NOTIFICATION))
    assert http.documents()[0]["payload"]["severity"] == sent


def test_a_test_of_pagerduty_leaves_nobody_paged(http: HttpReceiver) -> None:
    pagerduty(http).send(trial_notice(NOTIFICATION, "me"))
    trigger, resolve = http.documents()
    assert (trigger["event_action"], resolve["event_action"]) == ("trigger", "resolve")
    assert trigger["dedup_key"] == resolve["dedup_key"]
    assert trigger["payload"]["summary"].startswith("TEST, nothing is wrong")
    assert trigger["payload"]["severity"] == "info"


@pytest.mark.parametrize("make", [slack, pagerduty])
@pytest.mark.parametrize("answer", [Answer(500), Answer(503), Answer(429), Answer(408), HANG, RESET])
def test_what_passes_is_tried_again(http: HttpReceiver, make: type, answer: Answer | str) -> None:
    http.answers.append(answer)
    channel = make(http)
    with pytest.raises(ChannelAwayError):
        channel.send(notice_of(incident(), "trigger", NOTIFICATION))
    assert channel.send(notice_of(incident(), "trigger", NOTIFICATION)) == "200 ok"


@pytest.mark.parametrize("status", [302, 400, 403, 404, 410])
def test_what_is_refused_is_not_tried_again(http: HttpReceiver, status: int) -> None:
    http.default = Answer(status, "invalid_payload", {"location": f"{http.url}/elsewhere"})
    with pytest.raises(ChannelRefusedError, match=f"slack answered {status} invalid_payload"):
        slack(http).send(notice_of(incident(), "trigger", NOTIFICATION))
    assert len(http.requests) == 1


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("7", 7, 7),
        ("0.5", 0.5, 0.5),
        ("-3", 0, 0),
    ],
    ids=["seconds", "parts of a second", "in the past"],
)
def test_the_channel_says_when_to_come_again(http: HttpReceiver, value: str, least: float, most: float) -> None:
    http.default = Answer(429, "rate_limited", {"retry-after": value})
    with pytest.raises(ChannelAwayError) as caught:
        slack(http).send(notice_of(incident(), "trigger", NOTIFICATION))
    assert caught.value.retry_after_s is not None
    assert least <= caught.value.retry_after_s <= most


def test_the_channel_says_until_which_date(http: HttpReceiver) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    http.default = Answer(429, "rate_limited", {"retry-after": date})
    with pytest.raises(ChannelAwayError) as caught:
        slack(http).send(notice_of(incident(), "trigger", NOTIFICATION))
    assert caught.value.retry_after_s is not None
    # The clock of the machine went on between the two readings.
    assert 0 < caught.value.retry_after_s <= timedelta(hours=1).total_seconds()


def test_a_word_that_is_no_time_is_none(http: HttpReceiver) -> None:
    http.default = Answer(429, "", {"retry-after": "soon"})
    with pytest.raises(ChannelAwayError) as caught:
        slack(http).send(notice_of(incident(), "trigger", NOTIFICATION))
    assert caught.value.retry_after_s is None


def everything_said(error: BaseException) -> str:
    """All that a careless handler could print of an error."""
    found = f"{error} {error!r} {error.args} {error.__dict__}"
    for inner in (error.__cause__, None if error.__suppress_context__ else error.__context__):
        found += everything_said(inner) if inner is not None else ""
    return found


@pytest.mark.parametrize(("make", "secret"), [(slack, SECRET), (slack, SECRET.rsplit("/", 1)[1]), (pagerduty, KEY)])
@pytest.mark.parametrize("trouble", [ECHO, RESET, HANG, "quotes"])
def test_no_error_holds_the_address_or_the_key(http: HttpReceiver, make: type, secret: str, trouble: str) -> None:
    http.default = Answer(500, f"no such thing: {secret}") if trouble == "quotes" else trouble
    with pytest.raises(KintsugiError) as caught:
        make(http).send(notice_of(incident(), "trigger", NOTIFICATION))
    assert secret not in everything_said(caught.value)
    assert trouble != "quotes" or "[secret]" in str(caught.value)


def email(port: int, tls: str = "offered", **options: str) -> Email:
    server = Server(host="127.0.0.1", port=port, tls=tls, **options)
    return Email(
        server, sender="kintsugi@example.org", recipients=("a@example.org", "b@example.org"), timeout_s=SHORT_S
    )


def test_mail_goes_to_all_addresses_as_plain_text() -> None:
    with SmtpReceiver() as smtp:
        assert email(smtp.port).send(notice_of(incident(), "trigger", NOTIFICATION)) == "taken for 2 of 2 addresses"
    (mail,) = smtp.mails
    assert (mail.sender, mail.recipients) == ("kintsugi@example.org", ("a@example.org", "b@example.org"))
    message = mail.message
    assert message["Subject"] == "[Kintsugi] [high] payments does not answer"
    assert message["Message-ID"] == f"<{NOTIFICATION}@kintsugi>", "the same for one that is sent twice"
    assert message["References"] == f"<{INCIDENT}@kintsugi>"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message.get_content_type() == "text/plain"
    assert message.get_content().splitlines()[-1] == f"kintsugi incidents show {INCIDENT}"


def test_no_text_begins_a_header() -> None:
    with SmtpReceiver() as smtp:
        email(smtp.port).send(notice_of(incident(title=EVIL, severity=EVIL, state=EVIL), "resolve", NOTIFICATION))
    (mail,) = smtp.mails
    assert mail.recipients == ("a@example.org", "b@example.org")
    assert mail.message["Bcc"] is None
    assert "Resolved: down Bcc: all@example.org" in mail.message["Subject"]


@pytest.mark.parametrize(
    ("verb", "reply", "error"),
    [
        ("MAIL", "451 later", ChannelAwayError),
        ("DATA", "452 full", ChannelAwayError),
        ("RCPT", "450 busy", ChannelAwayError),
        ("RCPT", "550 unknown", ChannelRefusedError),
        ("MAIL", "553 not you", ChannelRefusedError),
        ("DATA", "554 no", ChannelRefusedError),
    ],
)
def test_replies_of_the_mail_server(verb: str, reply: str, error: type[KintsugiError]) -> None:
    with SmtpReceiver() as smtp:
        smtp.codes[verb] = reply
        with pytest.raises(error, match=reply[:3]):
            email(smtp.port).send(notice_of(incident(), "trigger", NOTIFICATION))
        del smtp.codes[verb]
        email(smtp.port).send(notice_of(incident(), "trigger", NOTIFICATION))
    assert len(smtp.mails) == 1


def test_a_mail_server_that_is_not_there_is_away() -> None:
    with SmtpReceiver() as smtp:
        port = smtp.port
    with pytest.raises(ChannelAwayError, match="ConnectionRefusedError"):
        email(port).send(notice_of(incident(), "trigger", NOTIFICATION))


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A certificate for 127.0.0.1 that this process trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "server.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(file)
    return made


def test_a_login_goes_over_starttls(context: ssl.SSLContext) -> None:
    with SmtpReceiver(context=context, login=True) as smtp:
        channel: Channel = email(smtp.port, "starttls", user="kintsugi", password="canary-password")
        channel.send(notice_of(incident(), "trigger", NOTIFICATION))
    (mail,) = smtp.mails
    assert mail.secured
    assert mail.login is not None
    assert base64.b64decode(mail.login) == b"\0kintsugi\0canary-password"


def test_without_starttls_no_password_is_sent() -> None:
    with SmtpReceiver(login=True) as smtp:
        with pytest.raises(ChannelRefusedError, match="no STARTTLS"):
            email(smtp.port, "starttls", user="kintsugi", password="canary-password").send(
                notice_of(incident(), "trigger", NOTIFICATION)
            )
        assert smtp.mails == []


def test_a_certificate_of_a_stranger_is_not_trusted(context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with SmtpReceiver(context=context) as smtp:
        with pytest.raises(ChannelAwayError, match="SSLCertVerificationError"):
            email(smtp.port, "starttls").send(notice_of(incident(), "trigger", NOTIFICATION))
        assert smtp.mails == []


def test_a_refused_login_says_nothing_of_it() -> None:
    with SmtpReceiver(login=True) as smtp:
        smtp.codes["AUTH"] = "535 canary-user canary-password"
        with pytest.raises(ChannelRefusedError, match="535") as caught:
            email(smtp.port, user="canary-user", password="canary-password").send(
                notice_of(incident(), "trigger", NOTIFICATION)
            )
    assert "canary" not in everything_said(caught.value)
    assert "canary" not in repr(Server(host="h", port=1, password="canary"))
