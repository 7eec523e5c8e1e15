"""What lies between a state and the log: its seal, and object storage for what is large.

Nothing is ever written in clear because a key cannot be had. Nothing is named by a record before it is confirmed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict
from dataclasses import MISSING, fields, replace
from typing import Any, NamedTuple, TypeVar

from ._schemas import claims
from ._schemas.errors import ConfigError, KintsugiError, RetriableError, StateError
from ._schemas.fingerprint import fingerprint_of
from ._schemas.keystore import ERASURE_SEEN_WITHIN_S, ROTATION_SEEN_WITHIN_S, Keystore, open_keystore
from ._schemas.objects import Objects, ObjectStoreError
from ._schemas.records import Record
from ._schemas.records.events import (
    CheckpointCreated,
    StatePersisted,
    StateRestored,
    WorkflowErrorOccurred,
    WorkflowStarted,
)
from ._schemas.sealing import SEALED_FIELDS, DataKey, binding_of, seal, seal_fields
from .bounded import Bounded
from .settings import Seldom

#: Stored bytes from here on go to object storage, when there is one: the log is for facts, not for files.
CLAIM_FROM_BYTES = 1024 * 1024
#: How long a checkpoint waits for object storage before it tells the caller the truth.
CLAIM_TIMEOUT_S = 10.0
#: How long the start of a workflow waits for its data key.
KEY_TIMEOUT_S = 10.0
#: After a failure, states that may go into the log do so without trying object storage, for so long.
OBJECTS_AWAY_S = 30.0
#: After a failure, keys that are not known are not asked for, for so long: many workflows would wait one by one.
KEYS_AWAY_S = 5.0
#: Last keys of workflows, for when the keystore is away; about 2 KB each.
KEYS_KEPT_MAX = 10_000
PROTECTIONS = ("aes-256-gcm", "hmac-sha256")
#: What stands for a text that could not be sealed.
WITHHELD = "(withheld: the data key could not be had)"

_KEYS_HINT = "check KINTSUGI_OBJECTS and KINTSUGI_KEYS; kintsugi doctor"

log = logging.getLogger("kintsugi_client")
R = TypeVar("R", bound=Record)
S = TypeVar("S", CheckpointCreated, StatePersisted, StateRestored)


class _KeptKey(NamedTuple):
    """A data key, when the store last had it, and until when the store is not asked again."""

    key: DataKey
    seen_s: float
    quiet_until_s: float = 0.0


class Vault:
    """Seals and stores. One per client; thread-safe."""

    def __init__(
        self,
        *,
        keystore: Keystore | None = None,
        objects: Objects | None = None,
        protection: str | None = None,
        claim_from_bytes: int = CLAIM_FROM_BYTES,
    ) -> None:
        if protection is not None and protection not in PROTECTIONS:
            raise ConfigError(f"protection: {protection!r:.80} is none of {', '.join(PROTECTIONS)}")
        if protection is not None and keystore is None:
            raise ConfigError(f"protection: {protection} needs keys", hint="set KINTSUGI_KEYS")
        if type(claim_from_bytes) is not int or claim_from_bytes < 0:
            raise ConfigError(f"claim_from_bytes: {claim_from_bytes!r:.80} is no number of bytes from 0")
        self.keystore = keystore
        self.objects = objects
        self.protection = "none" if keystore is None else protection or PROTECTIONS[0]
        self._claim_from_bytes = claim_from_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _KeptKey] = OrderedDict()
        self._counts: Counter[str] = Counter(claimed=0, claims_inline=0, unsaved=0, withheld=0)
        self._keys_away_until_s = 0.0
        self._objects_away_until_s = 0.0
        self._bounded = Bounded()
        self._seldom = Seldom()

    @classmethod
    def open(cls, keys: str, objects: str, protection: str | None, claim_from_bytes: int) -> Vault:
        """By URLs; an empty one is none. ConfigError names what is wrong."""
        return cls(
            keystore=open_keystore(keys, objects),
            objects=Objects(objects) if objects else None,
            protection=protection,
            claim_from_bytes=claim_from_bytes,
        )

    def counts(self) -> dict[str, int]:
        """States put into object storage, those that went into the log for want of it, those lost; texts withheld."""
        with self._lock:
            return dict(self._counts)

    # -- keys -----------------------------------------------------------------------------------------------------

    def key(self, workflow_id: str) -> DataKey:
        """The key to seal with. The last one is used while the keystore is away.

        RetriableError when it is away and none is known, StateError "key_erased" or "key_missing".
        """
        store = self.keystore
        if store is None:
            raise ConfigError("this client has no keys", hint="set KINTSUGI_KEYS")
        try:
            key = store.at_hand(workflow_id)
            return key if key is not None else self._ask(store, workflow_id)
        except StateError:  # erased, or nobody can open it
            self.forget(workflow_id)
            raise

    def forget(self, workflow_id: str) -> None:
        """The workflow is not here any more: its key is none of this process's business."""
        with self._lock:
            self._kept.pop(workflow_id, None)

    def _ask(self, store: Keystore, workflow_id: str) -> DataKey:
        with self._lock:
            kept = self._kept.get(workflow_id)
            now_s, away_until_s = time.monotonic(), self._keys_away_until_s
        if kept is not None and now_s > kept.seen_s + ERASURE_SEEN_WITHIN_S:
            kept = None  # it may have been erased meanwhile
        if kept is not None and now_s < max(kept.quiet_until_s, away_until_s):
            return kept.key
        if now_s < away_until_s:
            raise RetriableError(f"the keystore is away: no data key for workflow {workflow_id}", hint=_KEYS_HINT)
        try:
            return self._seen(self._bounded.call("the keystore", lambda: store.current(workflow_id), KEY_TIMEOUT_S))
        except RetriableError as error:
            with self._lock:
                self._keys_away_until_s = time.monotonic() + KEYS_AWAY_S
            if kept is None:
                raise
            self._remember(workflow_id, kept._replace(quiet_until_s=time.monotonic() + ROTATION_SEEN_WITHIN_S))
            if self._seldom.due("keys"):
                log.warning("the keystore is away, states are sealed with the keys known: %s", error)
            return kept.key

    def _seen(self, key: DataKey) -> DataKey:
        self._remember(key.workflow_id, _KeptKey(key, time.monotonic()))
        return key

    def _remember(self, workflow_id: str, kept: _KeptKey) -> None:
        with self._lock:
            self._kept[workflow_id] = kept
            self._kept.move_to_end(workflow_id)
            while len(self._kept) > KEYS_KEPT_MAX:
                self._kept.popitem(last=False)

    def prepare(self, workflow_id: str) -> None:
        """Have the workflow's key, before anything of it is recorded. Raises as `key`."""
        if self.keystore is not None:
            self.key(workflow_id)

    # -- states ---------------------------------------------------------------------------------------------------

    def put(self, record: S, stored: bytes, *, inline_if_away: bool) -> S:
        """The record with its stored bytes: sealed, and in object storage when they are large.

        ObjectStoreError when that is away, unless they may go into the log then. Else raises as `key`.
        """
        if self.protection != "none":
            key = self.key(record.workflow_id)
            stored = seal(stored, key, protection=self.protection, binding=binding_of(record))
        if self.objects is not None and len(stored) >= self._claim_from_bytes:
            uri = self._claim(self.objects, stored, inline_if_away)
            if uri is not None:
                return replace(record, claim_uri=uri)
        return replace(record, state=stored)

    def _claim(self, objects: Objects, stored: bytes, inline_if_away: bool) -> str | None:
        away = time.monotonic() < self._objects_away_until_s
        if not (away and inline_if_away):
            try:
                uri = self._bounded.call("object storage", lambda: claims.put(objects, stored), CLAIM_TIMEOUT_S)
            except RetriableError as error:
                self._objects_away_until_s = time.monotonic() + OBJECTS_AWAY_S
                if not inline_if_away:
                    raise error if isinstance(error, ObjectStoreError) else ObjectStoreError(str(error)) from error
                if self._seldom.due("objects"):
                    log.warning("object storage is away, large states go into the log: %s", error)
            else:
                self._objects_away_until_s = 0.0
                self.count("claimed")
                return uri
        self.count("claims_inline")
        return None

    def miss(self, what: str, workflow_id: str, error: Exception) -> None:
        """Count and log a state that could not be saved, where that must not stop the workflow."""
        self.count("unsaved")
        if self._seldom.due((what, type(error))):
            log.warning("%s of %s is lost: %s", what, workflow_id, error)

    # -- texts ----------------------------------------------------------------------------------------------------

    def seal_texts(self, record: R) -> R:
        """The record with its texts sealed, where states are encrypted. Texts that cannot be sealed are withheld.

        Raises as `key` for the start of a workflow alone: without its input nothing could be done again.
        """
        names = SEALED_FIELDS.get(type(record).__name__)
        if self.protection != PROTECTIONS[0] or names is None or all(getattr(record, n) is None for n in names):
            return record
        if isinstance(record, WorkflowErrorOccurred):
            record = replace(record, fingerprint=_fingerprint(record))
        try:
            return seal_fields(record, self.key(record.workflow_id))
        except KintsugiError as error:
            if isinstance(record, WorkflowStarted):
                raise
            self.count("withheld")
            if self._seldom.due("texts"):
                log.warning("texts of %s are withheld: %s", type(record).__name__, error)
            required = {f.name for f in fields(record) if f.default is MISSING}
            withheld: dict[str, Any] = {name: WITHHELD if name in required else None for name in names}
            return replace(record, **withheld)

    def count(self, what: str) -> None:
        """Count for `counts`."""
        with self._lock:
            self._counts[what] += 1


def _fingerprint(error: WorkflowErrorOccurred) -> str:
    """The engine cannot read what is sealed, so the service says which errors are alike."""
    return fingerprint_of(error.workflow_type, error.step_id, error.error_code, error.error_message, error.stack_trace)
