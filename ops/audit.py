"""Who did what: one record in `workflow.audit` before an operator's action, and one after it.

Canonical JSON, keyed by the actor: {action, actor, at, detail, operation_id, outcome, reason, subject, version}.
`outcome` is `begun` before the action, then `done` or `failed`; both carry the same operation_id. What cannot be
written down beforehand is not done. A `begun` that nothing follows is an action that was cut short.

The actor is who the environment says, and is not proven. Secrets never go into `detail`.
"""

from __future__ import annotations

import os
import pwd
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from schemas.canonical import canonical_bytes
from schemas.errors import ConfigError, KintsugiError
from schemas.topics import AUDIT

from .publish import Publisher

ACTOR = "KINTSUGI_ACTOR"
#: As long as a column of the tables that may hold it.
ACTOR_CHARS_MAX = 255
REASON_CHARS_MAX = 1_000
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One record of `workflow.audit`."""

    action: str
    actor: str
    at: str
    detail: dict[str, Any] = field(default_factory=dict)
    operation_id: str
    outcome: str
    reason: str
    subject: str
    version: int = VERSION


def actor() -> str:
    """Who acts: KINTSUGI_ACTOR, else the name of the user that runs the process."""
    name = os.environ.get(ACTOR, "").strip()
    if not name:
        try:
            name = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:  # a container may run as a user without a name
            name = f"uid {os.getuid()}"
    if len(name) > ACTOR_CHARS_MAX or not name.isprintable():
        raise ConfigError(f"{ACTOR} is not a name of up to {ACTOR_CHARS_MAX} printable characters")
    return name


@contextmanager
def audited(kafka: str, action: str, *, subject: str, reason: str) -> Iterator[dict[str, Any]]:
    """Write down that an action begins, and how it ends. The caller adds what happened to the dictionary it gets.

    RetriableError when it cannot be written down; before the action, that keeps it from being done.
    """
    if len(reason) > REASON_CHARS_MAX:
        raise ConfigError(f"the reason has {len(reason)} characters, {REASON_CHARS_MAX} allowed")
    begun = AuditEntry(
        action=action,
        actor=actor(),
        at=now(),
        operation_id=str(uuid.uuid4()),
        outcome="begun",
        reason=reason,
        subject=subject,
    )
    publisher = Publisher(kafka)  # one for both records: a first record costs half a second
    _append(publisher, begun)
    detail: dict[str, Any] = {}
    try:
        yield detail
    except BaseException as error:
        told = {**detail, "error": type(error).__name__}
        with suppress(KintsugiError):  # why the action failed says more than that this could not be written down
            _append(publisher, replace(begun, at=now(), outcome="failed", detail=told))
        raise
    _append(publisher, replace(begun, at=now(), outcome="done", detail=detail))


def _append(publisher: Publisher, entry: AuditEntry) -> None:
    publisher.publish(AUDIT, entry.actor, canonical_bytes(asdict(entry)))


def now() -> str:
    """This moment, as records for people write it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
