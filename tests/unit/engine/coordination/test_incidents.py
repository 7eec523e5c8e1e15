"""However many workflows a failure hits, people see one incident, and are told once."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from engine.coordination import incidents as module
from engine.coordination.incidents import OTHERS, PAGE_AFFECTED, SAMPLES_MAX, Incidents
from engine.effects import AppendTo
from schemas.records.events import IncidentChanged

from .kit import workflow
from .storm_kit import Watch, incident


@pytest.fixture
def watch() -> Watch:
    return Watch()


def incidents_of(watch: Watch) -> Incidents:
    incidents = watch.coordinator.components[1]
    assert isinstance(incidents, Incidents)
    return incidents


def test_a_breaker_opens_an_incident_that_pages_nobody_yet(watch: Watch) -> None:
    said = incident(watch.storm())
    assert (said.kind, said.state, said.page, said.revision) == ("dependency", "open", False, 1)
    assert (said.error_count, said.affected_count, said.dependency) == (5, 5, "payments")
    assert said.samples == tuple(workflow(n) for n in range(5))
    assert said.title == "timeout: payments, 5 workflows"
    assert said.channels == watch.policy.intervention.channels


def test_it_goes_to_the_partition_of_its_own_id(watch: Watch) -> None:
    (effect,) = watch.coordinator.fold(watch.asked(1), watch.now_us)
    assert isinstance(effect, AppendTo) and isinstance(effect.record, IncidentChanged)
    assert effect.partition is None
    assert effect.record.workflow_id == effect.record.incident_id


def test_a_storm_of_errors_is_a_trickle_of_records(watch: Watch) -> None:
    for who in range(5_000):
        watch.fail(who)
        watch.now_us += 1_000
    records = watch.told(IncidentChanged)
    assert len({r.incident_id for r in records}) == 1
    assert len(records) < 20
    watch.wait(11)
    assert incident(watch.said).error_count == 5_000
    assert [r.revision for r in watch.told(IncidentChanged)] == list(range(1, len(watch.told(IncidentChanged)) + 1))
    assert len(incident(watch.said).samples) == SAMPLES_MAX


def test_a_breaker_that_hits_many_pages_once(watch: Watch) -> None:
    for who in range(PAGE_AFFECTED * 3):
        watch.fail(who)
    records = watch.told(IncidentChanged)
    first = next(r for r in records if r.page)
    assert first.affected_count == PAGE_AFFECTED
    after = records[records.index(first) :]
    assert all(r.page for r in after)


def test_a_breaker_that_stays_open_pages(watch: Watch) -> None:
    watch.storm()
    assert not incident(watch.said).page
    watch.wait(119)
    assert not incident(watch.said).page
    watch.wait(2)
    last = incident(watch.said)
    assert (last.page, last.reason) == (True, "its breaker is open for 120 s")


def test_it_recovers_with_the_waves_and_is_resolved_when_the_breaker_closes(watch: Watch) -> None:
    watch.storm(10)
    watch.wait(3)
    for who in range(10):
        watch.end(who)
        watch.wait(2)
    watch.wait(60)
    assert [r.state for r in watch.told(IncidentChanged)][-3:] == ["open", "recovering", "resolved"]
    assert not any(r.page for r in watch.told(IncidentChanged))


def test_the_next_storm_is_another_incident(watch: Watch) -> None:
    watch.storm()
    for who in range(5):
        watch.end(who)
    watch.wait(100)
    assert incident(watch.said).state == "resolved"
    watch.storm()
    assert len({r.incident_id for r in watch.told(IncidentChanged)}) == 2
    assert incident(watch.said).revision < 3


def test_a_human_who_is_asked_opens_an_incident_that_pages(watch: Watch) -> None:
    said = incident(watch.ask(1, dependency=None))
    assert (said.kind, said.page, said.interventions, said.severity) == ("intervention", True, 1, "high")
    assert said.title == "timeout: step pay, 1 workflow, 1 waiting for a human"
    assert said.channels == ("slack",)


def test_many_interventions_for_one_thing_are_one_incident(watch: Watch) -> None:
    for who in range(500):
        watch.ask(who)
    records = watch.told(IncidentChanged)
    assert len({r.incident_id for r in records}) == 1
    assert len(records) < 12
    watch.wait(11)
    assert incident(watch.said).interventions == 500


def test_it_is_resolved_when_the_last_intervention_ended(watch: Watch) -> None:
    watch.ask(1)
    watch.ask(2)
    watch.ask(1, "ended", actor="ada")
    assert incident(watch.said).state == "open"
    watch.ask(2, "ended", actor="ada")
    last = incident(watch.said)
    assert (last.state, last.interventions, last.actor) == ("resolved", 0, "ada")


def test_an_error_that_ends_by_itself_ends_its_intervention(watch: Watch) -> None:
    watch.ask(1)
    watch.end(1)
    assert incident(watch.said).state == "resolved"


def test_an_intervention_keeps_the_incident_of_a_storm_open(watch: Watch) -> None:
    watch.storm()
    watch.ask(1)
    assert incident(watch.said).page
    for who in (0, 2, 3, 4):
        watch.end(who)
    watch.wait(100)
    assert watch.states[-1] == "closed"
    assert (incident(watch.said).state, incident(watch.said).interventions) == ("open", 1)
    watch.ask(1, "ended")
    assert incident(watch.said).state == "resolved"


def test_an_escalation_is_said_again(watch: Watch) -> None:
    watch.ask(1)
    said = incident(watch.ask(1, "escalated", channels=("pagerduty",)))
    assert (said.reason, said.page, said.interventions) == ("escalated", True, 1)
    assert said.channels == ("slack", "pagerduty")


def test_many_escalations_at_once_are_one(watch: Watch) -> None:
    for who in range(100):
        watch.ask(who)
    for who in range(100):
        watch.ask(who, "escalated")
    assert [r.reason for r in watch.told(IncidentChanged)].count("escalated") == 1
    watch.wait(1_800)
    watch.ask(7, "escalated")
    assert [r.reason for r in watch.told(IncidentChanged)].count("escalated") == 2


def test_who_claims_an_intervention_looks_after_the_incident(watch: Watch) -> None:
    watch.ask(1)
    said = incident(watch.ask(1, "claimed", actor="ada"))
    assert (said.owner, said.actor, said.reason) == ("ada", "ada", "claimed")


def test_an_operator_owns_notes_acknowledges_and_resolves(watch: Watch) -> None:
    watch.storm()
    incident_id = incident(watch.said).incident_id
    said = incident(watch.note(incident_id, "own", owner="grace"))
    assert (said.owner, said.actor, said.reason) == ("grace", "ada", "because")
    said = incident(watch.note(incident_id, "note", note="called them"))
    assert (said.note, said.owner) == ("called them", "grace")
    said = incident(watch.note(incident_id, "acknowledge"))
    assert (said.reason, said.owner) == ("acknowledged", "grace")
    said = incident(watch.note(incident_id, "resolve"))
    assert (said.state, said.reason, said.note) == ("resolved", "because", "called them")
    assert watch.note(incident_id, "note", note="too late") == []


def test_what_an_operator_resolved_opens_again_only_for_something_new(watch: Watch) -> None:
    watch.storm()
    watch.note(incident(watch.said).incident_id, "resolve")
    for who in range(5, 50):
        watch.fail(who)
    assert incident(watch.said).state == "resolved"
    said = incident(watch.ask(3))
    assert (said.state, said.page, said.revision) == ("open", True, 1)
    watch.ask(3, "ended")
    assert incident(watch.said).state == "open", "the breaker is open still"


def test_resolving_by_hand_forgets_who_was_asked(watch: Watch) -> None:
    watch.ask(1)
    watch.note(incident(watch.said).incident_id, "resolve")
    assert watch.ask(1, "ended") == []
    assert watch.ask(2, "claimed") == []
    incidents = incidents_of(watch)
    assert incidents.open_count == 0


def test_a_moment_that_has_passed_twice_counts_once(watch: Watch) -> None:
    watch.storm()
    early = [f for f in watch.coordinator.due(watch.now_us + 119_000_000) if f.kind == "incident"]
    assert not early, "it pages after two minutes"
    moments = [f for f in watch.coordinator.due(watch.now_us + 120_000_000) if f.kind == "incident"]
    watch.now_us += 120_000_000
    assert incident(watch.fold(moments[0])).page
    assert watch.fold(replace(moments[0], event_id=workflow(1))) == []


def test_the_end_of_a_storm_that_an_operator_resolved_is_no_news(watch: Watch) -> None:
    watch.storm()
    watch.note(incident(watch.said).incident_id, "resolve")
    told = len(watch.told(IncidentChanged))
    for who in range(5):
        watch.end(who)
    watch.wait(100)
    assert watch.states[-1] == "closed"
    assert len(watch.told(IncidentChanged)) == told


def test_the_worst_severity_counts(watch: Watch) -> None:
    watch.storm()
    watch.fail(6, severity="critical")
    watch.fail(7, severity="low")
    watch.wait(11)
    assert incident(watch.said).severity == "critical"


def test_a_title_quotes_names_and_counts_alone(watch: Watch) -> None:
    said = incident(watch.ask(1, dependency="d" * 1_000))
    assert len(said.title) < 200


def test_beyond_the_bound_one_incident_stands_for_all_others(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INCIDENTS_MAX", 2)
    for who in range(6):
        watch.ask(who, dependency=f"system {who}")
    records = watch.told(IncidentChanged)
    assert [r.key for r in records][:3] == ["dependency:system 0", "dependency:system 1", OTHERS]
    assert len({r.incident_id for r in records}) == 3
    for who in range(7, 17):
        watch.fail(who)
    assert incident(watch.said).key == OTHERS
    for who in range(6):
        watch.ask(who, "ended")
    assert {r.key for r in watch.told(IncidentChanged) if r.state == "resolved"} == {
        "dependency:system 0",
        "dependency:system 1",
        OTHERS,
    }


def tried(watch: Watch) -> dict[str, tuple[int, int]]:
    rows = json.loads(incident(watch.said).tried)
    return {row["strategy"]: (row["succeeded"], row["failed"]) for row in rows}


def test_it_says_what_was_tried_before_a_human_was_asked(watch: Watch) -> None:
    watch.fail(1)
    for strategy in ("retry_step", "retry_step", "restart_from_checkpoint"):
        watch.fail(1, strategy=strategy)
    watch.fail(2, strategy="complete_restart")  # looks the same, and nobody is asked about it
    watch.ask(1)
    assert tried(watch) == {"retry_step": (0, 2), "restart_from_checkpoint": (0, 1)}
    assert list(tried(watch)) == ["retry_step", "restart_from_checkpoint"], "the most often first"
    watch.fail(1, strategy="retry_step")
    watch.end(1, strategy="skip_step")
    assert tried(watch) == {"retry_step": (0, 3), "restart_from_checkpoint": (0, 1), "skip_step": (1, 0)}


def test_it_says_what_was_tried_on_all_that_a_breaker_holds(watch: Watch) -> None:
    watch.fail(0, strategy="retry_step")
    watch.fail(7, "mail", strategy="complete_restart")
    watch.fail(9, strategy="retry_step")
    watch.end(9, strategy="retry_step")  # over before there is an incident
    watch.storm(6)
    for who in range(6):
        watch.fail(who, strategy="queue_for_later")
    watch.end(0, strategy="queue_for_later")
    watch.wait(11)
    assert tried(watch) == {"queue_for_later": (1, 6), "retry_step": (0, 1)}


def test_an_error_without_a_repair_is_nothing_that_was_tried(watch: Watch) -> None:
    watch.storm(6)
    watch.end(0, "closed")
    watch.wait(11)
    assert tried(watch) == {}


def test_what_was_tried_is_bounded(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.coordination.tried.ERRORS_MAX", 2)
    monkeypatch.setattr("engine.coordination.tried.STRATEGIES_MAX", 3)
    for who in range(3):
        for strategy in "abcde":
            watch.fail(who, "one", strategy=strategy)
    watch.ask(0, dependency="one")
    assert tried(watch) == {}, "the oldest was forgotten"
    watch.ask(1, dependency="one")
    watch.ask(2, dependency="one")
    watch.wait(11)
    assert tried(watch) == {"a": (0, 2), "b": (0, 2), "c": (0, 2), "other": (0, 4)}


def test_counts_of_affected_workflows_are_bounded(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AFFECTED_MAX", 10)
    for who in range(64):
        watch.fail(who)
    assert (incident(watch.said).affected_count, incident(watch.said).error_count) == (10, 64)
    assert incidents_of(watch).unnamed == 54


def test_interventions_beyond_the_bound_are_counted(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVENTIONS_MAX", 2)
    for who in range(3):
        watch.ask(who)
    assert incidents_of(watch).unnamed == 1


def test_another_process_takes_over_open_incidents(watch: Watch) -> None:
    other = Watch()
    for each in (watch, other):
        each.fail(40, "mail", strategy="retry_step")
        each.storm(10)
        each.fail(3, strategy="retry_step")
        each.ask(3)
    other.again()
    for each in (watch, other):
        each.fail(30)
        each.ask(40, dependency="mail")
        assert tried(each) == {"retry_step": (0, 1)}
        each.wait(11)
        each.ask(3, "ended", actor="ada")
        each.note(incident(each.said).incident_id, "note", note="still at it")
        each.wait(100)
    assert watch.said == other.said
    assert (incident(watch.said).note, incident(watch.said).interventions) == ("still at it", 0)
