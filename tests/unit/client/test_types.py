"""Declaring a workflow: the step graph and its mistakes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kintsugi_client import Client, ClosedError, ConfigError, StepSpec, WorkflowType
from kintsugi_client._schemas.records.events import WorkflowStarted

from .kit import Service


def nothing(ctx: object) -> None:
    """A step that does nothing."""


@pytest.fixture
def kind(service: Service) -> WorkflowType:
    return service.client.workflow_type("development")


def test_the_graph_is_told_when_a_workflow_starts(service: Service) -> None:
    kind = service.client.workflow_type("t", version="7", timeout_ms=5_000)
    kind.step("build", timeout_ms=1_000, heartbeat_timeout_ms=100, critical=True, alternative="copy")(nothing)
    kind.step("copy", idempotent=False)(nothing)
    kind.step("test", depends_on=["build"])(nothing)
    workflow = kind.begin({"a": 1})
    (started,) = service.of(WorkflowStarted)
    assert (started.workflow_id, started.workflow_version, started.timeout_ms) == (workflow.workflow_id, "7", 5_000)
    assert started.input == '{"a":1}'
    assert started.steps == (
        StepSpec(step_id="build", timeout_ms=1_000, heartbeat_timeout_ms=100, critical=True, alternative="copy"),
        StepSpec(step_id="copy", idempotent=False),
        StepSpec(step_id="test", depends_on=("build",)),
    )


def test_a_graph_may_be_given_as_a_whole(service: Service) -> None:
    steps = (StepSpec(step_id="a"), StepSpec(step_id="b", depends_on=("a",)))
    kind = service.client.workflow_type("t", steps=steps)
    kind.begin()
    assert service.of(WorkflowStarted)[0].steps == steps


_MISTAKES: list[tuple[str, Callable[[WorkflowType], object]]] = [
    ("'a' is declared twice", lambda k: [k.step("a")(nothing), k.step("a")]),
    ("depends on 'b', which is not declared before it", lambda k: k.step("a", depends_on=["b"])),
    ("depends on 'a', which is not declared before it", lambda k: k.step("a", depends_on=["a"])),
    ("depends_on is a list, not the text 'ab'", lambda k: k.step("a", depends_on="ab")),
    ("step id: '' must be text", lambda k: k.step("")),
    ("step id: 'x.* must be text of 1 to 255", lambda k: k.step("x" * 256)),
    ("without U.0000", lambda k: k.step("a\x00")),
    ("surrogates", lambda k: k.step("\ud800")),
    ("step id: 7 must be text", lambda k: k.step(7)),  # type: ignore[arg-type]
    ("'a': timeout_ms: 0 must be a whole number", lambda k: k.step("a", timeout_ms=0)),
    ("'a': timeout_ms: 1.5 must be", lambda k: k.step("a", timeout_ms=1.5)),  # type: ignore[arg-type]
    ("'a': heartbeat_timeout_ms: -1 must be", lambda k: k.step("a", heartbeat_timeout_ms=-1)),
    ("no command 'Retry'; one of CancelStep, CancelWorkflow", lambda k: k.on("Retry")),
    ("two handlers for RetryStep", lambda k: [k.on("RetryStep")(lambda c, w: None), k.on("RetryStep")]),
    ("resources is a list, not the text 'gpu'", lambda k: k.step("a", resources="gpu")),
    ("'a': resource: '' must be text", lambda k: k.step("a", resources=[""])),
    ("'a' cannot be its own alternative", lambda k: k.step("a", alternative="a")),
    ("'a' cannot be its own alternative or compensation", lambda k: k.step("a", compensation="a")),
    ("'a' is not declared with reconcilable=True", lambda k: [k.step("a")(nothing), k.reconcile("a")]),
    ("'b' is not declared with reconcilable=True", lambda k: k.reconcile("b")),
    (
        "'a' is reconciled twice",
        lambda k: [k.step("a", reconcilable=True)(nothing), k.reconcile("a")(nothing), k.reconcile("a")],
    ),
    ("'a' is reconcilable, and nothing", lambda k: [k.step("a", reconcilable=True)(nothing), k.start()]),
    ("compensation 'undo' is not declared", lambda k: [k.step("a", compensation="undo")(nothing), k.begin()]),
    ("alternative 'copy' is not declared", lambda k: [k.step("a", alternative="copy")(nothing), k.begin()]),
    ("declares no step function", lambda k: k.start()),
    ("workflow_id: not a canonical UUID", lambda k: k.begin(workflow_id="17")),
]


@pytest.mark.parametrize(("message", "declare"), _MISTAKES, ids=[m for m, _ in _MISTAKES])
def test_a_mistake_is_named_where_it_is_made(
    kind: WorkflowType, message: str, declare: Callable[[WorkflowType], object]
) -> None:
    with pytest.raises(ConfigError, match=message):
        declare(kind)


def test_a_decorator_that_is_used_twice_declares_twice(kind: WorkflowType) -> None:
    declare = kind.step("a")
    declare(nothing)
    with pytest.raises(ConfigError, match="twice"):
        declare(nothing)


_TYPES: list[tuple[str, dict[str, object]]] = [
    ("workflow type: ''", {"name": ""}),
    ("workflow type: 'xx", {"name": "x" * 256}),
    ("version: '' must be", {"name": "t", "version": ""}),
    ("version: 'v.* 1 to 50", {"name": "t", "version": "v" * 51}),
    ("timeout_ms: 0", {"name": "t", "timeout_ms": 0}),
    ("codec 'lz4' is none of identity, gzip, zstd", {"name": "t", "codec": "lz4"}),
    ("checkpoints.types: 'sometimes' is none of step_start", {"name": "t", "checkpoint_types": ("sometimes",)}),
    ("'a' is declared twice", {"name": "t", "steps": (StepSpec(step_id="a"), StepSpec(step_id="a"))}),
    ("depends on 'b'", {"name": "t", "steps": (StepSpec(step_id="a", depends_on=("b",)),)}),
    ("more than 10000 steps", {"name": "t", "steps": tuple(StepSpec(step_id=f"s{n}") for n in range(10_001))}),
]


@pytest.mark.parametrize(("message", "options"), _TYPES, ids=[m for m, _ in _TYPES])
def test_a_workflow_type_is_checked_when_it_is_declared(
    service: Service, message: str, options: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match=message):
        service.client.workflow_type(**options)  # type: ignore[arg-type]


def test_a_workflow_type_has_one_declaration(service: Service) -> None:
    service.client.workflow_type("t")
    with pytest.raises(ConfigError, match="'t' is declared twice"):
        service.client.workflow_type("t")


def test_an_id_can_be_held_once(kind: WorkflowType) -> None:
    workflow = kind.begin()
    with pytest.raises(ConfigError, match="is already here"):
        kind.begin(workflow_id=workflow.workflow_id)


def test_undeclared_steps_are_allowed_and_checked(kind: WorkflowType) -> None:
    workflow = kind.begin()
    with workflow.step("improvised", timeout_ms=5):
        pass
    with pytest.raises(ConfigError, match="step id"):
        workflow.step("")
    with pytest.raises(ConfigError, match="timeout_ms"):
        workflow.step("x", timeout_ms=0)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("service: ''", {"service": ""}),
        ("service: 'a", {"service": "a\x00"}),
        ("workers: 0", {"service": "s", "workers": 0}),
        ("No such configuration property", {"service": "s", "config": {"bootsrap.servers": "x"}}),
        ("acks: the client's promises rest on it", {"service": "s", "config": {"acks": "1"}}),
        ("partition.assignment.strategy: the", {"service": "s", "config": {"partition.assignment.strategy": "range"}}),
        ("enable.auto.commit: the client's", {"service": "s", "consumer_config": {"enable.auto.commit": True}}),
        ("queue.buffering.max.messages", {"service": "s", "config": {"queue.buffering.max.messages": 0}}),
        ("queue.buffering.max.messages", {"service": "s", "producer_config": {"queue.buffering.max.messages": "many"}}),
        ("KINTSUGI_REGISTRY: 'ftp://x' is not", {"service": "s", "registry": "ftp://x"}),
    ],
)
def test_wrong_settings_stop_the_service_at_start(message: str, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=message):
        Client.connect(kafka="127.0.0.1:1", **{"registry": None, **options})  # type: ignore[arg-type]


def test_an_address_must_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KINTSUGI_KAFKA", raising=False)
    with pytest.raises(ConfigError, match="KINTSUGI_KAFKA is not set"):
        Client.connect("s")


def test_nothing_starts_once_the_client_is_closed(service: Service, kind: WorkflowType) -> None:
    kind.step("a")(nothing)
    workflow = kind.begin()
    service.client.close()
    for attempt in (kind.begin, kind.start, service.client.listen, workflow.step("a").__enter__):
        with pytest.raises(ClosedError):
            attempt()
    assert service.client.close() == service.client.close()
