"""Checkpoints: what is kept of a state, under which type, in which chain, and what is refused."""

from __future__ import annotations

import itertools
import math
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kintsugi_client import NotDeliveredError, StateError, Workflow
from kintsugi_client._schemas.canonical import canonical_bytes, chain_digest_of, parse_state, verify_stored
from kintsugi_client._schemas.records.events import (
    CheckpointCreated,
    StatePersisted,
    StepCompleted,
    WorkflowErrorOccurred,
)
from kintsugi_client.checkpoints import Chain, Stored, canonical, evidence, next_link, pack
from kintsugi_client.policy import CheckpointPolicy

from .kit import Service


def state_of(record: CheckpointCreated) -> dict[str, Any]:
    """The document in a checkpoint, proven."""
    assert record.state is not None
    data = verify_stored(record.state, codec=record.codec, size_bytes=record.size_bytes, digest=record.digest)
    return parse_state(data)


def store(document: Mapping[str, Any], **policy: Any) -> Stored:
    return pack(canonical(document), CheckpointPolicy(**policy))


def cycle() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["again"] = value
    return value


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"in": value}
    return value


REFUSED = [
    pytest.param({"rate": math.nan}, "structure", "$.data.rate", id="NaN"),
    pytest.param({"rates": [1, math.inf]}, "structure", "$.data.rates[1]", id="infinite"),
    pytest.param({"name": "a\x00b"}, "structure", "$.data.name", id="U+0000"),
    pytest.param({"name": "\ud800"}, "structure", "$.data.name", id="lone surrogate"),
    pytest.param({"\udfff": 1}, "structure", "$.data", id="lone surrogate in a key"),
    pytest.param({"files": Path("x")}, "structure", "$.data.files", id="an object"),
    pytest.param({"ids": {1: "x"}}, "structure", "$.data.ids", id="a key that is no string"),
    pytest.param({"n": 2**60}, "structure", "$.data.n", id="an integer beyond doubles"),
    pytest.param({"big": "x" * (20 * 1024 * 1024)}, "limit", "$.data", id="20 MiB"),
    pytest.param(nested(70), "limit", None, id="depth"),
    pytest.param({"n": 10**49}, "structure", "$.data.n", id="an integer of 50 digits"),
    pytest.param({"t": datetime.now(UTC)}, "structure", "$.data.t", id="a time"),
    pytest.param({"s": {1}}, "structure", "$.data.s", id="a set"),
    pytest.param({"b": [b"x"]}, "structure", "$.data.b[0]", id="bytes"),
    pytest.param({"d": OrderedDict(a=1)}, "structure", "$.data.d", id="a dictionary of another class"),
    pytest.param({"k": dict.fromkeys(map(str, range(1_000_000)))}, "limit", "$.data.k", id="a million keys"),
    pytest.param(nested(1_000_000), "limit", None, id="nested a million deep"),
    pytest.param(cycle(), "limit", None, id="a cycle"),
]


def test_steps_named_critical_in_either_way_make_critical_points(service: Service) -> None:
    kind = service.client.workflow_type("t", critical_steps=("named",))
    kind.step("declared", critical=True)(lambda ctx: None)
    workflow = kind.begin()
    for step_id in ("named", "declared", "build"):
        with workflow.step(step_id):
            pass
    found = [(c.step_id, c.checkpoint_type) for c in service.of(CheckpointCreated)]
    assert found == [
        ("named", "step_start"),
        ("named", "critical_point"),
        ("declared", "step_start"),
        ("declared", "critical_point"),
        ("build", "step_start"),
        ("build", "step_complete"),
    ]


def test_the_storys_critical_steps_are_the_default(service: Service) -> None:
    workflow = service.client.workflow_type("t").begin()
    with workflow.step("deployment"):
        pass
    assert service.of(CheckpointCreated)[-1].checkpoint_type == "critical_point"


