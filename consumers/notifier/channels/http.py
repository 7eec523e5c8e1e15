"""One POST of JSON: bounded in time and in what is read, and silent about the address, which is a secret."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
import orjson

from ..notice import clean
from . import ANSWER_CHARS_MAX, IO_TIMEOUT_S, ChannelAwayError, ChannelRefusedError

#: More than this of an answer says nothing to anybody.
_ANSWER_BYTES_MAX = 16 * 1024
#: An answer that comes byte by byte is cut off here, whatever the timeout of a single read.
_WHOLE_TIMEOUT_S = 2 * IO_TIMEOUT_S
#: Of a client's errors, those that are about the moment: timeout, too early, too many requests.
_PASSING = frozenset({408, 425, 429})


class Poster:
    """Posts to one address. Thread-safe."""

    def __init__(self, channel: str, url: str, secrets: tuple[str, ...], *, timeout_s: float = IO_TIMEOUT_S) -> None:
        self._channel = channel
        self._url = url
        #: The longest first: one may be part of another.
        self._secrets = sorted((s for s in secrets if s), key=len, reverse=True)
        self._client = httpx2.Client(timeout=timeout_s, headers={"user-agent": "kintsugi-notifier"})

    def post(self, document: dict[str, Any]) -> str:
        """What was answered, without the secrets. ChannelAwayError or ChannelRefusedError."""
        until_s = time.monotonic() + _WHOLE_TIMEOUT_S
        body = orjson.dumps(document)
        headers = {"content-type": "application/json"}
        try:
            with self._client.stream("POST", self._url, content=body, headers=headers) as answer:
                status, said = answer.status_code, self._read(answer, until_s)
                retry_after_s = _retry_after_s(answer.headers.get("retry-after"))
        except (httpx2.HTTPError, OSError) as error:  # its text may quote the address
            raise ChannelAwayError(f"{self._channel}: no answer ({type(error).__name__})") from None
        if 200 <= status < 300:
            return f"{status} {said}".strip()
        text = f"{self._channel} answered {status} {said}".strip()
        if status in _PASSING or status >= 500:
            raise ChannelAwayError(text, retry_after_s=retry_after_s)
        raise ChannelRefusedError(text)

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def _read(self, answer: httpx2.Response, until_s: float) -> str:
        data = b""
        for part in answer.iter_raw():
            data += part
            if len(data) >= _ANSWER_BYTES_MAX or time.monotonic() > until_s:
                break
        text = data[:_ANSWER_BYTES_MAX].decode("utf-8", "replace")
        for secret in self._secrets:
            text = text.replace(secret, "[secret]")
        return clean(text, ANSWER_CHARS_MAX)


def _retry_after_s(value: str | None) -> float | None:
    """Seconds, or until a moment (RFC 9110); None for what is neither."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
