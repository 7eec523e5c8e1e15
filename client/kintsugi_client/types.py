"""A workflow's definition: its step graph, the functions of its steps, and the handlers of its commands."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._schemas.errors import ConfigError, StateError
from ._schemas.migrations import Migration, Migrations
from ._schemas.records import COMMAND_TYPES, Command
from ._schemas.records.events import StepSpec
from ._schemas.state_schema import compiled, schema_text
from .graph import StepGraph, check_text, check_timeout
from .policy import CheckpointPolicy
from .run import Run
from .step import StepContext
from .workflow import Workflow

if TYPE_CHECKING:
    from .client import Client

StepFunction = Callable[[StepContext], Any]
#: Says whether a run took effect; None when it cannot tell.
ReconcileFunction = Callable[[StepContext], Any]
#: Picks from the state's data what a step works on.
GivenFunction = Callable[[dict[str, Any]], Any]
#: A handler is given the command and the workflow (None when it is not in this process); what it raises is "failed".
CommandHandler = Callable[[Command, Workflow | None], Any]

_NAME_MAX = 255
_VERSION_MAX = 50


class WorkflowType:
    """A definition: its steps run in declared order."""

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
        check_text("workflow type", name, _NAME_MAX)
        check_text(f"workflow type {name!r}: version", version, _VERSION_MAX)
        check_timeout(f"workflow type {name!r}: timeout_ms", timeout_ms)
        self.name = name
        self.version = version
        self.timeout_ms = timeout_ms
        self.policy = policy
        #: What `data` looks like in this version, as it travels in the log.
        self.state_schema = None if state_schema is None else _schema_text(name, state_schema)
        self.migrations = Migrations() if migrations is None else migrations
        self.functions: dict[str, StepFunction] = {}
        self.handlers: dict[str, CommandHandler] = {}
        self.reconcilers: dict[str, ReconcileFunction] = {}
        self.graph = StepGraph(name)
        self._given: dict[str, GivenFunction] = {}
        self._client = client
        for spec in steps:
            self.graph.declare(spec)

    def check(self) -> None:
        """ConfigError when the declarations do not belong together."""
        for spec in self.graph.specs():
            known = spec.step_id in self.reconcilers or "ReconcileStep" in self.handlers
            if spec.reconcilable and self.functions and not known:
                raise ConfigError(
                    f"step {spec.step_id!r} is reconcilable, and nothing reconciles it",
                    hint=f'@kind.reconcile("{spec.step_id}")',
                )

    def is_critical(self, step_id: str) -> bool:
        """Whether the step's completion makes a critical point."""
        spec = self.graph.spec(step_id)
        return step_id in self.policy.critical_steps or (spec is not None and spec.critical)

    def check_data(self, data: object) -> None:
        """StateError "schema" with the path that is not as the state's JSON Schema says."""
        if self.state_schema is not None:
            compiled(self.state_schema).validate(data)

    def step(
        self,
        step_id: str,
        *,
        depends_on: Sequence[str] = (),
        timeout_ms: int | None = None,
        heartbeat_timeout_ms: int | None = None,
        critical: bool = False,
        idempotent: bool = True,
        reconcilable: bool = False,
        alternative: str | None = None,
        compensation: str | None = None,
        intervention_point: bool | str = False,
        polls: bool = False,
        resources: Sequence[str] = (),
        given: GivenFunction | None = None,
    ) -> Callable[[StepFunction], StepFunction]:
        """Declare a step; its function takes a StepContext and may be a coroutine function.

        `alternative` and `compensation` name steps that run only when a command asks for them: instead of this one, and
        to undo it. `intervention_point` may be the text of what a human is asked before the step. `given` picks from
        the state what the step works on. What the function returns is the step's output; of both, if they are JSON,
        the log is told the digest.
        """
        for what, names in (("depends_on", depends_on), ("resources", resources)):
            if isinstance(names, str):
                raise ConfigError(f"step {step_id!r}: {what} is a list, not the text {names!r}")
        spec = StepSpec(
            step_id=step_id,
            depends_on=tuple(depends_on),
            alternative=alternative,
            compensation=compensation,
            timeout_ms=timeout_ms,
            heartbeat_timeout_ms=heartbeat_timeout_ms,
            critical=critical,
            idempotent=idempotent,
            reconcilable=reconcilable,
            intervention_point=bool(intervention_point),
            resources=tuple(resources),
            polls=polls,
        )
        self.graph.check(spec)

        def register(function: StepFunction) -> StepFunction:
            self.graph.declare(spec, intervention_point if isinstance(intervention_point, str) else None)
            self.functions[step_id] = function
            if given is not None:
                self._given[step_id] = given
            return function

        return register

    def reconcile(self, step_id: str) -> Callable[[ReconcileFunction], ReconcileFunction]:
        """Register what finds out whether a run of a reconcilable step took effect: True, False, or None for "cannot
        tell". It only reads, but when it took effect it may put the step's result into `ctx.state`."""
        spec = self.graph.spec(step_id)
        if spec is None or not spec.reconcilable:
            raise ConfigError(f"step {step_id!r} is not declared with reconcilable=True")
        if step_id in self.reconcilers:
            raise ConfigError(f"step {step_id!r} is reconciled twice")

        def register(function: ReconcileFunction) -> ReconcileFunction:
            self.reconcilers[step_id] = function
            return function

        return register

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
        """Run every declared step of the normal order that is not completed, in this thread, and end the workflow."""
        aside = self.graph.aside()
        for step_id in list(self.functions):
            if step_id not in run.completed and step_id not in aside:
                self.run_step(step_id, workflow, run)
        workflow.complete(run=run)

    def run_step(self, step_id: str, workflow: Workflow, run: Run, *, instead_of: str | None = None) -> None:
        """Run one declared step, in this thread."""
        pick = self._given.get(step_id)
        try:
            given = None if pick is None else pick(run.data)
        except Exception as error:
            workflow.report_error(step_id, error, run=run)
            raise
        with StepContext(workflow, step_id, run, given=given, instead_of=instead_of) as context:
            context.output(wait_for(self.functions[step_id](context)))


def wait_for(result: Any) -> Any:
    """What a function returned; of a coroutine function, once it has run to its end in this thread."""
    return asyncio.run(_await(result)) if inspect.isawaitable(result) else result


async def _await(result: Awaitable[Any]) -> Any:
    return await result


def _schema_text(name: str, schema: Mapping[str, Any]) -> str:
    if not isinstance(schema, Mapping):
        raise ConfigError(f"workflow type {name!r}: state_schema is a mapping, not {type(schema).__name__}")
    try:
        return schema_text(schema)
    except StateError as error:
        raise ConfigError(f"workflow type {name!r}: state_schema: {error}") from error
