"""`kintsugi state migrate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ops.output import MISMATCH, output_option, progress_bar, say, show, show_json

if TYPE_CHECKING:
    from schemas.migrations import DataCheck


@click.command()
@click.option("--dry-run", is_flag=True, help="Needed: only a restore migrates a state for good.")
@click.option("--type", "workflow_type", required=True, help="The workflow type.")
@click.option("--migrations", "name", required=True, metavar="MODULE:OBJECT", help="Where the service has them.")
@click.option("--to", "to_version", help="The service's new version; the one that the migrations lead to by default.")
@click.option("--schema", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Its JSON Schema.")
@output_option
def migrate(
    dry_run: bool, workflow_type: str, name: str, to_version: str | None, schema: Path | None, output: str
) -> None:
    """Try migrations over the states of all live workflows of a type, before their service is deployed.

    Of each workflow the newest verified checkpoint is read and proven as a restore would do it, and brought to the new
    version by the functions of MODULE:OBJECT (a Migrations or a WorkflowType; looked for in this folder first). Nothing
    is written. Exit 6 when any fails; each kind of failure is listed.
    """
    from ops.checkpoint_log import checkpoint_log
    from ops.stack import addresses
    from ops.state import live_checkpoints, load_migrations, try_migrations, version_to_reach

    if not dry_run:
        raise click.UsageError(
            "states are migrated by their service, when it restores one: each time, from the checkpoint as it was "
            "saved. Only --dry-run is there, to try that beforehand"
        )
    migrations, named = load_migrations(name)
    version = version_to_reach(migrations, to_version, named)
    at = addresses()
    workflows, rows = live_checkpoints(at.postgres, workflow_type)
    with checkpoint_log(at) as log, progress_bar() as progress:
        report = try_migrations(
            log,
            rows,
            workflows,
            migrations,
            version,
            check=_check_of(schema),
            tried=lambda done: progress("states", done, len(rows)),
        )
    if output == "json":
        show_json({**asdict(report), "failed": report.failed})
    else:
        show([asdict(v) for v in report.versions], output, empty=f"no live workflow of type {workflow_type!r} has one")
        if report.failures:
            show([asdict(f) for f in report.failures], output)
    say(f"{workflows} live workflows, {report.without} without a checkpoint; to version {version}")
    if report.failed:
        say(f"{report.failed} states would not be migrated")
        raise click.exceptions.Exit(MISMATCH)


def _check_of(schema: Path | None) -> DataCheck | None:
    if schema is None:
        return None
    from schemas.errors import ConfigError, StateError
    from schemas.state_schema import compiled, schema_text

    try:
        found = json.loads(schema.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ConfigError(f"{schema}: a JSON Schema is an object here")
        return compiled(schema_text(found)).validate
    except (ValueError, StateError) as error:
        raise ConfigError(f"{schema}: {error}") from error
