"""Slack's incoming webhooks. They know no dedup key: what is sent twice is shown twice."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from ..notice import Notice
from . import IO_TIMEOUT_S
from .http import Poster

#: Slack's limits of a header and of the fields of one section.
_HEADER_CHARS_MAX = 150
_FIELDS_MAX = 10


class Slack:
    """Posts to one webhook."""

    name = "slack"
    keyed = False
    #: Slack allows one message a second for each webhook, and short bursts.
    rate_per_s = 1.0
    burst = 5

    def __init__(self, webhook: str, *, timeout_s: float = IO_TIMEOUT_S) -> None:
        path = urlsplit(webhook).path
        secrets = (webhook, path, path.lstrip("/"), path.rsplit("/", 1)[-1])
        self._poster = Poster(self.name, webhook, secrets, timeout_s=timeout_s)

    def send(self, notice: Notice) -> str:
        """Post one message."""
        return self._poster.post(message_of(notice))

    def close(self) -> None:
        """Close connections."""
        self._poster.close()


def message_of(notice: Notice) -> dict[str, Any]:
    """The message as Slack's blocks. `verbatim` and the escapes keep a text from linking or calling anybody."""
    fields = [_mrkdwn(f"*{label}*\n{escaped(text)}") for label, text in notice.facts]
    headline = notice.headline[:_HEADER_CHARS_MAX]
    return {
        "text": escaped(notice.headline),
        "unfurl_links": False,
        "unfurl_media": False,
        "blocks": [
            {"type": "header", "text": {"type": "plain_text", "text": headline, "emoji": False}},
            *(
                {"type": "section", "fields": fields[at : at + _FIELDS_MAX]}
                for at in range(0, len(fields), _FIELDS_MAX)
            ),
            {"type": "section", "text": _mrkdwn(f"`{escaped(notice.command)}`")},
        ],
    }


def escaped(text: str) -> str:
    """Slack's three control characters, as it wants them."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _mrkdwn(text: str) -> dict[str, Any]:
    return {"type": "mrkdwn", "text": text, "verbatim": True}
