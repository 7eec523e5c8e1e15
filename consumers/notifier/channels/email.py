"""E-mail through one SMTP server, as plain text.

All messages about an incident belong to one thread, and a message that is sent twice has one Message-ID, by which most
readers show it once.
"""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import formatdate

from ..notice import Notice, clean
from . import IO_TIMEOUT_S, ChannelAwayError, ChannelRefusedError

_SUBJECT_CHARS_MAX = 160
#: SMTP's replies from here on are final.
_PERMANENT = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """How to reach the server. `tls`: "starttls" (must be offered), "implicit", "offered" (if it is), "never"."""

    host: str
    port: int
    tls: str = "offered"
    user: str = ""
    password: str = field(default="", repr=False)


class Email:
    """Sends to a fixed list of addresses."""

    name = "email"
    keyed = False
    #: People read them: more at once would be one that says less.
    rate_per_s = 1.0
    burst = 10

    def __init__(
        self, server: Server, *, sender: str, recipients: Sequence[str], timeout_s: float = IO_TIMEOUT_S
    ) -> None:
        self._server = server
        self._sender = sender
        self._recipients = tuple(recipients)
        self._timeout_s = timeout_s

    def send(self, notice: Notice) -> str:
        """Send one message over a connection of its own."""
        message = message_of(notice, self._sender, self._recipients)
        with _told(), self._connected() as connection:
            refused = connection.send_message(message, self._sender, self._recipients)
        taken = len(self._recipients) - len(refused)
        return f"taken for {taken} of {len(self._recipients)} addresses"

    def close(self) -> None:
        """Nothing is kept open."""

    @contextmanager
    def _connected(self) -> Iterator[smtplib.SMTP]:
        at = self._server
        context = ssl.create_default_context()
        connection: smtplib.SMTP
        if at.tls == "implicit":
            connection = smtplib.SMTP_SSL(at.host, at.port, timeout=self._timeout_s, context=context)
        else:
            connection = smtplib.SMTP(at.host, at.port, timeout=self._timeout_s)
        with connection:
            if at.tls in ("starttls", "offered"):
                connection.ehlo()
                if connection.has_extn("starttls"):
                    connection.starttls(context=context)
                elif at.tls == "starttls":
                    raise ChannelRefusedError("email: the server offers no STARTTLS, and without it nothing is sent")
            if at.user:
                connection.login(at.user, at.password)
            yield connection


@contextmanager
def _told() -> Iterator[None]:
    """The server's replies by their numbers alone: their texts quote addresses and logins."""
    try:
        yield
    except smtplib.SMTPRecipientsRefused as error:
        codes = sorted({code for code, _ in error.recipients.values()})
        text = f"email: no address was taken ({', '.join(map(str, codes))})"
        raise (ChannelRefusedError if codes[:1] >= [_PERMANENT] else ChannelAwayError)(text) from None
    except smtplib.SMTPAuthenticationError as error:
        text = f"email: the login was not taken ({error.smtp_code})"
        raise (ChannelRefusedError if error.smtp_code >= _PERMANENT else ChannelAwayError)(text) from None
    except smtplib.SMTPResponseException as error:
        text = f"email: the server answered {error.smtp_code} ({type(error).__name__})"
        raise (ChannelRefusedError if error.smtp_code >= _PERMANENT else ChannelAwayError)(text) from None
    except smtplib.SMTPNotSupportedError:
        raise ChannelRefusedError("email: the server offers no way to log in that is known here") from None
    except (smtplib.SMTPException, OSError) as error:
        raise ChannelAwayError(f"email: no answer ({type(error).__name__})") from None


def message_of(notice: Notice, sender: str, recipients: Sequence[str]) -> EmailMessage:
    """The message. Its headers hold cleaned texts alone; Python refuses line ends in them besides."""
    message = EmailMessage()
    message["From"] = sender
    message["To"] = ", ".join(recipients)
    message["Subject"] = clean(f"[Kintsugi] [{notice.severity}] {notice.headline}", _SUBJECT_CHARS_MAX)
    message["Date"] = formatdate()
    message["Message-ID"] = f"<{notice.notification_id}@kintsugi>"
    message["References"] = f"<{notice.incident_id}@kintsugi>"
    message["Auto-Submitted"] = "auto-generated"
    width = max(len(label) for label, _ in notice.facts)
    lines = [notice.headline, "", *(f"{label:{width}}  {text}" for label, text in notice.facts), "", notice.command]
    message.set_content("\n".join(lines) + "\n")
    return message
