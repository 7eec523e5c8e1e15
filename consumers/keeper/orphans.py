"""Orphans: objects under `claims/` that no row refers to, deleted when they are older than a grace period.

A writer puts an object before it writes the record that names it, and the tables know the record later still: an object
is young until all of that must be over. Whatever is not as it should be, nothing is deleted: tables that are empty or
too far behind, a store that may be another, more orphans than can be true.

Between the last look at an object's time and its deletion lie some milliseconds. A writer that puts the very same bytes
again in just these loses them; the scrub then finds the claim missing, and the workflow goes on from the checkpoint
before.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from schemas import claims
from schemas.codec import Codec
from schemas.errors import RetriableError
from schemas.objects import ObjectInfo, Objects

from .. import telemetry
from ..crash import crash_point
from .lag import TablesLagError, lag_s
from .mark import StoreMark
from .places import Places, checkpoint_of
from .tables import Tables

#: An object that is written anew within `claims.CLAIM_RENEWED_AFTER` keeps its old time, so that long is no grace.
GRACE_S_MIN = 2 * claims.CLAIM_RENEWED_AFTER.total_seconds()
GRACE_S = 24 * 3600.0
#: What a client may take from the object to the record, when Kafka is there.
_WRITING_S = 15 * 60.0
#: Deleted at most in one collection: their names are in memory. The next one goes on.
ORPHANS_MAX = 100_000
#: Up to so many are deleted without asking what share of all objects they are.
_FEW = 20
_SHARE_MAX = 0.5
FOLDERS = 256
_DELETED_PER_STEP = 50
_SCHEME = "claim:sha256:"
_PATH = re.compile(rf"{claims.FOLDER}/(?P<folder>[0-9a-f]{{2}})/(?P<digest>[0-9a-f]{{64}})").fullmatch


class CollectionRefusedError(RetriableError):
    """The tables cannot be believed, and nothing was deleted."""


@dataclass(slots=True)
class Report:
    """What a collection found and did."""

    folders: int = 0
    objects: int = 0
    size_bytes: int = 0
    referenced: int = 0
    young: int = 0
    orphans: int = 0
    orphan_bytes: int = 0
    deleted: int = 0
    deleted_bytes: int = 0


class Orphans:
    """Collects. One thread."""

    def __init__(self, tables: Tables, places: Places, codec: Codec, objects: Objects, *, grace_s: float) -> None:
        """ValueError for a grace that is none."""
        if grace_s < GRACE_S_MIN:
            raise ValueError(f"a grace of {grace_s:g} s: at least {GRACE_S_MIN:g}")
        self._tables = tables
        self._places = places
        self._codec = codec
        self._objects = objects
        self._grace_s = grace_s
        self.report = Report()

    def steps(self, *, delete: bool = True, any_share: bool = False) -> Generator[float, None, None]:
        """One collection, in steps: one for each of FOLDERS, then for what is deleted. Each yields the seconds to wait
        before the next. `report` tells how far it is. `any_share`: whatever share of all objects the orphans are.

        TablesLagError, StoreDoubtedError or CollectionRefusedError: nothing was deleted, and why.
        """
        self.report = Report()
        outcome = "refused"
        try:
            self._refuse_lag()
            StoreMark(self._objects).establish(claims_known=lambda: any(True for _ in self._tables.claims()))
            found: list[ObjectInfo] = []
            rows = _Rows(self._tables.claims(), self._set_aside())
            for number in range(FOLDERS):
                found += self._folder(f"{number:02x}", rows, room=ORPHANS_MAX - len(found))
                self.report.folders = number + 1
                yield 0.0
            self._refuse_share(any_share)
            if delete:
                yield from self._delete(found)
            outcome = "done"
        finally:
            telemetry.COLLECTIONS.labels(outcome).inc()

    def _refuse_lag(self) -> None:
        allowed_s = self._grace_s - claims.CLAIM_RENEWED_AFTER.total_seconds() - _WRITING_S
        behind_s = lag_s(self._places, self._tables.positions(), time.time_ns() // 1_000_000)
        if behind_s > allowed_s:
            raise TablesLagError(
                f"the tables are {behind_s:.0f} s behind the log; a collection allows {allowed_s:.0f} s",
                hint="does the projector run?",
            )

    def _folder(self, folder: str, rows: _Rows, *, room: int) -> list[ObjectInfo]:
        """Orphans of one folder. Rows come in the order of their digests, so each folder's are looked at once."""
        named = rows.beginning_with(folder)
        before = datetime.now(UTC) - timedelta(seconds=self._grace_s)
        orphans = []
        for info in self._objects.list(f"{claims.FOLDER}/{folder}"):
            match = _PATH(info.path)
            if match is None:
                continue  # not ours, or the store's own temporary file
            self.report.objects += 1
            self.report.size_bytes += info.size_bytes
            if match["digest"] in named:
                self.report.referenced += 1
            elif info.modified_at >= before:
                self.report.young += 1
            else:
                self.report.orphans += 1
                self.report.orphan_bytes += info.size_bytes
                orphans.append(info)
        return orphans[:room]

    def _refuse_share(self, any_share: bool) -> None:
        found = self.report
        if not found.orphans:
            return
        if not self._tables.has_checkpoints():
            raise CollectionRefusedError(
                f"there is no checkpoint in the tables, and {found.objects} objects in the store: are the tables new?",
                hint="let the projector fill them first",
            )
        if found.orphans > max(_FEW, _SHARE_MAX * found.objects) and not any_share:
            raise CollectionRefusedError(
                f"{found.orphans} of {found.objects} objects would be orphans, more than half of them: do the tables "
                "know all checkpoints?",
                hint="kintsugi verify; then kintsugi checkpoints collect --any-share",
            )

    def _delete(self, orphans: list[ObjectInfo]) -> Iterator[float]:
        for number, orphan in enumerate(orphans, start=1):
            # A writer may have put the same bytes anew since they were listed.
            now = self._objects.info(orphan.path)
            if now is not None and now.modified_at == orphan.modified_at:
                self._objects.delete(orphan.path)
                crash_point("after_write")
                self.report.deleted += 1
                self.report.deleted_bytes += orphan.size_bytes
                telemetry.ORPHANS_DELETED.inc()
                telemetry.ORPHAN_BYTES.inc(orphan.size_bytes)
            if number % _DELETED_PER_STEP == 0:
                yield 0.0

    def _set_aside(self) -> set[str]:
        """Objects named by records that the tables did not take: they have no row, and yet the engine knows them."""
        found = (checkpoint_of(self._codec, lies) for _, lies in self._places.read(sorted(self._tables.refused())))
        return {record.claim_uri for record in found if record is not None and record.claim_uri is not None}


class _Rows:
    """Digests that rows name, by the two digits they begin with, asked for in ascending order."""

    def __init__(self, uris: Iterator[str], more: set[str]) -> None:
        self._digests = (uri.removeprefix(_SCHEME) for uri in uris if uri.startswith(_SCHEME))
        self._more = {uri.removeprefix(_SCHEME) for uri in more}
        self._next = next(self._digests, None)

    def beginning_with(self, folder: str) -> set[str]:
        """The digests of one folder. CollectionRefusedError when the rows do not come in order."""
        found = {digest for digest in self._more if digest.startswith(folder)}
        while self._next is not None and self._next[: len(folder)] <= folder:
            found.add(self._next)
            following = next(self._digests, None)
            if following is not None and following < self._next:
                raise CollectionRefusedError("the tables name their objects out of order", hint="report this defect")
            self._next = following
        return found
