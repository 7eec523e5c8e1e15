"""The client: one connection, the workflows in this process, and what commands do to them."""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Any

from ._schemas.canonical import canonical_bytes
from ._schemas.codec import Codec
from ._schemas.errors import ConfigError, StateError
from ._schemas.keystore import keys_optional
from ._schemas.migrations import Migrations
from ._schemas.records import Command
from ._schemas.records.events import StepSpec
from ._schemas.registry import Registry
from .commands import Commands
from .errors import ClosedError
from .grants import Grants
from .history import History
from .inbox import Inbox
from .limits import Scaler
from .listener import Listener
from .outbox import Interceptor, Outbox, Undelivered
from .policy import CheckpointPolicy
from .restore import Restorer
from .run import Run
from .schema_ids import SchemaIds
from .settings import Settings
from .texts import clean
from .types import WorkflowType
from .vault import CLAIM_FROM_BYTES, Vault
from .work import Work
from .workflow import Workflow

#: Threads that run steps and handlers.
WORKERS = 16
_WORKERS_MAX = 1_000
_SERVICE_MAX = 200
_PRODUCER_MAX = 255
#: What the last flush of `close` gets at least.
_FLUSH_FLOOR_S = 0.5
#: What the reader of leases may take to end; it waits for nothing longer than this.
_CLOSE_GRANTS_S = 1.0
#: What a process that ends without `close` may take for it.
_AT_EXIT_S = 2.0

log = logging.getLogger("kintsugi_client")


