"""`kintsugi keys init | status | rotate | rewrap | erase`."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ops.output import (
    CONFLICT,
    ID,
    MISMATCH,
    PARTIAL,
    NotFoundError,
    output_option,
    progress_bar,
    say,
    show,
    show_json,
    show_record,
)

_REASON = "Why; it is kept in the audit topic."


@click.group()
def keys() -> None:
    """Make, rotate and erase the keys that states are sealed with."""


@keys.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path), required=False)
@output_option
def init(path: Path | None, output: str) -> None:
    """Write a new key file to PATH, by default keys.json of the local stack. Exit 4 when there is a file already."""
    from ops.audit import audited
    from ops.keys import create_file
    from ops.stack import StackDownError, addresses, home_of

    path = (path or home_of() / "keys.json").absolute()
    if path.exists():
        say(f"{path} is there already and is left as it is; kintsugi keys rotate adds a key to it")
        raise click.exceptions.Exit(CONFLICT)
    try:
        kafka = addresses().kafka
    except StackDownError:  # keys may be made before there is a stack
        say("no stack is known: not written to the audit topic")
        ring = create_file(path)
    else:
        with audited(kafka, "keys.init", subject=str(path), reason="a new key file") as detail:
            ring = create_file(path)
            detail["current"] = ring.current
    say(f"keep a copy of {path} in a safe place: without it, what is sealed can be read by nobody")
    if output == "json":
        show_json({"path": str(path), "current": ring.current, "url": path.as_uri()})
    else:
        click.echo(f"export KINTSUGI_KEYS={path.as_uri()}")


@keys.command()
@output_option
def status(output: str) -> None:
    """Which keys wrap how many data keys, and whose were erased. Exit 6 when some cannot be opened."""
    from ops.keys import opened, survey
    from ops.stack import addresses

    keystore = opened(addresses().objects)
    with progress_bar() as progress:
        report = survey(keystore, progress)
    if output == "json":
        show_json({**asdict(report), "lost_keks": report.lost_keks, "sound": report.sound})
    else:
        rows = [
            {"key": kek, "state": _state_of(kek, report.current, report.keks), "data_keys": count}
            for kek, count in report.by_kek.items()
        ]
        show(rows, output)
        if report.erasures:
            click.echo("\nErased")
            show(report.erasures, output, columns=("workflow_id", "actor", "reason", "erased_at"))
        if report.problems:
            click.echo("\nUnusable")
            show(report.problems, output)
    say(f"{report.data_keys} data keys of {report.workflows} workflows; {report.erased} workflows erased")
    for workflow_id in report.unfinished:
        say(f"an erasure was cut short; kintsugi keys erase {workflow_id} finishes it")
    if not report.sound:
        for kek in report.lost_keks:
            say(f"{report.by_kek[kek]} data keys are wrapped by {kek}, which KINTSUGI_KEYS does not have")
        raise click.exceptions.Exit(MISMATCH)


def _state_of(kek: str, current: str, keks: tuple[str, ...]) -> str:
    return "current" if kek == current else "kept" if kek in keks else "missing"


@keys.command()
@click.option("--workflow", "workflow_id", type=ID, help="A new data key for this workflow instead.")
@click.option(
    "--stage", is_flag=True, help="Add the key, but do not wrap with it yet: give the file to all hosts first."
)
@click.option("--to", "kek_id", help="Make this key, which the file has, the current one.")
@click.option("--reason", default="rotation", show_default=True, help=_REASON)
@output_option
def rotate(workflow_id: str | None, stage: bool, kek_id: str | None, reason: str, output: str) -> None:
    """Make a new key, which is used from now on. Old ones stay, and what they sealed stays readable.

    Without --workflow a key-encryption key is added to the key file; running processes see it by themselves. With
    several hosts: --stage, copy the file to all, then --to the new key.
    """
    from ops.audit import audited
    from ops.keys import key_file_of, opened, rotate_file
    from ops.stack import addresses

    if sum((workflow_id is not None, stage, kek_id is not None)) > 1:
        raise click.UsageError("--workflow, --stage and --to exclude each other")
    at = addresses()
    if workflow_id is not None:
        keystore = opened(at.objects)
        if not any(True for _ in keystore.names(workflow_id)):
            raise NotFoundError(f"workflow {workflow_id} has no data key; its first checkpoint makes one")
        with audited(at.kafka, "keys.rotate_workflow", subject=workflow_id, reason=reason) as detail:
            detail["number"] = keystore.rotate(workflow_id).number
        _tell({"workflow_id": workflow_id, "number": detail["number"]}, output)
        return
    path = key_file_of(os.environ.get("KINTSUGI_KEYS", ""))
    with audited(at.kafka, "keys.rotate", subject=str(path), reason=reason) as detail:
        ring = rotate_file(path, make_current=not stage, kek_id=kek_id)
        detail.update(current=ring.current, keys=list(ring.names()))
    _tell({"path": str(path), "current": ring.current, "newest": ring.names()[-1]}, output)
    if stage:
        say(f"copy {path} to every host, then: kintsugi keys rotate --to {ring.names()[-1]}")
    else:
        say("kintsugi keys rewrap wraps the data keys by it; then the old keys can be taken out of the file")


@keys.command()
@click.option("--dry-run", is_flag=True, help="Say what would be wrapped anew, change nothing.")
@click.option("--reason", default="rotation", show_default=True, help=_REASON)
@output_option
def rewrap(dry_run: bool, reason: str, output: str) -> None:
    """Wrap every data key by the current key. States are not touched.

    Cut short, it can be called again: what is done stays done. Exit 5 when some keys could not be opened.
    """
    from ops.audit import audited
    from ops.keys import opened
    from ops.keys import rewrap as wrap_again
    from ops.stack import addresses

    at = addresses()
    keystore = opened(at.objects)
    with progress_bar() as progress:
        if dry_run:
            report = wrap_again(keystore, progress, dry_run=True)
        else:
            with audited(at.kafka, "keys.rewrap", subject=keystore.provider.current, reason=reason) as detail:
                report = wrap_again(keystore, progress, dry_run=False)
                detail.update(rewrapped=report.rewrapped, already=report.already, failed=report.failed)
    if output == "json":
        show_json(asdict(report))
    elif report.problems:
        show(report.problems, output)
    word = "would be wrapped" if dry_run else "wrapped"
    say(f"{report.rewrapped} data keys {word} by {report.current}, {report.already} were already")
    if report.failed:
        say(f"{report.failed} could not be opened, and were left as they are")
        raise click.exceptions.Exit(PARTIAL)


@keys.command()
@click.argument("workflow_id", type=ID)
@click.option("--reason", required=True, help="Why; it is kept beside the key, in the log and in the audit topic.")
@click.option("--dry-run", is_flag=True, help="Show what would become unreadable, erase nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
def erase(workflow_id: str, reason: str, dry_run: bool, yes: bool, output: str) -> None:
    """Erase a workflow's data keys: what they sealed can be read by nobody, anywhere, ever again.

    States and error texts in the log, the archive, the tables and object storage stay as they are, unreadable; rebuilds
    and replays pass. Processes forget the keys within 5 minutes. Cut short, it can be called again.
    """
    from ops.audit import actor, audited
    from ops.keys import exposure, opened, prove_erasure
    from ops.stack import addresses

    if not reason.strip():
        raise click.UsageError("--reason is empty")
    at = addresses()
    keystore = opened(at.objects)
    found = exposure(at, keystore, workflow_id)
    if found["workflow_type"] is None and not found["data_keys"] and not found["erased"]:
        raise NotFoundError(f"no workflow {workflow_id}, and no data key of it")
    if dry_run:
        _tell(found, output)
        return
    if not yes:
        _confirm(found)
    with audited(at.kafka, "keys.erase", subject=workflow_id, reason=reason) as detail:
        done = keystore.erase(workflow_id, actor=actor(), reason=reason)
        detail["keys_deleted"] = done.keys_deleted
        detail["event_id"] = prove_erasure(at, workflow_id, actor=done.actor, reason=done.reason)
    _tell({**asdict(done), "event_id": detail["event_id"]}, output)


def _confirm(found: dict[str, Any]) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("nobody is there to ask: --yes erases, --dry-run shows what")
    say(
        f"{found['checkpoints']} checkpoints, {found['states']} states and the texts of {found['errors']} errors"
        f" of {found['workflow_type'] or 'a'} workflow become unreadable, for ever."
    )
    typed = click.prompt("type the workflow's id to go on", err=True)
    if typed.strip().lower() != found["workflow_id"]:
        say("that is another id; nothing was erased")
        raise click.exceptions.Exit(CONFLICT)


def _tell(record: dict[str, Any], output: str) -> None:
    if output == "json":
        show_json(record)
    else:
        show_record(record)
