"""`kintsugi replay list | show | drop`: what was replayed, and what is left of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ops.output import (
    CONFLICT,
    DENIED,
    FAILED,
    ID,
    NOT_FOUND,
    USAGE,
    NotFoundError,
    output_option,
    say,
    show,
    show_json,
)

if TYPE_CHECKING:
    from ops.replay_range import ReplayError

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_CODES = {
    "spec": USAGE,
    "inject": USAGE,
    "empty": USAGE,
    "reversed": USAGE,
    "topic": NOT_FOUND,
    "partition": NOT_FOUND,
    "unknown": NOT_FOUND,
    "beyond_end": CONFLICT,
    "missing": CONFLICT,
    "size": CONFLICT,
    "taken": CONFLICT,
    "too_old": DENIED,
    "grant": DENIED,
}


class RefusedError(click.ClickException):
    """A replay that cannot be made, as a command says it."""

    def __init__(self, error: ReplayError) -> None:
        super().__init__(f"{error}\n  try: {error.hint}" if error.hint else str(error))
        self.exit_code = _CODES.get(error.reason, FAILED)  # type: ignore[misc]


@click.command("list")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Sessions at most.")
@output_option
def list_(limit: int, output: str) -> None:
    """Debugging sessions, newest first, and the scratch schemas that are there."""
    from ops.replay_scratch import listed
    from ops.replay_session import sessions
    from ops.stack import addresses

    at = addresses()
    found, schemas = sessions(at.postgres, limit), listed(at.postgres)
    if output == "json":
        show_json({"sessions": found, "schemas": schemas})
        return
    rows = [{**row, **_shortly(row)} for row in found]
    columns = ("session", "status", "started_at", "seconds", "actor", "range", "workflow", "into", "kept")
    show(rows, output, columns=columns, empty="nobody has replayed anything yet")
    if schemas:
        click.echo("\nScratch schemas")
        show(schemas, output, columns=("name", "state", "size_bytes", "at", "actor", "session"))


@click.command("show")
@click.argument("session", type=ID)
@click.option("--ran-with", type=FILE, help="The policy that says where, where none was applied.")
def show_(session: str, ran_with: Path | None) -> None:
    """Write the document that a session kept to stdout, as it was. Exit 6 when it was changed since."""
    from consumers.log_reader import LogReader
    from ops.replay_kept import Kept
    from ops.replay_plan import in_force
    from ops.replay_session import session as of
    from ops.reveal import policy_of
    from ops.stack import addresses

    at = addresses()
    row = of(at.postgres, session)
    if row is None or not row["kept"]:
        raise NotFoundError(f"no document of session {session} was kept; kintsugi replay list")
    with LogReader(at.kafka) as log:
        policy = in_force(log, policy_of(ran_with), say)
    sys.stdout.buffer.write(Kept(policy.replay_mode.storage, at.objects).get(session, row["sha256"]))
    sys.stdout.buffer.flush()


@click.command()
@click.argument("name")
@click.option("--reason", required=True, help="Why; it goes to the audit topic with your name.")
def drop(name: str, reason: str) -> None:
    """Delete a scratch schema with its rows. Nothing else can be deleted by this."""
    from ops.audit import audited
    from ops.replay_range import ReplayError
    from ops.replay_scratch import drop as delete
    from ops.replay_scratch import schema_of
    from ops.stack import addresses

    at = addresses()
    try:
        schema = schema_of(name)
        with audited(at.kafka, "replay.drop", subject=schema, reason=reason):
            delete(at.postgres, schema)
    except ReplayError as error:
        raise RefusedError(error) from error
    say(f"{schema} is gone")


def _shortly(row: dict[str, Any]) -> dict[str, Any]:
    places = [f"{r['partition']}:{r['start']}-{r['end']}" for r in row["ranges"][:3]]
    more = len(row["ranges"]) - len(places)
    return {"range": " ".join([*places, *([f"and {more} more"] if more > 0 else [])])}
