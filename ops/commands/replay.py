"""`kintsugi replay`: the engine over recorded events once more, with nothing that can write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ops.output import CONFLICT, FAILED, ID, MISMATCH, NOT_FOUND, USAGE, NotFoundError, say, show

if TYPE_CHECKING:
    from ops.replay import Plan
    from ops.replay_range import ReplayError
    from ops.stack import Addresses

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_CODES = {
    "spec": USAGE,
    "inject": USAGE,
    "empty": USAGE,
    "reversed": USAGE,
    "topic": NOT_FOUND,
    "partition": NOT_FOUND,
    "beyond_end": CONFLICT,
    "missing": CONFLICT,
    "size": CONFLICT,
}


class _RefusedError(click.ClickException):
    def __init__(self, error: ReplayError) -> None:
        super().__init__(f"{error}\n  try: {error.hint}" if error.hint else str(error))
        self.exit_code = _CODES.get(error.reason, FAILED)  # type: ignore[misc]


@click.command()
@click.option("--topic", default="workflow.events", show_default=True)
@click.option("--from", "starts", multiple=True, metavar="PLACE", help="0:1200, 0:@TIME or @TIME; may be repeated.")
@click.option("--to", "ends", multiple=True, metavar="PLACE", help="The same; not included. Default: the end.")
@click.option("--workflow", type=ID, help="Only this workflow; without --from from its beginning on.")
@click.option("--cold", is_flag=True, help="Begin with no state, not with what lies before the range.")
@click.option("--facts", type=click.Choice(["recorded", "own"]), help="Whose decisions are folded; see docs/replay.md.")
@click.option("--policy", type=_FILE, help="What would this policy have decided?")
@click.option("--ran-with", type=_FILE, help="The policy that ran, where none was applied.")
@click.option("--inject", "injected", multiple=True, metavar="SPEC", help="Such as drop@0:1210; may be repeated.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is drawn, such as a corrupt bit.")
@click.option("--step", is_flag=True, help="Event by event, with the state before and after each.")
@click.option(
    "--export", "form", type=click.Choice(["json", "yaml", "html"]), help="Write the whole document to stdout."
)
@click.option("--json", "as_json", is_flag=True, help="As --export json; with --step one line for each event.")
@click.option("--accept-gap", is_flag=True, help="Replay what retention has left.")
@click.option("--without-archive", is_flag=True, help="Begin where Kafka's log begins.")
def replay(
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
) -> None:
    """Run engine and projections over a range of events again, and compare the decisions with those recorded.

    Nothing is written but that somebody replayed (a debugging session). Exit 6 when engine and log disagree.
    """
    from ops.replay_range import ReplayError
    from ops.replaying import Request, policy_from
    from ops.stack import addresses

    for path in (policy, ran_with):
        policy_from(None if path is None else str(path))  # a policy that does not load is said before anything begins
    at = addresses()
    try:
        plan = _plan(
            at,
            topic=topic,
            starts=starts,
            ends=ends,
            workflow=workflow,
            cold=cold,
            injected=injected,
            archived=not without_archive,
            accept_gap=accept_gap,
            facts=facts or ("own" if injected else "recorded"),
            seed=seed,
            policy=None if policy is None else str(policy),
            ran_with=None if ran_with is None else str(ran_with),
        )
    except ReplayError as error:
        raise _RefusedError(error) from error
    for gap in plan.missing:
        say(f"partition {gap.partition}: offsets {gap.first} to {gap.next - 1} are missing: {gap.reason}")
    interactive = step and not as_json and form is None and sys.stdin.isatty()
    given = form or ("jsonl" if as_json and step else "json")
    _carry_out(at, Request(plan=plan, form=given, step=step, interactive=interactive), whole=bool(form or as_json))


def _plan(
    at: Addresses,
    *,
    topic: str,
    starts: tuple[str, ...],
    ends: tuple[str, ...],
    workflow: str | None,
    cold: bool,
    injected: tuple[str, ...],
    archived: bool,
    accept_gap: bool,
    **options: Any,
) -> Plan:
    from consumers.log_reader import LogReader
    from ops import reads
    from ops.archive import archive_of, history_of
    from ops.replay import Plan
    from ops.replay_inject import check, parse_all
    from ops.replay_range import Resolver, check_topic, parse_place

    check_topic(topic)
    injections = parse_all(injected)
    if workflow is not None and not starts:
        found = reads.workflow(at.postgres, workflow)
        if found is None:
            raise NotFoundError(f"no workflow {workflow}; kintsugi workflows list shows those that are there")
        starts = (f"{found['log_partition']}:{found['first_offset']}",)
    begin, end = [parse_place(text) for text in starts], [parse_place(text) for text in ends]
    with LogReader(at.kafka) as log:
        resolver = Resolver(history_of(at, log, archived=archived), archive_of(at, log) if archived else None)
        ranges, gaps = resolver.ranges(begin, end, cold=cold, accept_gap=accept_gap)
    check(injections, ranges)
    return Plan(
        ranges=tuple(ranges),
        workflow_id=workflow,
        injections=injected,
        archived=archived,
        accept_gap=accept_gap or bool(gaps),
        missing=tuple(gaps),
        **options,
    )


def _carry_out(at: Addresses, request: Any, *, whole: bool) -> None:
    """In a process of its own; what it was and what came of it is written down around it."""
    import hashlib

    import orjson

    from ops.replay_session import Session

    session = Session(at, request.plan.document(), request.plan.workflow_id)
    say(f"debugging session {session.session_id}")
    status, results = "failed", {}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ops.replaying", request.dumped()], stdout=subprocess.PIPE, check=False
        )
        if done.returncode != 0:
            raise click.exceptions.Exit(done.returncode)
        status, results = "completed", {"sha256": hashlib.sha256(done.stdout).hexdigest()}
    finally:
        session.finish(status, results)
    if whole:
        sys.stdout.buffer.write(done.stdout)
        sys.stdout.buffer.flush()
    if request.form not in ("json", "jsonl"):
        return
    document = orjson.loads(done.stdout.splitlines()[-1] if request.form == "jsonl" else done.stdout)
    document = document.get("summary", document)
    if not whole:
        _show(document)
    _told(document, changed=bool(request.plan.injections or request.plan.policy))


def _show(document: dict[str, Any]) -> None:
    from ops.replay_export import step_lines

    for step in document.get("steps", ()):
        for line in step_lines(step):
            click.echo(line)
    decided = ("place", "at", "workflow_id", "attempt", "error_type", "strategy", "command", "verdict")
    show(document["decisions"], "table", columns=decided, empty="no repair was decided in this range")
    if document["differences"]:
        click.echo("\nDifferences")
        differing = ("verdict", "place", "record", "workflow_id", "fields")
        show(document["differences"], "table", columns=differing)
    tables = [row for row in document["tables"] if row["rows"] or row["changes"]]
    if tables:
        click.echo("\nTables")
        show(tables, "table")


def _told(document: dict[str, Any], *, changed: bool) -> None:
    aside = sum(document["set_aside"].values())
    say(f"{document['records']} records, {document['records_before']} before them for the state, {aside} set aside")
    say(", ".join(f"{count} {verdict}" for verdict, count in document["verdicts"].items()) or "no fact of the engine")
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
