"""Which channels there are, from the environment. Secrets come from variables or from files that variables name, and
are in no error: a wrong one is told by the name of its variable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from schemas.errors import ConfigError

from .channels import Channel
from .channels.email import Email, Server
from .channels.pagerduty import BASE_URL, PagerDuty
from .channels.slack import Slack

SLACK_WEBHOOK = "KINTSUGI_SLACK_WEBHOOK"
PAGERDUTY_KEY = "KINTSUGI_PAGERDUTY_KEY"
PAGERDUTY_URL = "KINTSUGI_PAGERDUTY_URL"
SMTP_URL = "KINTSUGI_SMTP_URL"
EMAIL_FROM = "KINTSUGI_EMAIL_FROM"
EMAIL_TO = "KINTSUGI_EMAIL_TO"
#: What switches each channel on.
SWITCHES = {"slack": SLACK_WEBHOOK, "email": SMTP_URL, "pagerduty": PAGERDUTY_KEY}
#: Appended to the name of a variable: the file that holds the value.
IN_FILE = "_FILE"
_SECRET_BYTES_MAX = 8 * 1024
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
#: By scheme: default port, and how the connection is secured.
_SMTP = {"smtp": (25, "offered"), "smtp+starttls": (587, "starttls"), "smtps": (465, "implicit")}
RECIPIENTS_MAX = 50


def configured(environment: Mapping[str, str]) -> list[str]:
    """Names of the channels that the environment switches on, whether or not rightly."""
    return [
        name for name, variable in SWITCHES.items() if environment.get(variable) or environment.get(variable + IN_FILE)
    ]


def channels_of(environment: Mapping[str, str], *, only: str | None = None) -> dict[str, Channel]:
    """The configured channels, by name. ConfigError names the variable, never its value."""
    makers = {"slack": _slack, "email": _email, "pagerduty": _pagerduty}
    return {name: makers[name](environment) for name in configured(environment) if only in (None, name)}


def _slack(environment: Mapping[str, str]) -> Channel:
    return Slack(_safe_url(SLACK_WEBHOOK, _secret(environment, SLACK_WEBHOOK)))


def _pagerduty(environment: Mapping[str, str]) -> Channel:
    key = _secret(environment, PAGERDUTY_KEY)
    if not (key.isascii() and key.isalnum()):
        raise ConfigError(f"{PAGERDUTY_KEY}: an integration key has letters and digits only")
    return PagerDuty(key, base_url=_safe_url(PAGERDUTY_URL, environment.get(PAGERDUTY_URL) or BASE_URL))


def _email(environment: Mapping[str, str]) -> Channel:
    sender = environment.get(EMAIL_FROM, "").strip()
    recipients = [part.strip() for part in environment.get(EMAIL_TO, "").split(",") if part.strip()]
    for variable, addresses in ((EMAIL_FROM, [sender]), (EMAIL_TO, recipients)):
        if not addresses or not all(_is_address(address) for address in addresses):
            raise ConfigError(f"{variable}: e-mail needs plain addresses, such as oncall@example.org")
    if len(recipients) > RECIPIENTS_MAX:
        raise ConfigError(
            f"{EMAIL_TO}: {len(recipients)} addresses, {RECIPIENTS_MAX} allowed: use a list of the server"
        )
    return Email(_server(_secret(environment, SMTP_URL)), sender=sender, recipients=recipients)


def _server(url: str) -> Server:
    wanted = (
        f"{SMTP_URL}: one of {', '.join(f'{scheme}://' for scheme in _SMTP)} with USER:PASSWORD@ or not, HOST, :PORT"
    )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError(wanted) from None
    if parts.scheme not in _SMTP or not parts.hostname or parts.path not in ("", "/") or parts.query:
        raise ConfigError(wanted)
    default_port, tls = _SMTP[parts.scheme]
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if tls == "offered" and user:
        # A password is not sent in clear, whatever the server does not offer; on this machine nobody else listens.
        tls = "offered" if parts.hostname in _LOOPBACK else "starttls"
    return Server(host=parts.hostname, port=port or default_port, tls=tls, user=user, password=password)


def _secret(environment: Mapping[str, str], variable: str) -> str:
    value, file = environment.get(variable), environment.get(variable + IN_FILE)
    if value and file:
        raise ConfigError(f"{variable} and {variable}{IN_FILE} are both set; one of them, please")
    if file:
        try:
            with Path(file).open("rb") as source:
                value = source.read(_SECRET_BYTES_MAX).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{variable}{IN_FILE}: the file cannot be read ({type(error).__name__})") from None
    value = (value or "").strip()
    if not value or not value.isprintable() or " " in value:
        raise ConfigError(f"{variable}: empty, or not one word")
    return value


def _safe_url(variable: str, url: str) -> str:
    try:
        parts = urlsplit(url)
        safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    except ValueError:
        safe = False
    if not safe or not parts.hostname:
        raise ConfigError(f"{variable}: an https:// URL (http:// only to this machine)")
    return url


def _is_address(text: str) -> bool:
    local, at, domain = text.rpartition("@")
    return bool(local and at and domain) and text.isascii() and text.isprintable() and not set(text) & set(' <>(),;:"')
