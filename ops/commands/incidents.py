"""`kintsugi incidents list | show | own | note | acknowledge | resolve`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ops.output import ID, TIMED_OUT, output_option, say, show, show_json, show_record

STATES = ("open", "recovering", "resolved")
WAIT_S_DEFAULT = 30.0
_WAIT_S_MAX = 3_600.0
_SHOWN = ("id", "state", "severity", "title", "key", "kind", "error_type", "page", "owner", "note", "reason", "actor",
          "error_count", "affected_count", "interventions", "first_seen_at", "last_seen_at", "opened_at", "updated_at",
          "resolved_at")  # fmt: skip


@click.group()
def incidents() -> None:
    """List incidents, show one, look after one. However many workflows one failure hits, it is one incident."""


@incidents.command("list")
@click.option("--state", type=click.Choice(STATES), help="Only these.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@output_option
def list_(state: str | None, limit: int, output: str) -> None:
    """Incidents: those that are not resolved first."""
    from ops import incidents as reads
    from ops.stack import addresses

    rows = reads.incidents(addresses().postgres, state=state, limit=limit)
    columns = ("id", "state", "severity", "title", "page", "owner", "error_count", "first_seen_at", "last_seen_at")
    show(rows, output, columns=columns, empty="no incident")
    if len(rows) == limit:
        say(f"the first {limit}; --limit shows more")


@incidents.command("show")
@click.argument("incident_id", type=ID)
@output_option
def show_(incident_id: str, output: str) -> None:
    """One incident: what fails, whom it hits, what is done about it. Exit 3 when there is none."""
    from ops import incidents as reads
    from ops.stack import addresses

    row = reads.incident(addresses().postgres, incident_id)
    breaker = reads.breaker_of(row)
    if output == "json":
        show_json({**row, "breaker": breaker})
        return
    show_record({**{name: row[name] for name in _SHOWN}, "breaker": breaker})
    click.echo("\nWhat was tried")
    show(
        [tried for tried in row["tried"] if isinstance(tried, dict)],
        output,
        columns=("strategy", "succeeded", "failed"),
        empty="nothing yet",
    )
    click.echo("\nSome of the workflows")
    show(row["affected"], output, empty="none that the tables know")
    if row["state"] != "resolved":
        say(f'kintsugi incidents own {incident_id} --reason "I look after it"')


def _action(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        output_option,
        click.option(
            "--timeout",
            type=click.FloatRange(1.0, _WAIT_S_MAX),
            default=WAIT_S_DEFAULT,
            show_default=True,
            help="Seconds to wait.",
        ),
        click.option("--wait/--no-wait", default=True, help="Wait until the incident shows it.", show_default=True),
        click.argument("incident_id", type=ID),
    ):
        command = option(command)
    return command


_REASON = click.option("--reason", required=True, help="Why; it is kept with the incident and in the audit topic.")


@incidents.command()
@_action
@click.option("--owner", help="Who; you, when it is not given.")
@_REASON
def own(incident_id: str, owner: str | None, reason: str, wait: bool, timeout: float, output: str) -> None:
    """Say who looks after an incident from now on. Exit 3: no such incident, 4: it is resolved, 8: not seen in time."""
    _carry_out(incident_id, "own", reason, wait, timeout, output, owner=owner)


@incidents.command()
@_action
@click.argument("text")
def note(incident_id: str, text: str, wait: bool, timeout: float, output: str) -> None:
    """Leave a note for others with an incident. It is told on no channel. Exit codes as of own."""
    _carry_out(incident_id, "note", text, wait, timeout, output, note=text)


@incidents.command()
@_action
@_REASON
def acknowledge(incident_id: str, reason: str, wait: bool, timeout: float, output: str) -> None:
    """Say that the page was seen; who owns no incident yet owns this one. Exit codes as of own."""
    _carry_out(incident_id, "acknowledge", reason, wait, timeout, output)


@incidents.command()
@_action
@_REASON
def resolve(incident_id: str, reason: str, wait: bool, timeout: float, output: str) -> None:
    """Close an incident. What its breaker holds stays held, and interventions stay open: answer those by themselves.

    Exit codes as of own.
    """
    _carry_out(incident_id, "resolve", reason, wait, timeout, output)


def _carry_out(
    incident_id: str, action: str, reason: str, wait: bool, timeout_s: float, output: str, **fields: Any
) -> None:
    from ops import incidents as acting
    from ops.audit import audited
    from ops.stack import addresses

    if not reason.strip():
        raise click.UsageError("the reason is empty")
    at = addresses()
    row = acting.incident(at.postgres, incident_id)
    with acting.Note(at, row, action, reason, **fields) as noted:
        with audited(at.kafka, f"incidents.{action}", subject=incident_id, reason=reason) as detail:
            detail["event_id"] = noted.record.event_id
            noted.send()
        if not wait:
            _tell({"id": incident_id, "action": action, "outcome": "requested"}, output)
            return
        after = noted.follow(timeout_s)
    if after is None:
        say("not seen in time: is a coordinator running? What was asked waits in the log until one is")
        raise click.exceptions.Exit(TIMED_OUT)
    told = {"id": incident_id, "action": action, "outcome": "done", "state": after.state, "owner": after.owner}
    _tell({**told, "note": after.note, "revision": after.revision}, output)


def _tell(record: dict[str, Any], output: str) -> None:
    if output == "json":
        show_json(record)
    else:
        show_record(record)
