"""`kintsugi interventions list | show | claim | resolve | escalate`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ops.output import (
    CONFLICT,
    FAILED,
    ID,
    TIMED_OUT,
    output_option,
    printable,
    say,
    show,
    show_json,
    show_record,
)

if TYPE_CHECKING:
    from ops.interventions import Desk, Preview
    from schemas.records.events import InterventionResolved

#: As `engine.people.DECISIONS`, which help must not import; a test holds them equal.
DECISIONS = ("approve", "retry", "retry_edited", "skip", "alternative", "rollback", "restart", "cancel", "escalate")
WAIT_S_DEFAULT = 30.0
_WAIT_S_MAX = 3_600.0
_REASON = "Why; required. Goes into the log and to the audit log."


@click.group()
def interventions() -> None:
    """List what people are asked, and answer: retry, edit, skip, take another path, roll back, cancel."""


@interventions.command("list")
@click.option("--open/--all", "only_open", default=True, help="Open ones, or also those that are answered.")
@click.option("--mine", is_flag=True, help="Only those that I claimed.")
@click.option("--workflow", "workflow_id", type=ID, help="Only of this workflow.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@output_option
def list_(only_open: bool, mine: bool, workflow_id: str | None, limit: int, output: str) -> None:
    """What people are asked, the newest first."""
    from ops.interventions import listed
    from ops.stack import addresses

    rows = listed(addresses().postgres, every=not only_open, mine=mine, workflow_id=workflow_id, limit=limit)
    columns = ["id", "workflow_id", "step_id", "trigger", "claimed_by", "requested_at", "deadline_at", "reason"]
    if not only_open:
        columns[5:5] = ["status", "decision", "actor"]
    show(rows, output, columns=columns, empty="nobody is asked anything")
    if len(rows) == limit:
        say(f"the newest {limit}; --limit shows more")


@interventions.command("show")
@click.argument("intervention_id", type=ID)
@output_option
def show_(intervention_id: str, output: str) -> None:
    """One intervention: the error, what was tried and why it failed, and what each decision would run again.

    Exit 3: there is no such intervention.
    """
    from ops import interventions as asking
    from ops.stack import addresses

    at = addresses()
    with asking.Desk(at, intervention_id) as desk:
        error = asking.story(at, desk.row)
        is_open = desk.seen.case_of_intervention(intervention_id) is not None
        previews = desk.previews() if is_open else []
        state = desk.seen.state
        saved = [] if state is None else [ref.checkpoint_id for ref in state.all_checkpoints()]
        gaps = desk.missing
    if output == "json":
        show_json(
            {
                **desk.row,
                "error": error,
                "newest_checkpoint": saved[-1] if saved else None,
                "decisions": [_preview_json(preview) for preview in previews],
            }
        )
        return
    show_record({k: v for k, v in desk.row.items() if k not in ("options", "log_partition", "first_offset")})
    if error is not None:
        click.echo("\nError")
        click.echo(printable(f"{error['error_type']}, {error['error_code']}: {error['error_message']}"))
        if error["attempts"]:
            click.echo("\nTried")
            columns = ("attempt_number", "strategy", "status", "action_taken", "error_message", "rule")
            show(error["attempts"], output, columns=columns)
    click.echo(f"\nNewest checkpoint  {saved[-1] if saved else 'none'}")
    if previews:
        click.echo("\nDecisions")
        show([_preview_row(preview) for preview in previews], output)
    if gaps:
        say("parts of the workflow's history are gone: the steps listed may not be all")


def _preview_json(preview: Preview) -> dict[str, Any]:
    return {**asdict(preview), "to_accept": list(preview.to_accept)}


def _preview_row(preview: Preview) -> dict[str, Any]:
    return {
        "decision": preview.decision,
        "what it does": preview.refused or preview.action,
        "runs again": ", ".join(step.step_id for step in preview.again) or None,
        "not idempotent": ", ".join(preview.to_accept) or None,
    }


@interventions.command()
@click.argument("intervention_id", type=ID)
@click.option("--reason", help="Why, for those who ask.")
def claim(intervention_id: str, reason: str | None) -> None:
    """Say that you look after it; others still can answer. Exit 4: it is answered already."""
    from ops import interventions as asking
    from ops.audit import audited
    from ops.stack import addresses

    at = addresses()
    text = None if reason is None else asking.check_reason(reason)
    with asking.Desk(at, intervention_id) as desk:
        before = desk.case.claimed_by
        with audited(at.kafka, "interventions.claim", subject=intervention_id, reason=text or ""):
            record = desk.claim(text)
    taken = f", after {before}" if before and before != record.actor else ""
    say(f"{record.actor} looks after it now{taken}")


@interventions.command()
@click.argument("intervention_id", type=ID)
@click.option("--decision", required=True, type=click.Choice(DECISIONS), help="What shall be done.")
@click.option("--reason", help=f"{_REASON} A dry run needs none.")
@click.option("--edit", help="JSON merge patch of the state's data, or the name of a file that holds it.")
@click.option("--result", help="JSON object: what a skipped step would have added to the state's data; or a file.")
@click.option("--to-step", help="Of a rollback: the step to stand before.")
@click.option("--accept-rerun", multiple=True, help="A step that runs again and is not idempotent; once for each.")
@click.option("--dry-run", is_flag=True, help="Show what would be done and what would run again; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--wait/--no-wait", default=True, help="Wait for what the engine makes of it.", show_default=True)
@click.option("--timeout", type=click.FloatRange(1.0, _WAIT_S_MAX), default=WAIT_S_DEFAULT, show_default=True)
@output_option
def resolve(
    intervention_id: str,
    decision: str,
    reason: str | None,
    edit: str | None,
    result: str | None,
    to_step: str | None,
    accept_rerun: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    wait: bool,
    timeout: float,
    output: str,
) -> None:
    """Answer. Of two answers the first in the log counts; whoever comes second is told who answered, and how.

    \b
      kintsugi interventions resolve ID --decision rollback --to-step pay --dry-run
      kintsugi interventions resolve ID --decision retry_edited --edit '{"address": "Main St 1"}' --reason "typo"
      kintsugi interventions resolve ID --decision retry --accept-rerun charge --reason "it was not charged" --yes

    Exit 0: answered and taken up, 1: the engine could not carry it out and asks again, 3: no such intervention, 4:
    somebody else has answered, or it cannot be done, 8: written, and no recovery process has taken it up in time.
    """
    from ops import interventions as asking
    from ops.stack import addresses

    if not dry_run:
        reason = asking.check_reason(reason)
        if not yes and not sys.stdin.isatty():
            raise click.UsageError("nobody is there to ask: --yes answers, --dry-run shows what")
    given = {"edit": _json_of("--edit", edit), "result": _json_of("--result", result)}
    _check_goes_with(decision, edit=edit, result=result, to_step=to_step)
    parameters = {} if to_step is None else {"to_step": to_step}
    with asking.Desk(addresses(), intervention_id) as desk:
        preview = desk.preview(decision, parameters)
        if output != "json":
            _show_preview(preview)
        if dry_run:
            if output == "json":
                show_json({"dry_run": True, **_preview_json(preview)})
            raise click.exceptions.Exit(CONFLICT if preview.refused else 0)
        if preview.refused:
            raise asking.RefusedError(f"{decision}: {preview.refused}")
        missing = [step for step in preview.to_accept if step not in accept_rerun]
        if missing:
            named = " ".join(f"--accept-rerun {step}" for step in missing)
            raise asking.RefusedError(f"not idempotent, and would run again: say that you accept it: {named}")
        if not yes and not click.confirm(f"{decision}: {preview.action}?", err=True):
            say("nothing was changed")
            raise click.exceptions.Exit(CONFLICT)
        record = desk.answer(decision, str(reason), parameters=parameters, **given)
        raise click.exceptions.Exit(_carry_out(desk, record, preview, wait, timeout, output))


def _carry_out(
    desk: Desk, record: InterventionResolved, preview: Preview, wait: bool, timeout_s: float, output: str
) -> int:
    from ops.audit import audited
    from schemas.records.events import InterventionRequested

    with audited(desk.at.kafka, "interventions.resolve", subject=record.intervention_id, reason=record.reason) as told:
        told.update(
            decision=record.decision,
            workflow_id=record.workflow_id,
            edited=record.edit is not None or record.result is not None or record.sealed is not None,
            runs_again=[step.step_id for step in preview.again],
        )
        first = desk.write(record)
        told["counted"] = first.event_id == record.event_id
    answer = {**_preview_json(preview), "answered_by": first.actor, "reason": first.reason, "decision": first.decision}
    if first.event_id != record.event_id:
        say(printable(f"{first.actor} answered first: {first.decision}: {first.reason}. Yours changes nothing"))
        code, outcome = CONFLICT, "lost"
    elif not wait:
        code, outcome = 0, "answered"
    else:
        found = desk.follow(record, timeout_s)
        if found is None:
            say("answered; no recovery process has taken it up yet: is one running? The answer waits in the log")
            code, outcome = TIMED_OUT, "answered"
        elif isinstance(found, InterventionRequested) and found.trigger == "answer_not_possible":
            say(printable(f"it cannot be carried out: {found.reason}. You are asked again: {found.intervention_id}"))
            code, outcome = FAILED, "refused"
        elif isinstance(found, InterventionRequested):
            say(f"somebody else is asked: {found.intervention_id}")
            code, outcome = 0, "asked"
        else:
            say(f"attempt {found.attempt_number}: {found.strategy}, command {found.command_id}")
            code, outcome = 0, "taken_up"
    if output == "json":
        show_json({**answer, "outcome": outcome})
    return code


@interventions.command()
@click.argument("intervention_id", type=ID)
@click.option("--reason", required=True, help=_REASON)
@click.option("--wait/--no-wait", default=True, help="Wait until somebody else is asked.", show_default=True)
@output_option
def escalate(intervention_id: str, reason: str, wait: bool, output: str) -> None:
    """Ask somebody else at once, instead of when the deadline passes. Exit 4: it is answered already."""
    from ops import interventions as asking
    from ops.stack import addresses

    text = asking.check_reason(reason)
    with asking.Desk(addresses(), intervention_id) as desk:
        record = desk.answer("escalate", text, edit=None, result=None, parameters={})
        preview = desk.preview("escalate", {})
        raise click.exceptions.Exit(_carry_out(desk, record, preview, wait, WAIT_S_DEFAULT, output))


def _json_of(option: str, value: str | None) -> str | None:
    from ops.interventions import check_object

    if value is None:
        return None
    if not value.lstrip().startswith("{"):
        path = Path(value)
        if not path.is_file():
            raise click.UsageError(f"{option}: {value!r:.100} is neither a JSON object nor a file")
        value = path.read_text(encoding="utf-8")
    return check_object(option, value)


def _check_goes_with(decision: str, *, edit: str | None, result: str | None, to_step: str | None) -> None:
    if decision == "retry_edited" and edit is None:
        raise click.UsageError("--decision retry_edited needs --edit")
    for option, value, takes in (
        ("--edit", edit, ("retry_edited", "approve")),
        ("--result", result, ("skip",)),
        ("--to-step", to_step, ("rollback",)),
    ):
        if value is not None and decision not in takes:
            raise click.UsageError(f"{option} goes with --decision {' or '.join(takes)}")


def _show_preview(preview: Preview) -> None:
    show_record(
        {
            "decision": preview.decision,
            "what it does": preview.action or None,
            "refused": preview.refused,
            "command": preview.command,
            "checkpoint": preview.checkpoint_id,
        }
    )
    if preview.again:
        click.echo("\nRuns again")
        show([asdict(step) for step in preview.again], "table")