def test_checkpoints_verify_and_form_a_chain(service: Service) -> None:
    workflow = service.client.workflow_type("t").begin({"n": 1})
    with workflow.step("one") as step:
        step.state["n"] = 2
        step.checkpoint()
    with workflow.step("two"):
        pass
    found = service.of(CheckpointCreated)
    assert [c.sequence for c in found] == [1, 2, 3, 4, 5]
    assert [c.parent_digest for c in found] == [None, *(c.digest for c in found[:-1])]
    chain: str | None = None
    for record in found:
        chain = chain_digest_of(chain, record.digest)
        assert record.chain_digest == chain
    assert [state_of(c)["data"]["n"] for c in found] == [1, 2, 2, 2, 2]
    assert [state_of(c)["completed_steps"] for c in found] == [[], [], ["one"], ["one"], ["one", "two"]]
    assert {c.state_version for c in found} == {"1"} and not any(c.evidence for c in found)


def test_a_refused_checkpoint_leaves_the_chain_as_it_was(service: Service) -> None:
    workflow = service.client.workflow_type("t", checkpoint_types=()).begin()
    with workflow.step("one") as step:
        step.checkpoint()
        before = workflow.chain
        service.outbox.full_for = {"CheckpointCreated"}
        with pytest.raises(Exception, match="full"):
            step.checkpoint()
        assert workflow.chain == before
        service.outbox.full_for = set()
        step.checkpoint()
    assert [c.sequence for c in service.of(CheckpointCreated)] == [1, 2]


def test_small_states_are_stored_as_they_are_and_large_ones_compressed() -> None:
    small, large = store({"a": 1}), store({"a": "x" * 5000})
    assert (small.codec, small.state) == ("identity", b'{"a":1}')
    assert large.codec == "gzip" and len(large.state) < large.size_bytes == 5008
    assert store({"a": "x" * 5000}, codec="zstd").codec == "zstd"


@pytest.mark.parametrize(("data", "reason", "path"), REFUSED)
def test_a_state_that_is_no_data_is_refused_to_the_caller_and_nothing_is_sent(
    service: Service, data: dict[str, Any], reason: str, path: str | None
) -> None:
    workflow = service.client.workflow_type("t", checkpoint_types=("error_recovery",)).begin()
    step = workflow.step("one").__enter__()
    step.state.update(data)
    with pytest.raises(StateError) as refused:
        step.checkpoint()
    step.__exit__(StateError, refused.value, None)
    assert refused.value.reason == reason
    assert path is None or refused.value.path == path
    # The step has failed; its report carries the state as evidence, whatever it is.
    (evidence,) = service.of(CheckpointCreated)
    (error,) = service.of(WorkflowErrorOccurred)
    assert evidence.evidence and evidence.checkpoint_type == "error_recovery"
    assert (error.error_code, error.checkpoint_id) == ("StateError", evidence.checkpoint_id)
    assert state_of(evidence)["$kintsugi"] == "repr"
    assert service.of(StepCompleted) == []


@pytest.mark.parametrize("data", [{"rate": math.nan}, {"name": "\ud800"}, nested(70)])
def test_a_step_that_leaves_such_a_state_behind_has_failed(service: Service, data: dict[str, Any]) -> None:
    workflow = service.client.workflow_type("t").begin()
    with pytest.raises(StateError), workflow.step("one") as step:
        step.state.update(data)
    assert service.of(StepCompleted) == [] and workflow.completed == []
    (error,) = service.of(WorkflowErrorOccurred)
    assert (error.step_id, error.error_code) == ("one", "StateError")


def test_a_step_cannot_begin_on_such_a_state(service: Service) -> None:
    workflow = service.client.workflow_type("t").begin()
    workflow.data["rate"] = math.nan
    with pytest.raises(StateError, match=r"\$\.data\.rate"), workflow.step("one"):
        pytest.fail("the step must not run")
    assert [e.error_code for e in service.of(WorkflowErrorOccurred)] == ["StateError"]


@pytest.mark.parametrize("method", ["begin", "start"])
@pytest.mark.parametrize(("data", "reason", "path"), REFUSED)
def test_such_an_input_is_refused_at_the_call(
    service: Service, method: str, data: dict[str, Any], reason: str, path: str | None
) -> None:
    kind = service.client.workflow_type("t")
    kind.step("one")(lambda ctx: None)
    with pytest.raises(StateError) as refused:
        getattr(kind, method)(data)
    assert refused.value.reason == reason
    assert service.names == [] and service.client.workflows() == []


