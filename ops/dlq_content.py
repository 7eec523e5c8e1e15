"""What a record that was set aside says, as far as people are shown it, and what would let a parked workflow go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.inspection import deliver
from schemas.admission import admit
from schemas.codec import Codec, Unknown
from schemas.errors import PoisonError
from schemas.log_record import LogRecord

from .replay_shown import Shown

if TYPE_CHECKING:
    from engine.policy import Policy

    from .hidden import Hidden

#: By the reason for which it is parked. Any other is one of reading it again, which a retry does.
_WAYS = {
    "refused_by_postgres": "a table that takes its values (constraints, types), or the tables without this record",
    "not_applicable": "a release that can apply it (that this one fails is a defect of ours), or the tables without it",
}
_READABLE = "a release or a registry that can read it again, or the tables without this record"


class Contents:
    """Decodes and shows records: hidden is what the tables hide of them, and what a policy does."""

    def __init__(self, codec: Codec, hidden: Hidden, policy: Policy) -> None:
        allowed = policy.state_inspection
        self._codec = codec
        self._shown = Shown(hidden, policy.redact, allowed.state_size_bytes_max, states=allowed.enabled)

    def of(self, record: LogRecord, timestamp_us: int) -> dict[str, Any]:
        """`record`, `content` and, if it brings one, `state`; or `unreadable`: in one word, why nothing is shown.

        RetriableError when the registry is away.
        """
        try:
            found = admit(self._codec, record.key, record.value)
        except PoisonError as error:
            return {"record": None, "unreadable": error.reason}
        if isinstance(found, Unknown):
            return {"record": found.name, "unreadable": "unknown_type"}
        event = deliver(found, record.partition, record.offset, timestamp_us)
        shown = {"record": type(found).__name__, "content": self._shown.record(event)}
        state = self._shown.state(event)
        return shown if state is None else {**shown, "state": state}


def way_out(reason: str) -> str:
    """What has to be there before a workflow that is parked for this reason goes on."""
    return _WAYS.get(reason, _READABLE)
