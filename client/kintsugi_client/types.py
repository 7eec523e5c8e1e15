"""A workflow's definition: its step graph, the functions of its steps, and the handlers of its commands."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ._schemas.errors import ConfigError
from ._schemas.records import COMMAND_TYPES, Command
from ._schemas.records.events import StepSpec
from .workflow import Run, StepContext, Workflow

if TYPE_CHECKING:
    from .client import Client

StepFunction = Callable[[StepContext], Any]
#: A handler is given the command and the workflow (None when it is not in this process); what it raises is "failed".
CommandHandler = Callable[[Command, Workflow | None], None]

CHECKPOINT_TYPES = ("step_start", "step_complete")


class WorkflowType:
    """Steps in declared order; dependencies decide the order in which they run."""

    def __init__(
        self,
        client: Client,
        name: str,
        *,
        version: str,
        steps: Sequence[StepSpec] = (),
        timeout_ms: int | None = None,
        checkpoint_types: Sequence[str] = CHECKPOINT_TYPES,
        codec: str = "gzip",
    ) -> None:
        self.name = name
        self.version = version
        self.timeout_ms = timeout_ms
        self.checkpoint_types = frozenset(checkpoint_types)
        self.codec = codec
        self._client = client
        self._specs: dict[str, StepSpec] = {s.step_id: s for s in steps}
        self.functions: dict[str, StepFunction] = {}
        self.handlers: dict[str, CommandHandler] = {}

    def specs(self) -> tuple[StepSpec, ...]:
        """The step graph, in declared order."""
        return tuple(self._specs.values())

    def spec(self, step_id: str) -> StepSpec | None:
        """One step's declaration."""
        return self._specs.get(step_id)

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
        if step_id in self._specs:
            raise ConfigError(f"step {step_id!r} is declared twice")
        unknown = [d for d in depends_on if d not in self._specs]
        if unknown:
            raise ConfigError(f"step {step_id!r} depends on {unknown[0]!r}, which is not declared before it")

        def register(function: StepFunction) -> StepFunction:
            self._specs[step_id] = StepSpec(
                step_id=step_id,
                depends_on=tuple(depends_on),
                alternative=alternative,
                timeout_ms=timeout_ms,
                heartbeat_timeout_ms=heartbeat_timeout_ms,
                critical=critical,
                idempotent=idempotent,
            )
            self.functions[step_id] = function
            return function

        return register

    def on(self, command: str) -> Callable[[CommandHandler], CommandHandler]:
        """Register a handler for a command of this workflow type, instead of what the client does by itself."""
        if command not in COMMAND_TYPES:
            raise ConfigError(f"no command {command!r}; one of {', '.join(COMMAND_TYPES)}")

        def register(handler: CommandHandler) -> CommandHandler:
            self.handlers[command] = handler
            return handler

        return register

    def begin(self, data: dict[str, Any] | None = None, *, workflow_id: str | None = None) -> Workflow:
        """Start a workflow whose steps the service runs itself, with `workflow.step(...)`."""
        workflow = self._client.adopt(self, data or {}, workflow_id)
        workflow.announce(Run(), data or {})
        return workflow

    def start(self, data: dict[str, Any] | None = None, *, workflow_id: str | None = None) -> Workflow:
        """Start a workflow whose declared step functions the client runs, in a pool of threads."""
        if not self.functions:
            raise ConfigError(f"workflow type {self.name!r} declares no step function")
        workflow = self._client.adopt(self, data or {}, workflow_id)
        self._client.submit(workflow, Run(), announce=data or {})
        return workflow

    def carry_out(self, workflow: Workflow, run: Run) -> None:
        """Run every declared step that is not completed, in order, in this thread."""
        for step_id in self.functions:
            if step_id in workflow.completed:
                continue
            with StepContext(workflow, step_id, run) as context:
                result = self.functions[step_id](context)
                if inspect.iscoroutine(result):
                    asyncio.run(result)
                context.check()
        workflow.complete(run=run)