def test_an_input_that_is_no_object_is_refused(service: Service) -> None:
    with pytest.raises(StateError, match="a JSON object, not list"):
        service.client.workflow_type("t").begin([1])  # type: ignore[arg-type]


def test_the_input_is_the_workflows_own(service: Service) -> None:
    given_data = {"files": ["a"]}
    workflow = service.client.workflow_type("t").begin(given_data)
    given_data["files"].append("b")
    assert workflow.data == {"files": ["a"]}


def test_a_state_that_another_thread_changes_meanwhile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(value: object) -> bytes:
        raise RuntimeError("dictionary changed size during iteration")

    monkeypatch.setattr("kintsugi_client.checkpoints.canonical_bytes", changed)
    with pytest.raises(StateError, match="changed while it was being saved"):
        store({})


class Hostile:
    """An object whose every method fails."""

    def __repr__(self) -> str:
        raise ValueError("no")

    __str__ = __repr__


class Surrogates:
    def __repr__(self) -> str:
        return "\ud800\x00"


_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
    | st.builds(Hostile)
    | st.builds(Surrogates)
    | st.builds(object)
)
_ANYTHING = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=())), inner),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(_ANYTHING)
def test_evidence_is_kept_whatever_the_state_is(data: object) -> None:
    document = parse_state(evidence({"workflow_id": "w", "step_id": "s", "status": "running", "data": data}))
    assert document["step_id"] == "s"
    assert "data" in document or document["$kintsugi"] == "repr"


def test_evidence_of_a_20_mib_state_is_its_beginning_and_end() -> None:
    document = parse_state(evidence({"step_id": "s", "data": {"big": "x" * (20 * 1024 * 1024)}}))
    assert "allowed" in document["reason"]
    assert 90_000 < len(document["repr"]) <= 100_000


@pytest.mark.parametrize("data", [[1], None, "text", OrderedDict(a=1), defaultdict(list)], ids=repr)
def test_data_that_are_no_dictionary_are_refused(service: Service, data: Any) -> None:
    workflow = service.client.workflow_type("t", checkpoint_types=("error_recovery",)).begin()
    workflow.run.data = data
    with pytest.raises(StateError) as refused:
        workflow.checkpoint()
    assert (refused.value.reason, refused.value.path) == ("structure", "$.data")
    workflow.report_error("one", refused.value)
    assert [c.evidence for c in service.of(CheckpointCreated)] == [True]


class Slow:
    """As an object that asks a database what it is."""

    def __init__(self, release: threading.Event) -> None:
        self._release = release

    def __repr__(self) -> str:
        self._release.wait(20)
        return "late"


class Leaves:
    def __repr__(self) -> str:
        raise SystemExit(3)


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def shared() -> list[Any]:
    """10^60 values, were they all looked at."""
    value: list[Any] = ["leaf"]
    for _ in range(60):
        value = [value] * 10
    return value


@pytest.mark.parametrize(
    ("data", "shows"),
    [
        pytest.param({"a": cycle()}, "'again': ", id="a cycle"),
        pytest.param({"a": Hostile(), "b": 1}, "repr() failed with ValueError>, 'b': 1", id="a raising repr"),
        pytest.param({"a": Leaves()}, "repr() failed with SystemExit", id="a repr that would end the process"),
        pytest.param({"a": math.nan, "b": [1]}, "{'a': nan, 'b': [1]}", id="NaN"),
        pytest.param({"a": deep(1_000_000)}, "[[[[[[", id="nested a million deep"),
        pytest.param({"a": shared()}, "[[[[[[", id="shared parts"),
        pytest.param({"a": "x" * (11 * 1024 * 1024)}, "xxx", id="11 MiB"),
        pytest.param({"a": b"y" * (11 * 1024 * 1024)}, "yyy", id="11 MiB of bytes"),
        pytest.param({"a": list(range(2_000_000)), "b": object()}, "0, 1, 2, 3", id="two million items"),
        pytest.param({n: n for n in range(1_000_000)}, "{0: 0, 1: 1", id="a million keys"),
        pytest.param({"a": 10**10_000}, "int", id="an integer of 10,000 digits"),
        pytest.param({"a": 10**49}, "1" + "0" * 49, id="an integer of 50 digits"),
        pytest.param({"a": "\ud800", "b": "\x00"}, "'a': '\\ud800', 'b': '\\x00'", id="no characters"),
        pytest.param({"a": {1, 2}, "b": (3,)}, "{'a': {1, 2}, 'b': (3)}", id="sets and tuples"),
        pytest.param([1, 2], "", id="no object"),
    ],
)
def test_evidence_shows_what_it_can_of_anything(data: Any, shows: str) -> None:
    kept = evidence({"workflow_id": "w", "step_id": "s", "status": "running", "data": data})
    document = parse_state(kept)
    if shows:
        assert document["$kintsugi"] == "repr" and document["reason"]
        assert shows in document["repr"]
    assert len(kept) < 500_000


