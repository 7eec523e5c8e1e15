"""`kintsugi workflows restore`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ops.output import CONFLICT, FAILED, ID, OK, TIMED_OUT, output_option, say, show, show_json, show_record, utc

if TYPE_CHECKING:
    from ops.restore import Plan, Restore, Target
    from ops.stack import Addresses

WAIT_S_DEFAULT = 60.0
_WAIT_S_MAX = 3_600.0


class _Time(click.ParamType[datetime]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            return value if isinstance(value, datetime) else utc(str(value))
        except ValueError:
            self.fail(f"{value!r} is no time; one looks like 2026-11-20T10:00:00Z", param, ctx)


@click.command()
@click.argument("workflow_id", type=ID)
@click.option("--to", "checkpoint_id", type=ID, help="To this checkpoint.")
@click.option("--before-step", help="To the newest verified checkpoint from before this step first began.")
@click.option("--at", "moment", type=_Time(), help="To the state as it was at this time (UTC unless it says a zone).")
@click.option("--reason", help="Why; required, but for a dry run. Goes into the log and to the audit log.")
@click.option("--dry-run", is_flag=True, help="Show the checkpoint and what will run again; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--wait/--no-wait", default=True, help="Wait until the service has restored it.", show_default=True)
@click.option("--timeout", type=click.FloatRange(1.0, _WAIT_S_MAX), default=WAIT_S_DEFAULT, show_default=True)
@output_option
def restore(
    workflow_id: str,
    checkpoint_id: str | None,
    before_step: str | None,
    moment: datetime | None,
    reason: str | None,
    dry_run: bool,
    yes: bool,
    wait: bool,
    timeout: float,
    output: str,
) -> None:
    """Let a workflow go on from an earlier checkpoint, whatever repair is under way.

    --before-step looks along what leads to the workflow's present state: what an earlier restore left behind is no part
    of it. --at takes the checkpoint that was the workflow's newest verified one at that time. Steps that ran after the
    checkpoint run again; a dry run lists them, and which of them are not idempotent.

    \b
      kintsugi workflows restore ID --before-step deploy --dry-run
      kintsugi workflows restore ID --before-step deploy --reason "wrong region" --yes

    Exit 0: restored (or requested, with --no-wait), 1: the service could not, 3: no such workflow, checkpoint or step,
    4: the workflow has ended or the checkpoint is no target, 8: not in time; it says what is missing.
    """
    from ops import restore as restoring
    from ops.stack import addresses

    target = _target(checkpoint_id, before_step, moment)
    why = (reason or "").strip()
    if not dry_run and not why:
        raise click.UsageError("--reason is required: it is kept with the workflow. --dry-run needs none")
    if not dry_run and not yes and not sys.stdin.isatty():
        raise click.UsageError("nobody is there to ask: --yes restores, --dry-run shows what")
    at = addresses()
    plan = restoring.plan(at, workflow_id, target)
    if output != "json" or not dry_run:
        _show_plan(plan, quiet=output == "json")
    if dry_run:
        if output == "json":
            show_json({"dry_run": True, **_plan_json(plan)})
        return
    if not yes and not click.confirm(_question(plan), err=True):
        say("nothing was changed")
        raise click.exceptions.Exit(CONFLICT)
    raise click.exceptions.Exit(_carry_out(at, plan, why, wait, timeout, output))


def _target(checkpoint_id: str | None, before_step: str | None, moment: datetime | None) -> Target:
    from ops.restore import Target

    if sum(given is not None for given in (checkpoint_id, before_step, moment)) != 1:
        raise click.UsageError("one of --to, --before-step and --at says where to")
    at_us = None if moment is None else int(moment.timestamp() * 1_000_000)
    return Target(checkpoint_id=checkpoint_id, before_step=before_step, at_us=at_us)


def _plan_json(plan: Plan) -> dict[str, Any]:
    return {
        "workflow_id": plan.workflow_id,
        "checkpoint": _checkpoint_row(plan),
        "runs_again": [asdict(step) for step in plan.steps],
        "supersedes_errors": list(plan.errors),
        "missing": [asdict(gap) for gap in plan.missing],
    }


def _checkpoint_row(plan: Plan) -> dict[str, Any]:
    row = asdict(plan.checkpoint)
    row["created_at"] = datetime.fromtimestamp(row.pop("timestamp_us") / 1_000_000, UTC)
    return row


def _show_plan(plan: Plan, *, quiet: bool) -> None:
    if quiet:
        return
    row = _checkpoint_row(plan)
    show_record({"workflow_id": plan.workflow_id, **row})
    click.echo("\nRuns again")
    show([asdict(step) for step in plan.steps], "table", empty="no step that ran before")
    if plan.errors:
        click.echo("\nErrors whose repair this takes the place of")
        show(plan.errors, "table")
    for gap in plan.missing:
        say(
            f"offsets {gap.first} to {gap.next - 1} of the workflow's partition are gone ({gap.reason}):"
            " the list may lack steps"
        )


def _question(plan: Plan) -> str:
    count, risky = len(plan.steps), plan.not_idempotent
    what = f"{count} step{'' if count == 1 else 's'} will run again"
    if risky:
        what += f", {risky} of them not idempotent"
    return f"{what}. Restore checkpoint {plan.checkpoint.checkpoint_id}?"


def _carry_out(at: Addresses, plan: Plan, reason: str, wait: bool, timeout_s: float, output: str) -> int:
    from ops.audit import audited
    from ops.restore import Restore

    with Restore(at, plan, reason) as request:
        with audited(at.kafka, "workflows.restore", subject=plan.workflow_id, reason=reason) as detail:
            detail.update(
                request_id=request.request.request_id,
                checkpoint_id=plan.checkpoint.checkpoint_id,
                runs_again=len(plan.steps),
            )
            request.send()
        steps = _followed(request, timeout_s) if wait else [{"what": "requested", "detail": "", "reason": None}]
    last = str(steps[-1]["what"])
    if output == "json":
        show_json({**_plan_json(plan), "request_id": request.request.request_id, "outcome": last, "steps": steps})
    if last == "timed_out":
        say(f"kintsugi workflows timeline {plan.workflow_id} tells what becomes of it")
    return {"failed": FAILED, "timed_out": TIMED_OUT}.get(last, OK)


def _followed(request: Restore, timeout_s: float) -> list[dict[str, Any]]:
    steps = []
    for step in request.follow(timeout_s):
        steps.append(asdict(step))
        reason = f" ({step.reason})" if step.reason else ""
        say(f"{step.what.replace('_', ' ')}{reason}{f': {step.detail}' if step.detail else ''}")
    return steps
