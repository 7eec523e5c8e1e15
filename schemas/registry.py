"""The schema registry: ids at run time, registration and comparison at deploy time.

Run time never registers: an id that is missing is a deployment that is missing. Subjects follow the topic-record-name
strategy, named explicitly, so the client library's own default strategy is never asked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from confluent_kafka.schema_registry import Schema as RegistrySchema
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from .catalog import Schema, load, shipped
from .errors import ConfigError, FatalError, RetriableError

COMPATIBILITY = "FULL_TRANSITIVE"
#: Unknown ids are remembered so that a flood of junk asks the registry once in a while, not once a record.
UNKNOWN_IDS_MAX = 10_000
UNKNOWN_ID_TTL_S = 30.0
_TIMEOUT_S = 5.0
_NOT_FOUND = 404


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """What `register` or `compare` found for one schema."""

    subject: str
    schema_id: int | None
    state: str


class Registry:
    """A client of one registry; implements `codec.SchemaIds`. Safe to share between threads."""

    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"KINTSUGI_REGISTRY: {url!r} is not an http or https URL")
        self.url = url
        self._client = SchemaRegistryClient(
            {"url": url, "timeout": _TIMEOUT_S, "max.retries": 2, "retries.wait.ms": 100, "retries.max.wait.ms": 500}
        )
        self._unknown: dict[int, float] = {}
        self._texts: dict[int, str] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Give up the connections."""
        self._client.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def id_of(self, schema: Schema) -> int:
        """Registered id. FatalError when it is not registered, RetriableError when the registry is away."""
        found = self.lookup(schema)
        if found is None:
            raise FatalError(f"{schema.subject} is not registered at {self.url}", hint="run: kintsugi schemas register")
        return found

    def lookup(self, schema: Schema) -> int | None:
        """Registered id; None when it is not registered. What is found can be read back without the registry."""
        try:
            found = self._client.lookup_schema(schema.subject, RegistrySchema(schema.text, "AVRO"))
        except SchemaRegistryError as error:
            if error.http_status_code == _NOT_FOUND:
                return None
            raise self._away(error) from error
        except OSError as error:
            raise self._away(error) from error
        except Exception as error:
            if type(error).__module__.startswith(("httpx", "httpcore")):
                raise self._away(error) from error
            raise
        if found.schema_id is not None:
            with self._lock:
                # A role looks up every shipped schema at its start: from then on it reads them with the registry away.
                self._texts[found.schema_id] = schema.text
        return found.schema_id

    def text_of(self, schema_id: int) -> str | None:
        """Schema text by id; None when the registry does not know it. One request at a time for all threads."""
        with self._lock:
            text = self._texts.get(schema_id)
            if text is not None:
                return text
            if self._unknown.get(schema_id, 0.0) > time.monotonic():
                return None
            text = self._fetch(schema_id)
            if text is not None:
                self._texts[schema_id] = text
            else:
                if len(self._unknown) >= UNKNOWN_IDS_MAX:
                    self._unknown.clear()
                self._unknown[schema_id] = time.monotonic() + UNKNOWN_ID_TTL_S
            return text

    def _fetch(self, schema_id: int) -> str | None:
        try:
            found = self._client.get_schema(schema_id)
        except SchemaRegistryError as error:
            if error.http_status_code == _NOT_FOUND:
                return None
            raise self._away(error) from error
        except Exception as error:
            if isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "httpcore")):
                raise self._away(error) from error
            raise
        return None if found.schema_str is None else str(found.schema_str)

    def register(self, schemas: Iterable[Schema], *, dry_run: bool = False) -> list[Registered]:
        """Register what is missing, for a deployment. FatalError when the registry refuses a schema."""
        results = []
        for schema in schemas:
            found = self.lookup(schema)
            if found is not None:
                results.append(Registered(subject=schema.subject, schema_id=found, state="registered"))
                continue
            if dry_run:
                results.append(Registered(subject=schema.subject, schema_id=None, state="missing"))
                continue
            try:
                self._client.set_compatibility(schema.subject, COMPATIBILITY)
                schema_id = int(self._client.register_schema(schema.subject, RegistrySchema(schema.text, "AVRO")))
            except SchemaRegistryError as error:
                raise FatalError(f"{schema.subject}: the registry refused it: {error.error_message}") from error
            results.append(Registered(subject=schema.subject, schema_id=schema_id, state="new"))
        return results

    def compare(self) -> list[Registered]:
        """Every shipped schema against the registry: registered, missing, or the newest version differs."""
        results = []
        for schema in shipped().values():
            found = self.lookup(schema)
            state = "registered"
            if found is None:
                state = "missing"
            elif self._newest(schema) != schema.canonical:
                state = "newer"
            results.append(Registered(subject=schema.subject, schema_id=found, state=state))
        return results

    def _newest(self, schema: Schema) -> str:
        newest = self._client.get_latest_version(schema.subject)
        return load(str(newest.schema.schema_str)).canonical

    def _away(self, error: Exception) -> RetriableError:
        return RetriableError(
            f"the schema registry at {self.url} does not answer: {error}", hint="run: kintsugi doctor"
        )
