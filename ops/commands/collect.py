"""`kintsugi checkpoints collect`: one collection of orphans by hand."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ops.output import output_option, progress_bar, say, show_json

if TYPE_CHECKING:
    from consumers.keeper.orphans import Orphans
    from ops.stack import Addresses

_ACTION = "checkpoints.collect"


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@click.option(
    "--orphan-grace",
    type=click.FloatRange(2, 365 * 24),
    default=24.0,
    show_default=True,
    metavar="HOURS",
    help="Objects that nothing refers to stay this long.",
)
@click.option("--any-share", is_flag=True, help="Delete even if more than half of all objects are orphans.")
@output_option
def collect(dry_run: bool, orphan_grace: float, any_share: bool, output: str) -> None:
    """Delete stored states that no checkpoint and no version refers to, as the keeper does every hour.

    Exit 75, and nothing is deleted, when the tables are behind the log, empty, or do not fit the store.
    """
    from ops.audit import audited
    from ops.stack import addresses

    at = addresses()
    with ExitStack() as stack:
        orphans = _orphans(at, orphan_grace * 3600, stack)
        if dry_run:
            _run(orphans, delete=False, any_share=any_share)
        else:
            reason = f"orphans older than {orphan_grace:g} h"
            with audited(at.kafka, _ACTION, subject=at.objects, reason=reason) as outcome:
                _run(orphans, delete=True, any_share=any_share)
                outcome.update(deleted=orphans.report.deleted, deleted_bytes=orphans.report.deleted_bytes)
    found = orphans.report
    if output == "json":
        show_json({**asdict(found), "dry_run": dry_run})
        return
    say(f"{found.objects} objects, {found.size_bytes} bytes; {found.referenced} referred to, {found.young} too young")
    done = "would be deleted" if dry_run else "deleted"
    count, size = (found.orphans, found.orphan_bytes) if dry_run else (found.deleted, found.deleted_bytes)
    click.echo(f"{count} orphans {done}, {size} bytes")


def _run(orphans: Orphans, *, delete: bool, any_share: bool) -> None:
    from consumers.keeper.orphans import FOLDERS

    with progress_bar() as progress:
        for _ in orphans.steps(delete=delete, any_share=any_share):
            progress("looked through", orphans.report.folders, FOLDERS)
            if delete and orphans.report.folders == FOLDERS and orphans.report.orphans:
                progress("deleted", orphans.report.deleted, orphans.report.orphans)


def _orphans(at: Addresses, grace_s: float, stack: ExitStack) -> Orphans:
    from consumers.keeper.orphans import Orphans
    from consumers.keeper.places import Places
    from consumers.log_reader import LogReader
    from ops.archive import archive_of
    from ops.keeper_tables import KeeperTables
    from schemas.codec import Codec
    from schemas.objects import Objects
    from schemas.registry import Registry
    from schemas.topics import EVENTS

    tables = KeeperTables(at.postgres)
    stack.callback(tables.close)
    log = stack.enter_context(LogReader(at.kafka))
    places = Places(at.kafka, EVENTS, archive_of(at, log))
    stack.callback(places.close)
    codec = Codec(stack.enter_context(Registry(at.registry)))
    return Orphans(tables, places, codec, Objects(at.objects), grace_s=grace_s)
