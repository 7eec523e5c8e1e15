"""`kintsugi interventions` on the real stack: look, claim, answer; of two answers one counts."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

import pytest

from ops.interventions import Desk
from ops.stack import Addresses
from schemas.keys import KeyRing
from schemas.keystore import open_keystore
from schemas.records.commands import RetryStep, SkipStep
from schemas.records.events import (
    InterventionPointReached,
    InterventionRequested,
    InterventionResolved,
    StepSpec,
    WorkflowStarted,
)
from schemas.sealing import unseal_fields
from schemas.topics import AUDIT

from ..cli import Cli
from ..kit import Topics, build, wait_for
from .kit import failing


def asked(cli: Cli, workflow_id: str) -> str:
    """The open intervention of a workflow, once the tables show it."""

    def look() -> str | None:
        done = cli("interventions", "list", "--workflow", workflow_id, "--output", "json")
        assert done.code == 0, done.err
        return str(done.json[0]["id"]) if done.json else None

    found: str = wait_for("an intervention", look)
    return found


def commands(topics: Topics, workflow_id: str) -> list[str]:
    return [type(c).__name__ for c in topics.commands({workflow_id})]


@pytest.mark.usefixtures("roles")
def test_an_operator_looks_claims_and_answers(cli: Cli, topics: Topics) -> None:
    workflow_id = failing(topics)
    intervention_id = asked(cli, workflow_id)

    shown = cli("interventions", "show", intervention_id, "--output", "json")
    assert shown.code == 0, shown.err
    by_decision = {d["decision"]: d for d in shown.json["decisions"]}
    assert by_decision["retry"]["to_accept"] == ["pay"]
    assert [s["step_id"] for s in by_decision["alternative"]["again"]] == ["invoice"]
    assert shown.json["error"]["error_message"] == "the bank said no"
    text = cli("interventions", "show", intervention_id)
    assert "the bank said no" in text.out
    assert "alternative" in text.out

    assert cli("interventions", "claim", intervention_id, "--reason", "mine").err == "ann looks after it now\n"
    wait_for("the claim in the table", lambda: cli("interventions", "list", "--mine", "--output", "json").json)

    resolve = ("interventions", "resolve", intervention_id, "--decision", "retry")
    dry = cli(*resolve, "--dry-run")
    assert dry.code == 0
    assert "pay" in dry.out
    assert cli(*resolve).code == 1, "a reason is required"
    nobody = cli(*resolve, "--reason", "r")
    assert (nobody.code, "--yes" in nobody.err) == (2, True)
    unsaid = cli(*resolve, "--reason", "r", "--yes")
    assert (unsaid.code, "--accept-rerun pay" in unsaid.err) == (4, True)
    assert commands(topics, workflow_id) == []

    done = cli(*resolve, "--reason", "not charged", "--accept-rerun", "pay", "--yes", "--output", "json")
    assert (done.code, done.json["outcome"]) == (0, "taken_up"), done.err
    wait_for("the command", lambda: commands(topics, workflow_id) == ["RetryStep"])

    late = cli(*resolve, "--reason", "me too", "--accept-rerun", "pay", "--yes")
    assert (late.code, "ann has answered it already: retry: not charged" in late.err) == (4, True)
    entries = [json.loads(m.value() or b"{}") for m in topics.read(AUDIT)]
    mine = [e for e in entries if e["subject"] == intervention_id]
    assert [(e["action"], e["outcome"]) for e in mine] == [
        ("interventions.claim", "begun"),
        ("interventions.claim", "done"),
        ("interventions.resolve", "begun"),
        ("interventions.resolve", "done"),
    ]
    assert mine[-1]["detail"]["runs_again"] == ["pay"]
    assert cli("interventions", "show", str(uuid.uuid4())).code == 3


@pytest.mark.usefixtures("roles")
def test_of_two_operators_at_once_one_counts_and_the_other_is_told(
    cli: Cli, topics: Topics, own: Addresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow_id = failing(topics)
    intervention_id = asked(cli, workflow_id)
    with Desk(own, intervention_id) as ann, Desk(own, intervention_id) as bob:  # both see it open
        answer = ann.answer("cancel", "gone", edit=None, result=None, parameters={})
        assert ann.write(answer) == answer
        monkeypatch.setenv("KINTSUGI_ACTOR", "bob")
        late = bob.answer("skip", "later", edit=None, result=None, parameters={})
        first = bob.write(late)
    assert (first.event_id, first.actor, first.decision) == (answer.event_id, "ann", "cancel")
    wait_for("the command", lambda: commands(topics, workflow_id) == ["CancelWorkflow"])
    assert len(topics.events(InterventionResolved, {workflow_id})) == 2


@pytest.mark.usefixtures("roles")
def test_an_intervention_is_escalated_and_a_point_is_skipped(cli: Cli, topics: Topics) -> None:
    workflow_id = str(uuid.uuid4())
    topics.put(
        build(WorkflowStarted, workflow_id, workflow_version="1", steps=(StepSpec(step_id="release"),)),
        build(InterventionPointReached, workflow_id, step_id="release", reason="goes to all customers"),
    )
    intervention_id = asked(cli, workflow_id)
    shown = cli("interventions", "show", intervention_id, "--output", "json").json
    assert (shown["trigger"], shown["error_id"], shown["error"]) == ("intervention_point", None, None)
    refused = cli("interventions", "resolve", intervention_id, "--decision", "retry", "--reason", "r", "--yes")
    assert (refused.code, "approve does that" in refused.err) == (4, True)

    escalated = cli("interventions", "escalate", intervention_id, "--reason", "not mine")
    assert (escalated.code, "somebody else is asked" in escalated.err) == (0, True)
    wait_for("the next question", lambda: asked(cli, workflow_id) != intervention_id)
    again = asked(cli, workflow_id)
    requests = topics.events(InterventionRequested, {workflow_id})
    assert [r.trigger for r in requests] == ["intervention_point", "escalated"]

    arguments = ("--decision", "skip", "--result", '{"released": "by hand"}', "--reason", "done", "--yes")
    assert cli("interventions", "resolve", again, *arguments).code == 0
    wait_for("the command", lambda: commands(topics, workflow_id) == ["SkipStep"])
    (command,) = topics.commands({workflow_id})
    assert isinstance(command, SkipStep)
    assert command.result == '{"released": "by hand"}'


@pytest.mark.usefixtures("roles")
def test_an_edit_of_a_sealed_workflow_is_sealed(
    cli: Cli, topics: Topics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow_id = failing(topics, sealed=b"the input, which nobody here can read")
    intervention_id = asked(cli, workflow_id)
    arguments = ("--decision", "retry_edited", "--edit", '{"card": 42}', "--reason", "typo")
    resolve = ("interventions", "resolve", intervention_id, *arguments, "--accept-rerun", "pay", "--yes")
    without = cli(*resolve)
    assert (without.code, "set KINTSUGI_KEYS" in without.err) == (4, True)

    keys = tmp_path / "keys.json"
    keys.touch(mode=0o600)
    keys.write_bytes(KeyRing("first", {"first": os.urandom(32)}).dump())
    monkeypatch.setenv("KINTSUGI_KEYS", keys.as_uri())
    done = cli(*resolve)
    assert done.code == 0, done.err
    wait_for("the command", lambda: commands(topics, workflow_id) == ["RetryStep"])
    (command,) = topics.commands({workflow_id})
    assert isinstance(command, RetryStep)
    assert command.edit is None
    keystore = open_keystore(keys.as_uri(), (tmp_path / "objects").as_uri())
    assert keystore is not None
    assert unseal_fields(command, keystore.keys_of(workflow_id)).edit == '{"card": 42}'
