"""States for people: what the policy lets them see, and that whoever looks into a sealed one is written down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from projections.reader import snapshot
from schemas.errors import StateError

from .checkpoints import Row, marker_of
from .hidden import Hidden
from .output import DENIED

if TYPE_CHECKING:
    from engine.policy import Policy
    from engine.policy.model import StateInspection
    from schemas.keystore import Keystore

    from .checkpoint_log import CheckpointLog
    from .stack import Addresses


class DeniedError(click.ClickException):
    """The policy does not allow it."""

    exit_code = DENIED


def policy_of(path: Path | None) -> Policy:
    """A policy file, or the policy that ships."""
    from engine.policy import default_policy, load_policy

    return default_policy() if path is None else load_policy(path.read_text(encoding="utf-8"), str(path))


def require_inspection(policy: Policy) -> StateInspection:
    """The policy's `state_inspection`; DeniedError where it is switched off."""
    if not policy.state_inspection.enabled:
        raise DeniedError("debugging.state_inspection.enabled is false in the policy: states are not shown")
    return policy.state_inspection


def check_reason(reveal: bool, reason: str | None) -> str:
    """A reason goes with every reveal, and with nothing else."""
    if reveal and not (reason or "").strip():
        raise click.UsageError("--reveal needs --reason: it is written to the audit log")
    if reason is not None and not reveal:
        raise click.UsageError("--reason goes with --reveal")
    return (reason or "").strip()


def keystore_of(at: Addresses) -> Keystore:
    """The keys to open what is sealed. ConfigError without any."""
    from schemas.errors import ConfigError
    from schemas.keystore import open_keystore

    found = open_keystore(objects_url=at.objects)
    if found is None:
        raise ConfigError("no keys are configured", hint="set KINTSUGI_KEYS, as the services have it")
    return found


class Revealer:
    """Reads states from log, archive and object storage. Each read is in the audit log before it is done."""

    def __init__(self, at: Addresses, log: CheckpointLog, reason: str) -> None:
        self._at = at
        self._log = log
        self._reason = reason
        with snapshot(at.postgres) as tables:
            self._hidden = Hidden(tables.redactions())

    def state(self, row: Row) -> dict[str, Any]:
        """A checkpoint's proven state, less what the tables hide. StateError says why it cannot be had."""
        from .audit import audited

        with audited(self._at.kafka, "checkpoints.reveal", subject=str(row["id"]), reason=self._reason) as detail:
            detail["workflow_id"] = str(row["workflow_id"])
            written = self._log.written(str(row["id"]), row["log_partition"], row["log_offset"])
            redaction = self._hidden.from_people(row["log_partition"], row["log_offset"])
            shown, _ = redaction.apply(self._log.state(written.record))
        state: dict[str, Any] = shown
        return state


@contextmanager
def revealer(at: Addresses, reveal: bool, reason: str) -> Iterator[Revealer | None]:
    """None unless asked for: the tables are enough then."""
    if not reveal:
        yield None
        return
    from .checkpoint_log import checkpoint_log

    with checkpoint_log(at) as log:
        yield Revealer(at, log, reason)


def check_size(row: Row, allowed: StateInspection) -> None:
    """StateError for a state that is larger than the policy lets people look at."""
    if row["size_bytes"] > allowed.state_size_bytes_max:
        raise StateError(
            "limit",
            f"the state of {row['id']} has {row['size_bytes']} bytes, "
            f"debugging.state_inspection.max_state_size allows {allowed.state_size_bytes_max}",
            hint="raise it in the policy, and give that with --policy",
        )


def why_hidden(row: Row) -> str | None:
    """Why a table does not show a state, in words; None when it does."""
    state = row["state_data"]
    marker = marker_of(state)
    if marker == "sealed":
        return f"is sealed ({state.get('protection', row.get('protection'))}); --reveal --reason WHY opens it"
    if marker == "claim":
        return "lies in object storage; --reveal --reason WHY reads it"
    if marker == "unreadable":
        return f"is not shown: {state.get('reason', '')}"
    return None
