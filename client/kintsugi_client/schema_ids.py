"""Registered ids of the records that the client writes, fetched beside the service's own work.

A record must never wait for a registry that is away: until an id is known its record is written in Avro's
single-object form, which every reader of Kintsugi understands as well.
"""

from __future__ import annotations

import logging
import threading
import time

from ._schemas.catalog import Schema, shipped
from ._schemas.errors import FatalError, KintsugiError, RetriableError
from ._schemas.registry import Registry

#: At start the first records wait this long for an answer, so that a healthy stack sees one form only.
PATIENCE_S = 3.0
_RETRY_S = 2.0
#: What the client writes, in the order in which it is needed.
WRITTEN = (
    "WorkflowStarted",
    "StepStarted",
    "CheckpointCreated",
    "StepCompleted",
    "WorkflowCompleted",
    "WorkflowErrorOccurred",
    "CommandAcknowledged",
    "StateRestored",
    "StepProgressed",
    "ResourceUsageReported",
    "StatePersisted",
    "WorkflowPaused",
    "WorkflowResumed",
    "WorkflowCancelled",
    "StateMigrated",
    "CheckpointRejected",
)

log = logging.getLogger("kintsugi_client")


class SchemaIds:
    """Implements `codec.SchemaIds` for writing, from memory. Safe to share between threads."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._changed = threading.Condition()
        self._ids: dict[str, int] = {}
        self._missing: dict[str, FatalError] = {}
        self._away: RetriableError | None = None
        self._patience_s = time.monotonic() + PATIENCE_S
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kintsugi-schemas", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def id_of(self, schema: Schema) -> int:
        """Registered id. FatalError when it is not registered, RetriableError while the registry is away."""
        with self._changed:
            while True:
                found = self._ids.get(schema.name)
                if found is not None:
                    return found
                if schema.name in self._missing:
                    raise self._missing[schema.name]
                left_s = self._patience_s - time.monotonic()
                if self._away is not None or left_s <= 0:
                    raise self._away or RetriableError("the schema registry has not answered yet")
                self._changed.wait(left_s)

    def text_of(self, schema_id: int) -> str | None:
        """Schema text by id, from the registry."""
        return self._registry.text_of(schema_id)

    def close(self) -> None:
        """Ask no more."""
        self._stopping.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        open_ = [shipped()[name] for name in WRITTEN]
        while open_ and not self._stopping.is_set():
            open_ = self._fetch(open_)
            if open_:
                self._stopping.wait(_RETRY_S)

    def _fetch(self, schemas: list[Schema]) -> list[Schema]:
        """Ask for each; returns those to ask for again."""
        left: list[Schema] = []
        for number, schema in enumerate(schemas):
            if self._stopping.is_set():
                return []
            try:
                found = self._registry.id_of(schema)
            except RetriableError as error:
                self._say(error)
                return left + schemas[number:]
            except FatalError as error:
                self._say_missing(schema, error)
                left.append(schema)
                continue
            except Exception as error:  # an answer that is no registry's
                self._say(RetriableError(f"schema registry: {type(error).__name__}: {error}"))
                return left + schemas[number:]
            with self._changed:
                self._ids[schema.name] = found
                self._missing.pop(schema.name, None)
                self._away = None
                self._changed.notify_all()
        return left

    def _say(self, error: RetriableError) -> None:
        with self._changed:
            if self._away is None:
                log.warning("records are written without schema ids while the registry is away: %s", error)
            self._away = error
            self._changed.notify_all()

    def _say_missing(self, schema: Schema, error: KintsugiError) -> None:
        with self._changed:
            if schema.name not in self._missing:
                log.error("%s", error)
            self._missing[schema.name] = FatalError(str(error), hint=error.hint)
            self._changed.notify_all()
