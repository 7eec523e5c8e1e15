"""Which command ids were seen, where in the topic, and how those that were carried out here ended.

A command may be in the topic more than once: the engine that sent it may die before it knows. The place of the first
copy tells a copy from a command that is merely read again. Ids are kept as long as a command can be valid, by the
broker's time, so no machine's clock needs to be right.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from ._schemas.errors import KintsugiError

#: No command is valid for longer (the policy's limit), so no id needs to be remembered for longer.
COMMAND_EXPIRY_MAX_MS = 900_000
#: Ids remembered, at a few hundred bytes each. Beyond it those of expired commands are forgotten early, for a copy of
#: one is refused anyhow; when there is none, new commands are refused rather than valid ones forgotten.
LEDGER_MAX = 200_000

#: What `take` says of a command that is taken up now, and of one that is merely read again.
NEW, AGAIN = "new", "again"

Place = tuple[int, int]


class Entry:
    """What is known of one command id."""

    __slots__ = ("expires_us", "place", "status", "taken", "timestamp_ms")

    def __init__(self, place: Place, timestamp_ms: int, expires_us: int) -> None:
        self.place = place
        self.timestamp_ms = timestamp_ms
        self.expires_us = expires_us
        #: How it ended here; "unknown" when another process had it, or it is not known yet.
        self.status = "unknown"
        self.taken = False


class Ledger:
    """Safe to share between threads."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._lock = threading.Lock()
        self._newest_ms = 0

    @property
    def newest_us(self) -> int:
        """The broker's time has reached at least this."""
        return self._newest_ms * 1000

    def saw(self, command_id: str, place: Place, timestamp_ms: int, expires_us: int) -> bool:
        """Note a command that was read. Whether this is its first copy."""
        with self._lock:
            entry = self._note(command_id, place, timestamp_ms, expires_us)
            return entry is None or entry.place == place

    def take(self, command_id: str, place: Place, timestamp_ms: int, expires_us: int) -> str:
        """Take a command up, once: NEW. AGAIN when it was taken up here already, else this is a copy: what became of
        the first. KintsugiError when there is no room to remember it.
        """
        with self._lock:
            entry = self._note(command_id, place, timestamp_ms, expires_us)
            if entry is None:
                raise KintsugiError(f"{LEDGER_MAX} commands are valid at once: no more are taken up")
            if entry.place != place:
                return entry.status
            if entry.taken:
                return AGAIN
            entry.taken = True
            return NEW

    def taken(self, command_id: str) -> bool:
        """Whether this process has taken the command up."""
        with self._lock:
            entry = self._entries.get(command_id)
            return entry is not None and entry.taken

    def settle(self, command_id: str, status: str) -> None:
        """Remember how far a command has come, for when a copy arrives."""
        with self._lock:
            entry = self._entries.get(command_id)
            if entry is not None:
                entry.status = status

    def _note(self, command_id: str, place: Place, timestamp_ms: int, expires_us: int) -> Entry | None:
        self._newest_ms = max(self._newest_ms, timestamp_ms)
        entry = self._entries.get(command_id)
        if entry is None:
            self._forget()
            if len(self._entries) >= LEDGER_MAX:
                return None
            entry = self._entries[command_id] = Entry(place, timestamp_ms, expires_us)
        return entry

    def _forget(self) -> None:
        """Ids of which no copy can be valid; under pressure also those of which none should be."""
        oldest_ms = self._newest_ms - COMMAND_EXPIRY_MAX_MS
        while self._entries:
            command_id, first = next(iter(self._entries.items()))
            spare = len(self._entries) >= LEDGER_MAX and first.expires_us < self.newest_us
            if first.timestamp_ms >= oldest_ms and not spare:
                return
            del self._entries[command_id]