def test_evidence_does_not_wait_for_an_object_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kintsugi_client.checkpoints.EVIDENCE_TIMEOUT_S", 0.1)
    release = threading.Event()
    document = parse_state(evidence({"step_id": "s", "data": {"a": Slow(release)}}))
    assert document["repr"] == "<dict: repr: no answer within 0.1 s>"
    release.set()


def test_a_state_that_changes_meanwhile_is_refused_or_whole(service: Service) -> None:
    """And never blocks, or ends the step with anything but a StateError."""
    workflow = service.client.workflow_type("t", checkpoint_types=()).begin({"n": {}})
    stop = threading.Event()

    def change() -> None:
        numbers = workflow.data["n"]
        while not stop.is_set():
            for number in range(300):
                numbers[f"k{number}"] = number
            numbers.clear()

    thread = threading.Thread(target=change)
    refused: list[str] = []
    thread.start()
    try:
        for _ in range(200):
            try:
                workflow.checkpoint()
            except StateError as error:
                refused.append(str(error))
    finally:
        stop.set()
        thread.join()
    assert {"changed while it was being saved" in message for message in refused} <= {True}
    for record in service.of(CheckpointCreated):
        state_of(record)


@given(st.lists(st.binary(min_size=1), min_size=1, max_size=5))
def test_the_chain_depends_on_all_that_came_before(parts: list[bytes]) -> None:
    chain = Chain()
    seen = set()
    for number, part in enumerate(parts, 1):
        chain = next_link(chain, store({"p": part.hex()}).digest)
        assert chain.sequence == number
        assert chain.chain_digest not in seen
        seen.add(chain.chain_digest)


def test_a_manual_checkpoint_tells_the_truth_when_nothing_is_confirmed(service: Service) -> None:
    workflow = service.client.workflow_type("t", checkpoint_types=()).begin()
    service.outbox.confirms = False
    with (
        workflow.step("one") as step,
        pytest.raises(NotDeliveredError, match=r"within 0\.05 s; it waits in the buffer"),
    ):
        step.checkpoint(timeout_s=0.05)


def test_versions_of_the_state_are_numbered(service: Service) -> None:
    workflow = service.client.workflow_type("t", checkpoint_types=()).begin()
    with workflow.step("one") as step:
        step.persist()
        step.state["bad"] = math.nan
        with pytest.raises(StateError):
            step.persist()
        step.state["bad"] = 0
        step.persist()
    assert [v.version for v in service.of(StatePersisted)] == ["1", "2"]


def test_checkpoints_of_steps_in_parallel_have_one_chain(service: Service) -> None:
    workflow: Workflow = service.client.workflow_type("t").begin()

    def run(step_id: str) -> None:
        with workflow.step(step_id) as step:
            for _ in range(5):
                step.checkpoint()

    threads = [threading.Thread(target=run, args=(f"s{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = service.of(CheckpointCreated)
    assert [c.sequence for c in found] == list(range(1, 8 * 7 + 1))
    assert all(b.parent_digest == a.digest for a, b in itertools.pairwise(found))
    assert sorted(workflow.completed) == [f"s{n}" for n in range(8)]


def test_what_is_written_is_the_canonical_form(service: Service) -> None:
    workflow = service.client.workflow_type("t").begin({"z": 1, "a": [1.5, "é"]})
    with workflow.step("one"):
        pass
    first = service.of(CheckpointCreated)[0]
    assert first.state == canonical_bytes(state_of(first))
