"""`kintsugi replay`: the engine over recorded events once more, with nothing that can write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ops.commands import replay_sessions
from ops.commands.replay_sessions import FILE, RefusedError
from ops.output import ID, MISMATCH, say, show

if TYPE_CHECKING:
    from engine.policy import Policy
    from ops.replay_kept import Kept
    from ops.replaying import Request
    from ops.stack import Addresses


@click.group(invoke_without_command=True, subcommand_metavar="[list | show | drop] ...")
@click.option("--topic", default="workflow.events", show_default=True)
@click.option("--from", "starts", multiple=True, metavar="PLACE", help="0:1200, 0:@TIME or @TIME; may be repeated.")
@click.option("--to", "ends", multiple=True, metavar="PLACE", help="The same; not included. Default: the end.")
@click.option("--workflow", type=ID, help="Only this workflow; without --from from its beginning on.")
@click.option("--cold", is_flag=True, help="Begin with no state, not with what lies before the range.")
@click.option("--facts", type=click.Choice(["recorded", "own"]), help="Whose decisions are folded; see docs/replay.md.")
@click.option("--policy", type=FILE, help="What would this policy have decided?")
@click.option("--ran-with", type=FILE, help="The policy that ran, where none was applied.")
@click.option("--inject", "injected", multiple=True, metavar="SPEC", help="Such as drop@0:1210; may be repeated.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is drawn, such as a corrupt bit.")
@click.option("--step", is_flag=True, help="Event by event, with the state before and after each.")
@click.option(
    "--export", "form", type=click.Choice(["json", "yaml", "html"]), help="Write the whole document to stdout."
)
@click.option("--json", "as_json", is_flag=True, help="As --export json; with --step one line for each event.")
@click.option("--accept-gap", is_flag=True, help="Replay what retention has left.")
@click.option("--without-archive", is_flag=True, help="Begin where Kafka's log begins.")
@click.option("--into", metavar="SCHEMA", help="Fill a scratch schema, kintsugi_replay_SCHEMA, for questions in SQL.")
@click.option("--replace", is_flag=True, help="With --into: instead of the one of that name.")
@click.option("--keep", is_flag=True, help="Keep the document where debugging.replay_mode.storage says.")
@click.pass_context
def replay(
    context: click.Context,
    topic: str,
    starts: tuple[str, ...],
    ends: tuple[str, ...],
    workflow: str | None,
    cold: bool,
    facts: str | None,
    policy: Path | None,
    ran_with: Path | None,
    injected: tuple[str, ...],
    seed: int,
    step: bool,
    form: str | None,
    as_json: bool,
    accept_gap: bool,
    without_archive: bool,
    into: str | None,
    replace: bool,
    keep: bool,
) -> None:
    """Run engine and projections over a range of events again, and compare the decisions with those recorded.

    Nothing is written but that somebody replayed (a debugging session) and, with --into, a schema of its own. Exit 6
    when engine and log disagree.

    \b
      kintsugi replay --from 0:1200 --to 0:1300
      kintsugi replay --workflow 6b696e74-7375-4769-8000-676f6c646a6f --step
      kintsugi replay --from '@2026-11-20T10:00Z' --into monday
    """
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    from ops.replay_plan import Asked, planned
    from ops.replay_range import ReplayError
    from ops.replay_scratch import schema_of
    from ops.replaying import Request, policy_from
    from ops.stack import addresses

    if replace and into is None:
        raise click.UsageError("--replace goes with --into")
    # A policy that does not load is said before anything begins.
    _, started_with = (policy_from(None if path is None else str(path)) for path in (policy, ran_with))
    at = addresses()
    asked = Asked(
        topic=topic,
        starts=starts,
        ends=ends,
        workflow=workflow,
        cold=cold,
        injected=injected,
        archived=not without_archive,
        accept_gap=accept_gap,
        started_with=started_with,
    )
    try:
        plan, commands, allowed = planned(
            at,
            asked,
            say,
            facts=facts or ("own" if injected else "recorded"),
            seed=seed,
            policy=None if policy is None else str(policy),
            ran_with=None if ran_with is None else str(ran_with),
            into=None if into is None else schema_of(into),
        )
        for gap in plan.missing:
            say(f"partition {gap.partition}: offsets {gap.first} to {gap.next - 1} are missing: {gap.reason}")
        interactive = step and not as_json and form is None and sys.stdin.isatty()
        given = form or ("jsonl" if as_json and step else "json")
        request = Request(plan=plan, commands=commands, form=given, step=step, interactive=interactive)
        kept = _kept(at, allowed) if keep else None
        _carry_out(at, request, kept, whole=bool(form or as_json), replace=replace)
    except ReplayError as error:
        raise RefusedError(error) from error


replay.add_command(replay_sessions.list_)
replay.add_command(replay_sessions.show_)
replay.add_command(replay_sessions.drop)


def _refuse_options(context: click.Context) -> None:
    for name in context.params:
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"kintsugi replay {context.invoked_subcommand} takes its options behind its name")


def _kept(at: Addresses, allowed: Policy) -> Kept:
    from ops.replay_kept import Kept

    return Kept(allowed.replay_mode.storage, at.objects)


def _carry_out(at: Addresses, request: Request, kept: Kept | None, *, whole: bool, replace: bool) -> None:
    """In a process of its own; what it was and what came of it is written down around it."""
    import uuid

    import orjson

    session_id = str(uuid.uuid4())
    output = _replayed(at, request, kept, session_id, replace=replace)
    if whole:
        sys.stdout.buffer.write(output)
        sys.stdout.buffer.flush()
    if request.form not in ("json", "jsonl"):
        return
    document = orjson.loads(output.splitlines()[-1] if request.form == "jsonl" else output)
    document = document.get("summary", document)
    if not whole:
        _show(document)
    _told(document, changed=bool(request.plan.injections or request.plan.policy))


def _replayed(at: Addresses, request: Request, kept: Kept | None, session_id: str, *, replace: bool) -> bytes:
    """The session around the process: what the process wrote. A scratch schema that is not whole does not stay."""
    import hashlib
    from contextlib import suppress

    from ops import replay_scratch as scratch
    from ops.audit import actor, now
    from ops.replay_session import Session
    from schemas.errors import KintsugiError

    into = request.plan.into
    said = {"session": session_id, "actor": actor(), "at": now(), "state": "filling"}
    if into is not None:
        scratch.create(at.postgres, into, said, replace=replace)
    try:
        session = Session(at, session_id, request.plan.document(), request.plan.workflow_id)
        say(f"debugging session {session_id}")
        status, results = "failed", {}
        try:
            command = [sys.executable, "-m", "ops.replaying", request.dumped()]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
            if done.returncode != 0:
                raise click.exceptions.Exit(done.returncode)
            results = {"sha256": hashlib.sha256(done.stdout).hexdigest()}
            if kept is not None:
                results["kept"] = kept.put(session_id, done.stdout)
            if into is not None:
                scratch.finish(at.postgres, into, {**said, "state": "filled"})
            status = "completed"
        finally:
            session.finish(status, results)
    except BaseException:
        if into is not None:
            with suppress(KintsugiError):  # why the replay failed says more than that its rows are still there
                scratch.drop(at.postgres, into)
        raise
    return done.stdout


def _show(document: dict[str, Any]) -> None:
    from ops.replay_export import difference_rows, step_lines

    for step in document.get("steps", ()):
        for line in step_lines(step):
            click.echo(line)
    decided = ("place", "at", "workflow_id", "attempt", "error_type", "strategy", "command", "verdict")
    show(document["decisions"], "table", columns=decided, empty="no repair was decided in this range")
    for title, name in (("Differences", "differences"), ("Commands that differ", "command_differences")):
        if document[name]:
            click.echo(f"\n{title}")
            show(list(difference_rows(document[name])), "table")
    tables = [row for row in document["tables"] if row["rows"] or row["changes"]]
    if tables:
        click.echo("\nTables")
        show(tables, "table")


def _told(document: dict[str, Any], *, changed: bool) -> None:
    aside = sum(document["set_aside"].values())
    say(f"{document['records']} records, {document['records_before']} before them for the state, {aside} set aside")
    say(", ".join(f"{count} {verdict}" for verdict, count in document["verdicts"].items()) or "no fact of the engine")
    if document["commands_compared"]:
        say("commands: " + ", ".join(f"{n} {verdict}" for verdict, n in document["commands_compared"].items()))
    into = document.get("into")
    if into is not None:
        say(f"{into['rows']} rows in {into['schema']}, {len(into['refused'])} refused by Postgres; to look at them:")
        say(f'  psql "$KINTSUGI_POSTGRES" -c "SELECT * FROM {into["schema"]}.workflow_errors"')
    refused = document["not_projected"]
    if refused["records"]:
        first = refused["shown"][0]
        say(
            f"{refused['records']} records that the tables cannot take, the first at {first['place']}: {first['error']}"
        )
    for kill in document["kills"]:
        same = "the same" if kill["same_states"] and kill["same_effects"] else "OTHER"
        say(
            f"killed at {kill['place']}: it came back with {same} states and asked for {same} {kill['effects']} effects"
        )
    for injection in document["injected"]:
        if not injection["applied"]:
            say(f"nothing in the range fits --inject {injection['spec']}")
    if not document["agrees"] and not changed:
        say("engine and log do not agree")
        raise click.exceptions.Exit(MISMATCH)
