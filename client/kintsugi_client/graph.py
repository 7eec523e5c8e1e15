"""A workflow type's steps: their declarations, in declared order, and which of them the normal order leaves out."""

from __future__ import annotations

from ._schemas.admission import STEPS_MAX
from ._schemas.errors import ConfigError
from ._schemas.records.events import StepSpec
from .texts import MESSAGE_MAX, STEP_ID_MAX, clean

#: What the engine's records can hold.
_TIMEOUT_MS_MAX = 2**53
#: Resources that one step may name; each is asked for on its own.
_RESOURCES_MAX = 100


class StepGraph:
    """A step may only depend on steps declared before it, so that declared order satisfies all."""

    def __init__(self, type_name: str) -> None:
        self._type_name = type_name
        self._specs: dict[str, StepSpec] = {}
        self._questions: dict[str, str] = {}

    def declare(self, spec: StepSpec, question: str | None = None) -> None:
        """Add a step; `question` is what a human is asked before it. ConfigError as `check`."""
        self.check(spec)
        self._specs[spec.step_id] = spec
        if question is not None:
            self._questions[spec.step_id] = clean(question, MESSAGE_MAX)

    def asks(self, step_id: str) -> bool:
        """Whether a human is asked before the step."""
        spec = self._specs.get(step_id)
        return spec is not None and spec.intervention_point

    def question(self, step_id: str) -> str | None:
        """What a human is asked before the step."""
        return self._questions.get(step_id)

    def check(self, spec: StepSpec) -> None:
        """ConfigError for a declaration that no reader would accept, or that does not fit those before it."""
        check_step(spec.step_id, spec.timeout_ms)
        check_timeout(f"step {spec.step_id!r}: heartbeat_timeout_ms", spec.heartbeat_timeout_ms)
        if spec.step_id in self._specs:
            raise ConfigError(f"step {spec.step_id!r} is declared twice")
        unknown = [d for d in spec.depends_on if d not in self._specs]
        if unknown:
            raise ConfigError(f"step {spec.step_id!r} depends on {unknown[0]!r}, which is not declared before it")
        if spec.step_id in (spec.alternative, spec.compensation):
            raise ConfigError(f"step {spec.step_id!r} cannot be its own alternative or compensation")
        if len(spec.resources) > _RESOURCES_MAX:
            raise ConfigError(f"step {spec.step_id!r}: more than {_RESOURCES_MAX} resources")
        for resource in spec.resources:
            check_text(f"step {spec.step_id!r}: resource", resource, STEP_ID_MAX)
        if len(self._specs) >= STEPS_MAX:
            raise ConfigError(f"workflow type {self._type_name!r}: more than {STEPS_MAX} steps")

    def specs(self) -> tuple[StepSpec, ...]:
        """All steps, in declared order. ConfigError when one names a step that was never declared."""
        for spec in self._specs.values():
            for what, other in (("alternative", spec.alternative), ("compensation", spec.compensation)):
                if other is not None and other not in self._specs:
                    raise ConfigError(f"step {spec.step_id!r}: {what} {other!r} is not declared")
        return tuple(self._specs.values())

    def spec(self, step_id: str) -> StepSpec | None:
        """One step's declaration."""
        return self._specs.get(step_id)

    def aside(self) -> frozenset[str]:
        """Steps that run only when a command asks for them: alternatives and compensations of others."""
        named = (other for spec in self._specs.values() for other in (spec.alternative, spec.compensation))
        return frozenset(other for other in named if other is not None)


def check_step(step_id: str, timeout_ms: int | None) -> None:
    """ConfigError for a step that no reader would accept. Steps that were not declared are allowed."""
    check_text("step id", step_id, STEP_ID_MAX)
    check_timeout(f"step {step_id!r}: timeout_ms", timeout_ms)


def check_text(what: str, text: str, limit: int) -> None:
    """ConfigError for a name that Avro or Postgres refuse, that is empty or too long."""
    if not isinstance(text, str) or not text or len(text) > limit or clean(text, limit) != text:
        raise ConfigError(
            f"{what}: {text!r:.80} must be text of 1 to {limit} characters, without U+0000 and surrogates"
        )


def check_timeout(what: str, timeout_ms: int | None) -> None:
    """ConfigError for what is no number of milliseconds."""
    if timeout_ms is None:
        return
    if not isinstance(timeout_ms, int) or isinstance(timeout_ms, bool) or not 1 <= timeout_ms <= _TIMEOUT_MS_MAX:
        raise ConfigError(f"{what}: {timeout_ms!r} must be a whole number of milliseconds, above 0")
