"""Whether the object store is the one it was. An empty folder where a disk should be mounted answers every question,
and what it answers is that all is gone; that must not be believed.

The keeper leaves a mark in the store, and believes that an object is missing only where its mark is.
"""

from __future__ import annotations

from collections.abc import Callable

from schemas import claims
from schemas.errors import RetriableError
from schemas.objects import Objects

PATH = "keeper/mark"
_TEXT = b"The keeper of Kintsugi was here. An object counts as missing only in a store that has this mark.\n"


class StoreDoubtedError(RetriableError):
    """The store lacks what must be in it: it may be another one."""

    def __init__(self) -> None:
        super().__init__(
            f"the object store has no {PATH}, and nothing under {claims.FOLDER}/, although checkpoints lie there",
            hint="is it mounted, and is KINTSUGI_OBJECTS right? If all is lost indeed, put any object at that path",
        )


class StoreMark:
    """The mark in one store."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def establish(self, *, claims_known: Callable[[], bool]) -> None:
        """Leave the mark. StoreDoubtedError when rows name objects of a store that has neither a mark nor any of them.
        ObjectStoreError when it is away."""
        if self._objects.info(PATH) is not None:
            return
        if claims_known() and next(self._objects.list(claims.FOLDER), None) is None:
            raise StoreDoubtedError
        self._objects.put_new(PATH, _TEXT)

    def confirm(self) -> None:
        """StoreDoubtedError when the mark is not there, ObjectStoreError when the store is away."""
        if self._objects.info(PATH) is None:
            raise StoreDoubtedError
