"""A scenario as YAML says it, checked. Errors name the file, the scenario and what is allowed."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from engine.by_hand import CANCEL, SKIP
from engine.classify import ERROR_TYPES
from engine.ladder import GIVE_UP
from engine.policy import Policy, default_policy, load_policy
from engine.strategies import STRATEGIES
from schemas.errors import KintsugiError
from schemas.records import COMMAND_TYPES
from schemas.records.events import StepSpec

from .words import Answer, Never, Outcome, Person, parse_answer, parse_never, parse_outcome, parse_person
from .words import duration_ms as parse_duration

HERE = Path(__file__).parent
DEFAULT_POLICY = Path(__file__).parents[2] / "engine" / "policy" / "default.yaml"
#: A family's matrix stays small: each of its cases should tell something of its own.
CASES_OF_MATRIX_MAX = 8

Duration = Annotated[int, BeforeValidator(parse_duration)]
CommandName = Annotated[str, AfterValidator(lambda name: _one_of(name, (*COMMAND_TYPES, "any"), "command"))]
#: Besides those of a ladder, what only people choose, and what comes where nobody is asked.
_STRATEGIES = (*STRATEGIES, SKIP, CANCEL, GIVE_UP)
Strategy = Annotated[str, AfterValidator(lambda name: _one_of(name, _STRATEGIES, "strategy"))]
#: A workflow that stands before an intervention point is asked about as an error is, and is none.
POINT = "intervention_point"
ErrorType = Annotated[str, AfterValidator(lambda name: _one_of(name, (*ERROR_TYPES, POINT), "error type"))]


def _one_of(name: str, allowed: tuple[str, ...], what: str) -> str:
    if name not in allowed:
        raise ValueError(f"no {what} is called {name!r}; there are {', '.join(sorted(allowed))}")
    return name


def _listed(value: object) -> object:
    return value if isinstance(value, list) else [value]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Step(_Part):
    """A step of the graph. Without `after` it needs the step above it."""

    step: str
    after: list[str] | None = None
    timeout: Duration | None = None
    heartbeat: Duration | None = None
    critical: bool = False
    idempotent: bool = True
    reconcilable: bool = False
    polls: bool = False
    intervention_point: bool = False
    alternative: str | None = None
    compensation: str | None = None
    resources: list[str] = []


def _step(value: object) -> object:
    return {"step": value} if isinstance(value, str) else value


def _outcomes(value: object) -> list[Outcome]:
    return [outcome for text in _texts(value) for outcome in parse_outcome(text)]


def _answers(value: object) -> list[Answer]:
    return [answer for text in _texts(value) for answer in parse_answer(text)]


def _texts(value: object) -> list[str]:
    texts = _listed(value)
    assert isinstance(texts, list)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"a text or a list of texts is expected, not {value!r}")
    return texts


class Usage(_Part):
    """What a run of a step reports that it uses, every so often."""

    every: Duration = 10_000
    memory: list[float] = []
    cpu: list[float] = []
    api_calls: list[int] = []


class Repeat(_Part):
    """A part of a service's own course that it goes through several times."""

    repeat: Annotated[int, Field(ge=1, le=500)]
    steps: Annotated[list[str], BeforeValidator(_listed)]


class Expectation(_Part):
    """The label: what a user may expect."""

    end: Literal["completed", "waiting_for_human", "cancelled", "failed", "running"]
    type: ErrorType | None = None
    first: Strategy | None = None
    #: Commands in the order in which they were sent; nothing is said about them when it is left out.
    commands: list[CommandName] | None = None
    #: Strategies of all decisions, in order.
    strategies: list[Strategy] | None = None
    #: Steps in the order in which they were undone.
    undone: list[str] | None = None
    trigger: str | None = None
    never: list[Annotated[Never, BeforeValidator(parse_never)]] = []


