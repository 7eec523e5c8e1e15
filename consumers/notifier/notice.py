"""What people are told: short, in words of ours, without anything that an error or a state said.

Texts of a record are cleaned: one line, bounded, no control characters, so that none begins a header or hides another.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from schemas.records.events import IncidentChanged

TRIGGER, ACKNOWLEDGE, RESOLVE, ESCALATE, TEST = "trigger", "acknowledge", "resolve", "escalate", "test"
#: From the mildest to the worst.
SEVERITIES = ("low", "medium", "high", "critical")
TITLE_CHARS_MAX = 120
TEXT_CHARS_MAX = 200
SAMPLES_MAX = 3
#: Strategies that a message names, those that were tried most often; `kintsugi incidents show` has all.
TRIED_MAX = 5
NAME_CHARS_MAX = 60
#: PagerDuty's limit is 255 characters; this and an id are 45.
DEDUP_PREFIX = "kintsugi-"
#: Control and format characters (direction marks and the like, which change how the rest is shown), and line ends.
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]+")
_SAID = {
    TRIGGER: "",
    ACKNOWLEDGE: "Acknowledged: ",
    RESOLVE: "Resolved: ",
    ESCALATE: "ESCALATED: ",
    TEST: "TEST, nothing is wrong: ",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One message, before a channel gives it its form. `facts` are (label, text) in the order to be shown."""

    notification_id: str
    incident_id: str
    kind: str
    title: str
    severity: str
    facts: tuple[tuple[str, str], ...]
    command: str
    error_type: str = ""
    dependency: str = ""

    @property
    def headline(self) -> str:
        """The title, with what this message is about it."""
        return _SAID[self.kind] + self.title

    @property
    def dedup_key(self) -> str:
        """The same for all messages about one incident."""
        return DEDUP_PREFIX + self.incident_id


def clean(text: str, chars_max: int = TEXT_CHARS_MAX) -> str:
    """One line without unseen characters, no longer than allowed."""
    line = " ".join(_UNSEEN.sub(" ", text).split())
    return line if len(line) <= chars_max else line[: chars_max - 1] + "…"


def raised(severity: str) -> str:
    """One step worse; the worst stays."""
    found = SEVERITIES.index(severity) if severity in SEVERITIES else SEVERITIES.index("high")
    return SEVERITIES[min(found + 1, len(SEVERITIES) - 1)]


def notice_of(record: IncidentChanged, kind: str, notification_id: str) -> Notice:
    """A message about an incident as it stands."""
    severity = clean(record.severity.lower())
    if kind == ESCALATE:
        severity = raised(severity)
    facts = [
        ("Severity", severity),
        ("State", clean(record.state)),
        ("Workflows affected", str(record.affected_count)),
        ("Errors", str(record.error_count)),
        ("Wait for a human", str(record.interventions)),
        ("Tried", _tried(record.tried)),
        ("Error type", clean(record.error_type)),
        ("Dependency", clean(record.dependency or "")),
        ("First seen", _time(record.first_seen_at)),
        ("Last seen", _time(record.last_seen_at)),
        ("Looked after by", clean(record.owner or "")),
        ("For example", ", ".join(clean(sample) for sample in record.samples[:SAMPLES_MAX])),
    ]
    return Notice(
        notification_id=notification_id,
        incident_id=record.incident_id,
        kind=kind,
        title=clean(record.title, TITLE_CHARS_MAX) or "an incident",
        severity=severity,
        facts=tuple((label, text) for label, text in facts if text),
        command=f"kintsugi incidents show {record.incident_id}",
        error_type=clean(record.error_type),
        dependency=clean(record.dependency or ""),
    )


def _tried(text: str) -> str:
    """Each strategy with how often it succeeded, what was tried most often first."""
    try:
        rows = [(str(r["strategy"]), int(r["succeeded"]), int(r["failed"])) for r in json.loads(text)]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    told = [f"{clean(name, NAME_CHARS_MAX)} {good} of {good + bad} succeeded" for name, good, bad in rows[:TRIED_MAX]]
    return "; ".join(told) + (f"; and {len(rows) - TRIED_MAX} more" if len(rows) > TRIED_MAX else "")


def trial_notice(notification_id: str, actor: str) -> Notice:
    """A message that says of itself that it is none."""
    return Notice(
        notification_id=notification_id,
        incident_id=f"test-{notification_id}",
        kind=TEST,
        title="Kintsugi can reach you here",
        severity="low",
        facts=(("Sent by", clean(actor)), ("Sent at", _time(_now_us()))),
        command="kintsugi notify list",
        error_type="test",
    )


def _now_us() -> int:
    return int(datetime.now(UTC).timestamp() * 1_000_000)


def _time(us: int) -> str:
    return datetime.fromtimestamp(us / 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
