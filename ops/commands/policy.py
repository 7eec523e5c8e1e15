"""`kintsugi policy validate | diff | apply | history | explain | backtest`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ops.commands.policy_backtest import backtest
from ops.output import (
    CONFLICT,
    ID,
    NotFoundError,
    output_option,
    printable,
    progress_bar,
    say,
    show,
    show_json,
    show_record,
)

if TYPE_CHECKING:
    from consumers.policies import Entry
    from engine.policy import Ladder, Policy
    from ops.policies import Reach
    from ops.policy_diff import Side
    from ops.stack import Addresses

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
#: Parts of a decision that are shown below the others.
_APART = ("policy_text", "evidence", "passed_over", "other_rules")
#: A change in a table shows so much of a value.
_VALUE_CHARS_MAX = 100


@click.group()
def policy() -> None:
    """Check a policy, compare two, apply one while everything runs, and say why a repair was chosen."""


policy.add_command(backtest)


@policy.command()
@click.argument("file", type=_FILE, required=False)
@output_option
def validate(file: Path | None, output: str) -> None:
    """Check FILE (default: the policy that ships) and show the ladders it means, its rules first.

    Every problem is listed with its path, its value and what is allowed.
    """
    from engine.policy import default_policy, load_policy
    from ops.policies import read_text

    loaded = default_policy() if file is None else load_policy(read_text(file), str(file))
    rows: list[dict[str, Any]] = []
    for rule in loaded.rules:
        rows += _rungs(loaded, rule.ladder, rule.name, str(rule.match))
    for ladder in loaded.ladders.values():
        rows += _rungs(loaded, ladder, None, ladder.error_type)
    columns = ("rule", "match") if loaded.rules else ("error_type",)
    show(rows, output, columns=(*columns, "rung", "strategy", "attempts", "backoff", "cost", "then"))
    for warning in loaded.warnings:
        say(f"warning: {warning}")
    say(f"version {loaded.version}: valid")


def _rungs(policy: Policy, ladder: Ladder, rule: str | None, match: str) -> list[dict[str, Any]]:
    """A row per rung; the last says what comes after it, and so does that of a ladder without any."""
    from ops.policy_diff import ending

    then = ending(policy, ladder)
    names = {"rule": rule, "match": match, "error_type": ladder.error_type}
    if not ladder.rungs:
        return [{**names, "rung": 0, "strategy": None, "attempts": 0, "backoff": "none", "cost": 0.0, "then": then}]
    last = len(ladder.rungs) - 1
    return [
        {
            **names,
            "rung": number + 1,
            "strategy": rung.strategy,
            "attempts": rung.attempts_max,
            "backoff": f"{rung.backoff.base_ms}..{rung.backoff.max_ms} ms" if rung.backoff else "none",
            "cost": rung.cost,
            "then": then if number == last else None,
        }
        for number, rung in enumerate(ladder.rungs)
    ]


@policy.command("diff")
@click.argument("before")
@click.argument("after")
@output_option
def diff_(before: str, after: str, output: str) -> None:
    """Which ladders and keys differ between two policies.

    Each is a file, `applied` (what was applied last), `default` (what ships), or a version of `policy history`, of
    which the first characters will do.
    """
    from functools import cache

    from ops.policies import applied, side_of
    from ops.stack import addresses

    found = cache(lambda: applied(addresses()))
    sides = side_of(before, found), side_of(after, found)
    if output == "json":
        show_json(_difference(*sides))
    else:
        _show_difference(*sides)


@policy.command("apply")
@click.argument("file", type=_FILE, required=False)
@click.option("--reason", help="Why; required, but for a dry run. It goes into the log and to the audit log.")
@click.option("--dry-run", is_flag=True, help="Show what would be different; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--resume", is_flag=True, help="Finish the last one, which did not reach every partition.")
@output_option
def apply_(file: Path | None, reason: str | None, dry_run: bool, yes: bool, resume: bool, output: str) -> None:
    """Bring FILE into force in every partition, without a restart.

    Shows what is different from what was applied last. Each partition has the new policy from one place in its log on:
    what was decided before it stays, and the repairs of open errors go on by the new one.

    \b
      kintsugi policy apply my-policy.yaml --dry-run
      kintsugi policy apply my-policy.yaml --reason "case 81: fewer retries" --yes

    Exit 4: somebody else applied one in between, 5: not all partitions have it; --resume finishes that.
    """
    from ops.policies import applied
    from ops.stack import addresses

    if (file is None) != resume:
        raise click.UsageError("FILE, or --resume to finish the last one")
    why = (reason or "").strip()
    if not dry_run and not resume and not why:
        raise click.UsageError("--reason is required: it is kept with the policy. --dry-run needs none")
    if not dry_run and not resume and not yes and not sys.stdin.isatty():
        raise click.UsageError("nobody is there to ask: --yes applies it, --dry-run shows what is different")
    at = addresses()
    newest = applied(at).newest
    if resume:
        if newest is None:
            raise NotFoundError("no policy has been applied")
        _finish(at, newest, why, output)
        return
    assert file is not None
    after = _side(file)
    if newest is not None and newest.version == after.policy.version:
        say(f"version {newest.version} is what was applied last")
        _finish(at, newest, why, output, dry_run=dry_run)
        return
    _apply(at, newest, after, reason=why, dry_run=dry_run, yes=yes, output=output)


def _apply(
    at: Addresses, newest: Entry | None, after: Side, *, reason: str, dry_run: bool, yes: bool, output: str
) -> None:
    from ops.audit import audited
    from ops.policies import enter, finish, partitions_of, reach_of

    before = _before(newest)
    for warning in after.policy.warnings:
        say(f"warning: {warning}")
    if output == "json" and dry_run:
        show_json({"dry_run": True, **_difference(before, after)})
    elif output != "json":
        _show_difference(before, after)
    if dry_run:
        return
    if not yes and not click.confirm(f"Apply version {after.policy.version} to all workflows?", err=True):
        say("nothing was changed")
        raise click.exceptions.Exit(CONFLICT)
    with (
        audited(at.kafka, "policy.apply", subject=after.policy.version, reason=reason) as detail,
        progress_bar() as bar,
    ):
        entry = enter(at, after, supersedes=newest, reason=reason)
        detail |= {"sequence": entry.sequence, "supersedes": entry.supersedes}
        entry = finish(at, entry, bar, again=False)
        detail["partitions"] = len(entry.offsets)
    _told(entry, reach_of(entry, partitions_of(at)), output)


def _finish(at: Addresses, entry: Entry, reason: str, output: str, *, dry_run: bool = False) -> None:
    """Bring the newest entry to the partitions that do not have it."""
    from ops.audit import audited
    from ops.policies import finish, partitions_of, reach_of

    partitions = partitions_of(at)
    reach = reach_of(entry, partitions)
    if not reach.whole and not dry_run:
        why, version = reason or entry.reason, entry.version
        with audited(at.kafka, "policy.apply", subject=version, reason=why) as detail, progress_bar() as bar:
            detail |= {"sequence": entry.sequence, "resumed": True}
            entry = finish(at, entry, bar, again=True)
            detail["partitions"] = len(entry.offsets)
        reach = reach_of(entry, partitions)
    _told(entry, reach, output)


def _told(entry: Entry, reach: Reach, output: str) -> None:
    if output == "json":
        show_json(
            {"version": entry.version, "sequence": entry.sequence, "supersedes": entry.supersedes, **asdict(reach)}
        )
    say(f"version {entry.version} is in force in {len(reach.partitions)} of {reach.all} partitions")
    if not reach.whole:
        say("  finish it with: kintsugi policy apply --resume")


def _side(file: Path) -> Side:
    from ops.policies import read_text
    from ops.policy_diff import Side

    return Side.of(read_text(file), str(file))


def _before(newest: Entry | None) -> Side:
    """What is compared with: what was applied last, else what ships."""
    from engine.policy import default_text
    from ops.policy_diff import Side
    from schemas.errors import ConfigError

    if newest is not None:
        try:
            return Side.of(newest.text, f"applied {newest.version}")
        except ConfigError as error:
            say(f"what was applied last does not load in this version ({error}); compared with what ships")
    else:
        say("no policy has been applied so far: compared with the policy that ships, which may not be what runs")
    return Side.of(default_text(), "the policy that ships")


def _difference(before: Side, after: Side) -> dict[str, Any]:
    from ops.policy_diff import changed_keys, changed_ladders

    return {
        "before": {"source": before.source, "version": before.policy.version},
        "after": {"source": after.source, "version": after.policy.version},
        "keys": [asdict(change) for change in changed_keys(before, after)],
        "ladders": [asdict(change) for change in changed_ladders(before, after)],
    }


def _show_difference(before: Side, after: Side) -> None:
    from ops.policy_diff import changed_keys, changed_ladders

    say(f"{before.source} ({before.policy.version}) -> {after.source} ({after.policy.version})")
    ladders, keys = changed_ladders(before, after), changed_keys(before, after)
    if not keys:
        say("nothing differs")
        return
    if ladders:
        rows = [
            {"ladder": change.ladder, "before": _lines(change.before), "after": _lines(change.after)}
            for change in ladders
        ]
        show(rows, "table")
        click.echo()
    rows = [{"key": c.key, "before": _short(c.before), "after": _short(c.after)} for c in keys]
    show(rows, "table")


def _lines(rungs: tuple[str, ...] | None) -> str | None:
    return None if rungs is None else "\n".join(rungs)


def _short(value: Any) -> str | None:
    import json

    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(_given(value))
    return text if len(text) <= _VALUE_CHARS_MAX else f"{text[:_VALUE_CHARS_MAX]}..."


def _given(value: Any) -> Any:
    """Without what is not there."""
    return {k: _given(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


@policy.command()
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="The newest ones.")
@output_option
def history(limit: int, output: str) -> None:
    """Policies that were applied, the newest first: who, when, why, and in which partitions each is in force."""
    from ops.policies import applied, history_rows, partitions_of
    from ops.stack import addresses

    at = addresses()
    rows = history_rows(applied(at), partitions_of(at))[:limit]
    columns = ("sequence", "version", "at", "actor", "reason", "state")
    show(rows, output, columns=columns, empty="no policy has been applied; each process has its own --policy")


@policy.command()
@click.argument("workflow_id", type=ID)
@click.option("--policy", "file", type=_FILE, help="A policy that ran, and that was not applied.")
@output_option
def explain(workflow_id: str, file: Path | None, output: str) -> None:
    """Why each repair of a workflow was chosen: the policy, its rule, the evidence, and what was passed over.

    Read from log and archive. The rule's text is shown where its policy was applied, ships, or is given.
    """
    from consumers.log_reader import LogReader
    from consumers.policies import read_policies
    from ops import reads
    from ops.archive import history_of
    from ops.explain import Rules
    from ops.explain import explain as read
    from ops.policies import read_text
    from ops.stack import addresses
    from schemas.archive_format import Gap
    from schemas.codec import Codec
    from schemas.registry import Registry

    at = addresses()
    found = reads.workflow(at.postgres, workflow_id)
    if found is None:
        raise NotFoundError(f"no workflow {workflow_id}; kintsugi workflows list shows those that are there")
    gaps: list[Gap] = []
    with LogReader(at.kafka) as log, Registry(at.registry) as registry:
        rules = Rules(read_policies(log), None if file is None else read_text(file))
        rows = list(read(history_of(at, log), Codec(registry), found, rules, on_gap=gaps.append))
    for gap in gaps:
        say(f"offsets {gap.first} to {gap.next - 1} are missing: {gap.reason}")
    if output == "json":
        show_json(rows)
    elif not rows:
        say("no repair was decided for this workflow")
    else:
        _show_decisions(rows)


def _show_decisions(rows: list[dict[str, Any]]) -> None:
    for number, row in enumerate(rows):
        if number:
            click.echo()
        shown = {name: value for name, value in row.items() if name not in _APART}
        evidence = row["evidence"]
        if isinstance(evidence, dict):
            evidence = ", ".join(f"{name} {value}" for name, value in evidence.items())
        show_record({**shown, "evidence": evidence})
        for other in row["passed_over"] if isinstance(row["passed_over"], list) else ():
            click.echo(printable(f"  passed over: {other.get('strategy')}: {other.get('reason')}"))
        for other in row["other_rules"] or ():
            click.echo(printable(f"  rule {other['rule']} did not fit: {', '.join(other['did_not_fit'])}"))
        if row["policy_text"]:
            click.echo("  the policy says:")
            for line in row["policy_text"].splitlines():
                click.echo(printable(f"    {line}"))
