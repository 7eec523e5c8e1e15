"""What rows hide: the paths that the policy of their projector named, by the place of their events in the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from schemas.redaction import NOTHING, Redaction


class Hidden:
    """Redactions by partition and offset, as `Snapshot.redactions` tells them."""

    def __init__(self, places: Mapping[int, Sequence[tuple[int, Sequence[str]]]]) -> None:
        self._places = places
        self._compiled: dict[tuple[str, ...], Redaction] = {(): NOTHING}

    def in_row(self, partition: int, offset: int) -> Redaction:
        """What the row that was made of an event hides."""
        return self._redaction(self._paths(partition, offset))

    def from_people(self, partition: int, offset: int) -> Redaction:
        """What nobody is shown of an event's state: what its row hides, and what rows of today would."""
        everything = (*self._paths(partition, offset), *self._paths(partition, None))
        return self._redaction(tuple(dict.fromkeys(everything)))

    def _paths(self, partition: int, offset: int | None) -> tuple[str, ...]:
        paths: tuple[str, ...] = ()
        for first, named in self._places.get(partition, ()):
            if offset is None or first <= offset:
                paths = tuple(named)
        return paths

    def _redaction(self, paths: tuple[str, ...]) -> Redaction:
        found = self._compiled.get(paths)
        if found is None:
            found = self._compiled[paths] = Redaction(paths)
        return found
