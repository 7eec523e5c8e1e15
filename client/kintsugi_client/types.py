"""A workflow's definition: its step graph, the functions of its steps, and the handlers of its commands."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._schemas.admission import STEPS_MAX
from ._schemas.errors import ConfigError, StateError
from ._schemas.migrations import Migration, Migrations
from ._schemas.records import COMMAND_TYPES, Command
from ._schemas.records.events import StepSpec
from ._schemas.state_schema import compiled, schema_text
from .policy import CheckpointPolicy
from .run import Run
from .step import StepContext
from .texts import STEP_ID_MAX, clean
from .workflow import Workflow

if TYPE_CHECKING:
    from .client import Client

StepFunction = Callable[[StepContext], Any]
#: A handler is given the command and the workflow (None when it is not in this process); what it raises is "failed".
CommandHandler = Callable[[Command, Workflow | None], Any]

_NAME_MAX = 255
_VERSION_MAX = 50
#: What the engine's records can hold.
_TIMEOUT_MS_MAX = 2**53


class WorkflowType:
    """Steps in declared order; a step may only depend on steps declared before it, so that order satisfies all."""

    def __init__(
        self,
        client: Client,
        name: str,
        *,
        version: str,
        steps: Sequence[StepSpec] = (),
        timeout_ms: int | None = None,
        policy: CheckpointPolicy,
        state_schema: Mapping[str, Any] | None = None,
        migrations: Migrations | None = None,
    ) -> None:
        _check_text("workflow type", name, _NAME_MAX)
        _check_text(f"workflow type {name!r}: version", version, _VERSION_MAX)
        _check_timeout(f"workflow type {name!r}: timeout_ms", timeout_ms)
        self.name = name
        self.version = version
        self.timeout_ms = timeout_ms
        self.policy = policy
        #: What `data` looks like in this version, as it travels in the log.
        self.state_schema = None if state_schema is None else _schema_text(name, state_schema)
        self.migrations = Migrations() if migrations is None else migrations
        self.functions: dict[str, StepFunction] = {}
        self.handlers: dict[str, CommandHandler] = {}
        self._client = client
        self._specs: dict[str, StepSpec] = {}
        for spec in steps:
            self._declare(spec)

    def specs(self) -> tuple[StepSpec, ...]:
        """The step graph, in declared order. ConfigError when it names a step that was never declared."""
        for spec in self._specs.values():
            for what, other in (("alternative", spec.alternative), ("compensation", spec.compensation)):
                if other is not None and other not in self._specs:
                    raise ConfigError(f"step {spec.step_id!r}: {what} {other!r} is not declared")
        return tuple(self._specs.values())

    def spec(self, step_id: str) -> StepSpec | None:
        """One step's declaration."""
        return self._specs.get(step_id)

    def is_critical(self, step_id: str) -> bool:
        """Whether the step's completion makes a critical point."""
        spec = self._specs.get(step_id)
        return step_id in self.policy.critical_steps or (spec is not None and spec.critical)

    def check_data(self, data: object) -> None:
        """StateError "schema" with the path that is not as the state's JSON Schema says."""
        if self.state_schema is not None:
            compiled(self.state_schema).validate(data)

    def check_step(self, step_id: str, timeout_ms: int | None) -> None:
        """ConfigError for a step that no reader would accept. Steps that were not declared are allowed."""
        _check_text("step id", step_id, STEP_ID_MAX)
        _check_timeout(f"step {step_id!r}: timeout_ms", timeout_ms)

    def step(
        self,
        step_id: str,
        *,
        depends_on: Sequence[str] = (),
        timeout_ms: int | None = None,
        heartbeat_timeout_ms: int | None = None,
        critical: bool = False,
        idempotent: bool = True,
        alternative: str | None = None,
    ) -> Callable[[StepFunction], StepFunction]:
        """Declare a step; its function takes a StepContext and may be a coroutine function."""
        if isinstance(depends_on, str):
            raise ConfigError(f"step {step_id!r}: depends_on is a list of steps, not the text {depends_on!r}")
        spec = StepSpec(
            step_id=step_id,
            depends_on=tuple(depends_on),
            alternative=alternative,
            timeout_ms=timeout_ms,
            heartbeat_timeout_ms=heartbeat_timeout_ms,
            critical=critical,
            idempotent=idempotent,
        )
        self._check(spec)

        def register(function: StepFunction) -> StepFunction:
            self._declare(spec)
            self.functions[step_id] = function
            return function

        return register

    def _declare(self, spec: StepSpec) -> None:
        self._check(spec)
        self._specs[spec.step_id] = spec

    def _check(self, spec: StepSpec) -> None:
        self.check_step(spec.step_id, spec.timeout_ms)
        _check_timeout(f"step {spec.step_id!r}: heartbeat_timeout_ms", spec.heartbeat_timeout_ms)
        if spec.step_id in self._specs:
            raise ConfigError(f"step {spec.step_id!r} is declared twice")
        unknown = [d for d in spec.depends_on if d not in self._specs]
        if unknown:
            raise ConfigError(f"step {spec.step_id!r} depends on {unknown[0]!r}, which is not declared before it")
        if len(self._specs) >= STEPS_MAX:
            raise ConfigError(f"workflow type {self.name!r}: more than {STEPS_MAX} steps")

    def on(self, command: str) -> Callable[[CommandHandler], CommandHandler]:
        """Register a handler for a command of this workflow type, instead of what the client does by itself."""
        if command not in COMMAND_TYPES:
            raise ConfigError(f"no command {command!r}; one of {', '.join(COMMAND_TYPES)}")
        if command in self.handlers:
            raise ConfigError(f"workflow type {self.name!r}: two handlers for {command}")

        def register(handler: CommandHandler) -> CommandHandler:
            self.handlers[command] = handler
            return handler

        return register

    def migration(self, from_version: str, to_version: str) -> Callable[[Migration], Migration]:
        """Register a function that makes the data of one version to those of the next; it may change what it is given,
        which is a copy. ConfigError when it leads back, or opens a second way between two versions."""
        return self.migrations.add(from_version, to_version)

    def begin(self, data: dict[str, Any] | None = None, *, workflow_id: str | None = None) -> Workflow:
        """Start a workflow whose steps the service runs itself, with `workflow.step(...)`.

        StateError when `data` is no JSON object, BufferFullError when Kafka is away and the buffer has no room.
        """
        return self._client.begin(self, data, workflow_id)

    def start(self, data: dict[str, Any] | None = None, *, workflow_id: str | None = None) -> Workflow:
        """Start a workflow whose declared step functions the client runs, in a pool of threads. Raises as `begin`."""
        if not self.functions:
            raise ConfigError(f"workflow type {self.name!r} declares no step function")
        return self._client.begin(self, data, workflow_id, run_steps=True)

    def carry_out(self, workflow: Workflow, run: Run) -> None:
        """Run every declared step that is not completed, in order, in this thread."""
        for step_id, function in list(self.functions.items()):
            if step_id in run.completed:
                continue
            with StepContext(workflow, step_id, run) as context:
                wait_for(function(context))
        workflow.complete(run=run)


def wait_for(result: Any) -> None:
    """Run what a coroutine function returned to its end, in this thread."""
    if inspect.isawaitable(result):
        asyncio.run(_await(result))


async def _await(result: Awaitable[Any]) -> None:
    await result


def _schema_text(name: str, schema: Mapping[str, Any]) -> str:
    if not isinstance(schema, Mapping):
        raise ConfigError(f"workflow type {name!r}: state_schema is a mapping, not {type(schema).__name__}")
    try:
        return schema_text(schema)
    except StateError as error:
        raise ConfigError(f"workflow type {name!r}: state_schema: {error}") from error


def _check_text(what: str, text: str, limit: int) -> None:
    if not isinstance(text, str) or not text or len(text) > limit or clean(text, limit) != text:
        raise ConfigError(
            f"{what}: {text!r:.80} must be text of 1 to {limit} characters, without U+0000 and surrogates"
        )


def _check_timeout(what: str, timeout_ms: int | None) -> None:
    if timeout_ms is None:
        return
    if not isinstance(timeout_ms, int) or isinstance(timeout_ms, bool) or not 1 <= timeout_ms <= _TIMEOUT_MS_MAX:
        raise ConfigError(f"{what}: {timeout_ms!r} must be a whole number of milliseconds, above 0")