class Scenario(_Part):
    """One workflow, what its service does, and the label."""

    name: Annotated[str, Field(min_length=8, max_length=110)]
    graph: Annotated[list[Annotated[Step, BeforeValidator(_step)]], Field(min_length=1)]
    timeout: Duration | None = None
    #: A service with its own control flow: steps in the order in which it runs them.
    course: list[str | Repeat] | None = None
    #: Outcomes of a step's consecutive runs; runs after the last one succeed.
    runs: dict[str, Annotated[list[Outcome], BeforeValidator(_outcomes)]] = {}
    usage: dict[str, Usage] = {}
    #: Answers to consecutive commands of a type; commands after the last one are carried out.
    answers: dict[CommandName, Annotated[list[Answer], BeforeValidator(_answers)]] = {}
    #: What else happens: when, and what.
    happens: dict[Duration, str] = {}
    people: list[Annotated[Person, BeforeValidator(parse_person)]] = []
    #: "twice": every record of the service arrives twice.
    delivery: Literal["once", "twice"] = "once"
    #: How many of the service's runs follow its course; those after them follow the graph.
    course_runs: Annotated[int, Field(ge=1)] = 1
    #: What tells a repetition from progress: checkpoints alone, or also the digests of inputs and outputs.
    digests: Literal["state", "input and output"] = "state"
    policy: dict[str, Any] = {}
    #: Policies that are applied later: when, and what differs from the story's then.
    policies: dict[Duration, dict[str, Any]] = {}
    until: Duration = 48 * 3_600_000
    expect: Expectation
    family: str
    healthy: bool

    @property
    def specs(self) -> tuple[StepSpec, ...]:
        """The graph as the workflow declares it."""
        made = []
        above: list[str] = []
        for step in self.graph:
            made.append(
                StepSpec(
                    step_id=step.step,
                    depends_on=tuple(self._needed(step, above)),
                    alternative=step.alternative,
                    compensation=step.compensation,
                    timeout_ms=step.timeout,
                    heartbeat_timeout_ms=step.heartbeat,
                    critical=step.critical,
                    idempotent=step.idempotent,
                    reconcilable=step.reconcilable,
                    intervention_point=step.intervention_point,
                    resources=tuple(step.resources),
                    polls=step.polls,
                )
            )
            if step.step not in self.aside:
                above = [step.step]
        undoing = {step.compensation for step in self.graph if step.compensation} - {step.step for step in self.graph}
        made.extend(StepSpec(step_id=name) for name in sorted(undoing))
        return tuple(made)

    def _needed(self, step: Step, above: list[str]) -> list[str]:
        if step.after is not None:
            return step.after
        return [] if step.step in self.aside else above

    @property
    def aside(self) -> frozenset[str]:
        """Steps that run only when a command asks for them: alternatives and compensations of others."""
        named = (other for step in self.graph for other in (step.alternative, step.compensation))
        return frozenset(other for other in named if other is not None)

    @property
    def path(self) -> list[str] | None:
        """The service's own course, written out."""
        if self.course is None:
            return None
        parts = ([part] if isinstance(part, str) else part.steps * part.repeat for part in self.course)
        return list(itertools.chain.from_iterable(parts))

    @property
    def loaded_policy(self) -> Policy:
        """The story's policy with the scenario's changes."""
        return _policy(self.policy_text(self.policy), self.name) if self.policy else default_policy()

    def policy_text(self, changes: Mapping[str, Any]) -> str:
        """The story's policy with these changes, as a file holds it."""
        return _text(merged(_default(), changes))

    @property
    def recoverable(self) -> bool:
        """Whether the workflow can be mended without a human, by the label."""
        return not self.healthy and self.expect.end == "completed" and not self.people

    @property
    def needs_human(self) -> bool:
        """Whether the label itself says that a human is asked."""
        return bool(self.people) or self.expect.end == "waiting_for_human"

    @model_validator(mode="after")
    def _names_are_known(self) -> Scenario:
        known = {spec.step_id for spec in self.specs}
        used = {*self.runs, *self.usage, *(self.path or ())}
        used |= {n for s in self.graph for n in (*(s.after or ()), *([s.alternative] if s.alternative else ()))}
        used |= set(self.expect.undone or ())
        used |= {never.subject for never in self.expect.never if never.about_step}
        if unknown := used - known:
            raise ValueError(
                f"no step is called {', '.join(sorted(unknown))}; the graph has {', '.join(sorted(known))}"
            )
        if not self.healthy and (self.expect.type is None or self.expect.first is None):
            raise ValueError("a failing scenario says its `type` and its `first` strategy")
        if self.healthy and (self.expect.type or self.expect.first):
            raise ValueError("a healthy scenario has no `type` and no `first` strategy")
        _ = self.loaded_policy
        for changes in self.policies.values():
            _policy(self.policy_text(changes), self.name)
        return self


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged; anything else above replaces what is below. An entry of a ladder is replaced as a whole."""
    made = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(made.get(key), Mapping) and "strategy" not in value
        made[key] = merged(made[key], value) if both else value
    return made


@cache
def _policy(text: str, name: str) -> Policy:
    return load_policy(text, f"policy of {name!r}")


def _text(blocks: Mapping[str, Any]) -> str:
    return json.dumps({"workflow_error_handling": blocks})


@cache
def _default() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(DEFAULT_POLICY.read_text(encoding="utf-8"))["workflow_error_handling"]
    return loaded


class ScenarioError(ValueError):
    """A file of scenarios is not as it must be."""


def load_file(path: Path) -> Iterator[Scenario]:
    """The scenarios of a file: each case of its matrices counts as one."""
    text = yaml.safe_load(path.read_text(encoding="utf-8"))
    allowed = {"family", "about", "defaults", "scenarios"}
    if not isinstance(text, dict) or not {"family", "scenarios"} <= set(text) <= allowed:
        raise ScenarioError(f"{path}: the top level has the keys {', '.join(sorted(allowed))}")
    for raw in text["scenarios"]:
        for case in _cases({**text.get("defaults", {}), **raw}, path):
            try:
                yield Scenario(**case, family=text["family"], healthy=path.parent.name == "healthy")
            except (ValidationError, KintsugiError, TypeError) as error:
                raise ScenarioError(f"{path}: scenario {case.get('name')!r}: {error}") from None


def _cases(raw: dict[str, Any], path: Path) -> Iterator[dict[str, Any]]:
    """One scenario, or one for each combination of its `matrix`."""
    matrix = raw.pop("matrix", None)
    if matrix is None:
        yield raw
        return
    combinations = list(itertools.product(*matrix.values()))
    if len(combinations) > CASES_OF_MATRIX_MAX:
        raise ScenarioError(f"{path}: {raw.get('name')!r}: {len(combinations)} cases, {CASES_OF_MATRIX_MAX} allowed")
    for values in combinations:
        yield _filled(raw, dict(zip(matrix, values, strict=True)))


def _filled(value: Any, words: dict[str, Any]) -> Any:
    """`{word}` stands for its value; a text that is nothing else becomes the value itself."""
    if isinstance(value, dict):
        return {_filled(k, words): _filled(v, words) for k, v in value.items()}
    if isinstance(value, list):
        return [_filled(v, words) for v in value]
    if not isinstance(value, str):
        return value
    whole = re.fullmatch(r"\{(\w+)\}", value)
    if whole and whole[1] in words:
        return words[whole[1]]
    return re.sub(r"\{(\w+)\}", lambda m: str(words.get(m[1], m[0])), value)


def load_all() -> list[Scenario]:
    """Every scenario. ScenarioError when a name is there twice."""
    found = [
        s for kind in ("failing", "healthy") for path in sorted((HERE / kind).glob("*.yaml")) for s in load_file(path)
    ]
    names = [s.name for s in found]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ScenarioError(f"names given twice: {', '.join(twice)}")
    return found
