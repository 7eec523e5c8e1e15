"""PagerDuty's Events API, version 2. All events of an incident have one dedup key, so it is one page however often
it is told."""

from __future__ import annotations

from typing import Any

from ..notice import ACKNOWLEDGE, ESCALATE, RESOLVE, TEST, TRIGGER, Notice
from . import IO_TIMEOUT_S
from .http import Poster

#: Where events go; customers in Europe have another host.
BASE_URL = "https://events.pagerduty.com"
_PATH = "/v2/enqueue"
_ACTIONS = {TRIGGER: "trigger", ESCALATE: "trigger", TEST: "trigger", ACKNOWLEDGE: "acknowledge", RESOLVE: "resolve"}
_SEVERITIES = {"critical": "critical", "high": "error", "medium": "warning", "low": "info"}


class PagerDuty:
    """Sends events with one integration key."""

    name = "pagerduty"
    keyed = True
    #: An integration takes 120 events a minute.
    rate_per_s = 2.0
    burst = 20

    def __init__(self, key: str, *, base_url: str = BASE_URL, timeout_s: float = IO_TIMEOUT_S) -> None:
        self._key = key
        self._poster = Poster(self.name, base_url.rstrip("/") + _PATH, (key,), timeout_s=timeout_s)

    def send(self, notice: Notice) -> str:
        """Send one event. A test is resolved at once, so that nobody stays paged."""
        answer = self._poster.post(event_of(notice, self._key))
        if notice.kind == TEST:
            resolved = self._poster.post(self._event("resolve", notice.dedup_key))
            return f"trigger: {answer}; resolve: {resolved}"
        return answer

    def close(self) -> None:
        """Close connections."""
        self._poster.close()

    def _event(self, action: str, dedup_key: str) -> dict[str, Any]:
        return {"routing_key": self._key, "event_action": action, "dedup_key": dedup_key}


def event_of(notice: Notice, key: str) -> dict[str, Any]:
    """The event as PagerDuty wants it; only a trigger says what is the matter."""
    action = _ACTIONS[notice.kind]
    event: dict[str, Any] = {"routing_key": key, "event_action": action, "dedup_key": notice.dedup_key}
    if action != "trigger":
        return event
    payload = {
        "summary": notice.headline,
        "source": "kintsugi",
        "severity": _SEVERITIES.get(notice.severity, "error"),
        "class": notice.error_type,
        "custom_details": {**dict(notice.facts), "Command": notice.command},
    }
    if notice.dependency:
        payload["component"] = notice.dependency
    return {**event, "client": "Kintsugi", "payload": payload}