class Client:
    """Make one per process with `Client.connect`, and close it."""

    def __init__(
        self,
        service: str,
        *,
        kafka: str,
        registry: str | None,
        interceptors: Sequence[Interceptor] = (),
        workers: int = WORKERS,
        config: Mapping[str, Any] | None = None,
        producer_config: Mapping[str, Any] | None = None,
        consumer_config: Mapping[str, Any] | None = None,
        objects: str = "",
        keys: str = "",
        keys_optional: bool = False,
        protection: str | None = None,
        claim_from_bytes: int = CLAIM_FROM_BYTES,
        scaler: Scaler | None = None,
    ) -> None:
        if not service or len(service) > _SERVICE_MAX or clean(service, _SERVICE_MAX) != service:
            raise ConfigError(f"service: {service!r:.80} must be text of 1 to {_SERVICE_MAX} characters")
        if not 1 <= workers <= _WORKERS_MAX:
            raise ConfigError(f"workers: {workers} must be 1 to {_WORKERS_MAX}")
        self.service = service
        self.producer_name = f"{service}/{socket.gethostname()}/{os.getpid()}"[:_PRODUCER_MAX]
        self.closing = False
        #: Carries out ScaleResources.
        self.scaler = scaler
        self._settings = Settings(
            kafka=kafka,
            service=service,
            common=config or {},
            of_producer=producer_config or {},
            of_consumer=consumer_config or {},
        )
        self.vault = Vault.open(keys, objects, protection, claim_from_bytes)
        self._registry = Registry(registry) if registry else None
        ids = SchemaIds(self._registry) if self._registry is not None else None
        self.outbox = Outbox(self._settings, ids, tuple(interceptors))
        self.reader = History(self._settings.reader(), Codec(self._registry), self.vault.objects)
        self.grants = Grants(self._settings.reader(), lambda: Codec(self._registry))
        keystore = self.vault.keystore
        self.restorer = Restorer(
            self.reader,
            keys=None if keystore is None else keystore.get,
            keys_optional=keys_optional,
            objects=self.vault.objects,
        )
        self.work = Work(self, workers)
        self._commands = Commands(self)
        self._types: dict[str, WorkflowType] = {}
        self._listener: Listener | None = None
        self._undelivered: Undelivered | None = None
        atexit.register(self._at_exit)

    @classmethod
    def connect(
        cls,
        service: str,
        *,
        kafka: str | None = None,
        registry: str | None = None,
        objects: str | None = None,
        keys: str | None = None,
        **options: Any,
    ) -> Client:
        """Connect with the given addresses, else KINTSUGI_KAFKA, KINTSUGI_REGISTRY, KINTSUGI_OBJECTS and KINTSUGI_KEYS.

        Kafka need not be there yet. An empty text is none. Options are those of the class.
        """
        given = os.environ.get
        kafka = kafka or given("KINTSUGI_KAFKA")
        if not kafka:
            raise ConfigError("KINTSUGI_KAFKA is not set", hint="Client.connect(..., kafka='host:9092')")
        options.setdefault("keys_optional", keys_optional())
        return cls(
            service,
            kafka=kafka,
            registry=registry or given("KINTSUGI_REGISTRY") or None,
            objects=given("KINTSUGI_OBJECTS", "") if objects is None else objects,
            keys=given("KINTSUGI_KEYS", "") if keys is None else keys,
            **options,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def workflow_type(
        self,
        name: str,
        *,
        version: str = "1",
        steps: Sequence[StepSpec] = (),
        timeout_ms: int | None = None,
        checkpoints: CheckpointPolicy | Mapping[str, Any] | None = None,
        checkpoint_types: Collection[str] | None = None,
        critical_steps: Collection[str] | None = None,
        codec: str | None = None,
        state_schema: Mapping[str, Any] | None = None,
        migrations: Migrations | None = None,
    ) -> WorkflowType:
        """Declare a workflow type of this service, before `listen`.

        `checkpoints` is a CheckpointPolicy, or the `checkpoints` block of a policy file; or give single parts of it.
        `state_schema` is the JSON Schema (draft 2020-12) of the state's data in this version.
        """
        if name in self._types:
            raise ConfigError(f"workflow type {name!r} is declared twice")
        if self._listener is not None:
            raise ConfigError(f"workflow type {name!r} is declared after listen(): commands for it may be lost by now")
        kind = self._types[name] = WorkflowType(
            self,
            name,
            version=version,
            steps=steps,
            timeout_ms=timeout_ms,
            policy=_policy(name, checkpoints, types=checkpoint_types, critical_steps=critical_steps, codec=codec),
            state_schema=state_schema,
            migrations=migrations,
        )
        return kind

    def listen(self, *, ready_timeout_s: float = 30.0) -> bool:
        """Begin to carry out commands, in the group named after the service. True once partitions are assigned.

        False when that takes longer than the timeout, because Kafka is away: the client goes on trying.
        """
        if self.closing:
            raise ClosedError("the client is closed")
        if self._listener is None:
            wanted = self._types.__contains__
            own, watched = (Inbox(Codec(self._registry), wanted, complains=own) for own in (True, False))
            self._listener = Listener(self._settings.member(), self._settings.reader(), (own, watched), self._commands)
            self._listener.start()
        return self._listener.ready(ready_timeout_s)

    def serve(self) -> Undelivered:
        """Listen until SIGTERM or Ctrl-C, then close: the end of a service's main function."""
        if threading.current_thread() is not threading.main_thread():
            raise ConfigError(
                "serve() waits for signals, which only the main thread can", hint="use listen() and close()"
            )
        stop = threading.Event()
        signals = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, lambda *_: stop.set()) for number in signals}
        try:
            self.listen(ready_timeout_s=0)
            stop.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return self.close()

    def stats(self) -> dict[str, int]:
        """Counters: commands and states by what became of them, workflows here, runs waiting, threads left behind."""
        return {
            **self._commands.counts(),
            **self.vault.counts(),
            "unreadable": self._listener.unreadable if self._listener else 0,
            "workflows": len(self.work.all()),
            "queued": self.work.runner.queued,
            "abandoned": self.work.runner.abandoned,
        }

    def close(self, timeout_s: float = 10.0) -> Undelivered:
        """Stop listening, let running steps end within the time, flush; returns what Kafka never confirmed.

        No further step begins; a workflow that stands between two is taken up by another process, or by the next.
        """
        if self._undelivered is not None:
            return self._undelivered
        deadline_s = time.monotonic() + timeout_s
        self.closing = True
        if self._listener is not None:
            self._listener.close(timeout_s)
        self.restorer.close()
        self.work.runner.close()
        self.work.runner.wait(deadline_s - time.monotonic())
        self._undelivered = self.outbox.close(max(_FLUSH_FLOOR_S, deadline_s - time.monotonic()))
        self.grants.close(_CLOSE_GRANTS_S)
        self.reader.close()
        if self._registry is not None:
            self._registry.close()
        if self._undelivered:
            log.warning("not confirmed by Kafka: %s", self._undelivered)
        atexit.unregister(self._at_exit)
        return self._undelivered

    def _at_exit(self) -> None:
        """The process ends, and nobody has closed the client: what is in the buffer gets a last chance."""
        self.close(_AT_EXIT_S)

    # -- workflows in this process --------------------------------------------------------------------------------

    def workflows(self) -> list[Workflow]:
        """Workflows that this process holds."""
        return self.work.all()

    def workflow(self, workflow_id: str) -> Workflow | None:
        """A workflow, if this process holds it."""
        return self.work.get(workflow_id)

    def restore(self, command: Command) -> Workflow:
        """For a handler: the workflow, standing at the command's verified checkpoint, or at its start; this process's
        now. Its steps are run with `workflow.step(...)`, but for those in `workflow.completed`.

        RestoreError when the checkpoint cannot be had or does not verify.
        """
        return self._commands.restore(command)

    def begin(
        self, kind: WorkflowType, data: dict[str, Any] | None, workflow_id: str | None, *, run_steps: bool = False
    ) -> Workflow:
        """Start a workflow: see `WorkflowType.begin` and `WorkflowType.start`."""
        if self.closing:
            raise ClosedError("the client is closed")
        kind.check()
        text = _input_text(data)
        if run_steps:
            self.work.runner.check_room()
        run = Run()
        run.data = json.loads(text)
        workflow = self.work.adopt(kind, workflow_id, run)
        try:
            self.vault.prepare(workflow.workflow_id)
            workflow.announce(text)
            if run_steps:
                self.work.submit(workflow, run)
        except BaseException:
            self.work.forget(workflow)
            raise
        return workflow

    # -- for commands ---------------------------------------------------------------------------------------------

    def kind(self, name: str) -> WorkflowType:
        """A declared workflow type."""
        return self._types[name]

    def settle(self, command_id: str, status: str) -> None:
        """Remember how a command ended, for when a copy of it arrives."""
        if self._listener is not None:
            self._listener.ledger.settle(command_id, status)


def _policy(name: str, given: CheckpointPolicy | Mapping[str, Any] | None, **parts: Any) -> CheckpointPolicy:
    parts = {part: value for part, value in parts.items() if value is not None}
    try:
        if given is None:
            return CheckpointPolicy(**parts)
        if parts:
            raise ConfigError(f"checkpoints and {', '.join(parts)}: give the one or the others")
        return given if isinstance(given, CheckpointPolicy) else CheckpointPolicy.from_block(given)
    except ConfigError as error:
        raise ConfigError(f"workflow type {name!r:.80}: {error}", hint=error.hint) from error


def _input_text(data: Any) -> str:
    """The input as it is kept in the log: from there a restart takes it, so it is refused like any other state."""
    if not isinstance(data, dict | None):
        raise StateError("structure", f"$: the input is a JSON object, not {type(data).__name__}")
    return canonical_bytes(data or {}).decode()
