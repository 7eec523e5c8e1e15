"""The log that is measured with: realistic in what it holds, and the same every time."""

from __future__ import annotations

import random
from collections import Counter

from bench.workload import document, history
from engine.decide import decide
from engine.fold import evolve
from engine.policy import default_policy
from engine.state import WorkflowState
from schemas.canonical import canonical_bytes
from schemas.records.events import (
    CheckpointCreated,
    RecoveryAttemptFinished,
    RecoveryDecided,
    WorkflowCompleted,
    WorkflowErrorOccurred,
    WorkflowStarted,
)


def test_every_workflow_ends_and_every_error_in_it_was_repaired() -> None:
    log = history(120)
    count = Counter(type(event.record) for event in log)
    assert count[WorkflowStarted] == count[WorkflowCompleted] == 120
    assert 4 <= count[WorkflowErrorOccurred] <= 24
    assert count[RecoveryDecided] == count[RecoveryAttemptFinished] == count[WorkflowErrorOccurred]
    assert all(e.record.outcome == "succeeded" for e in log if isinstance(e.record, RecoveryAttemptFinished))
    assert all(e.rejection is None for e in log if isinstance(e.record, CheckpointCreated))


def test_the_same_seed_gives_the_same_log() -> None:
    assert history(20) == history(20)
    assert history(20, seed=2) != history(20)


def test_folding_the_log_gives_the_decisions_that_are_in_it() -> None:
    log, policy = history(60), default_policy()
    states: dict[str, WorkflowState] = {}
    made = set()
    for event in log:
        workflow_id = event.record.workflow_id
        state = states[workflow_id] = evolve(states.get(workflow_id), event)
        made |= {e.record.event_id for e in decide(state, event, policy) if hasattr(e, "record")}
    assert {e.record.event_id for e in log if isinstance(e.record, RecoveryDecided)} <= made
    assert all(state.terminal for state in states.values())


def test_documents_have_about_the_size_asked_for() -> None:
    for size in (1_000, 100_000):
        assert 0.6 * size < len(canonical_bytes(document(size, random.Random(1)))) < 1.4 * size
