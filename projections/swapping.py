"""A generation takes the place of the live tables, or of some of them, in one transaction that moves tables alone.

Live writers begin each transaction with a shared lock (`store.GATE`); who promotes takes it whole, so nobody holds half
of a batch meanwhile, and both sides stand at one place of the log. Where some tables alone change places, the foreign
keys between them and the others are made anew; the rows of these are looked at after the transaction (`validate`).
"""

from __future__ import annotations

from psycopg import sql

from schemas.topics import EVENTS

from .generations import NAMES, QUERIES, Connection, Generation, GenerationError
from .kit import TABLES_VERSION
from .references import bridges, empty
from .store import GATE, GENERATION

#: How long a promotion waits for readers of the tables before it lets those behind it pass, and tries again.
SWAP_LOCK_TIMEOUT_MS = 500
_GATE_TIMEOUT_MS = 5_000


def close_gate(connection: Connection) -> None:
    """Wait for live batches at work, and hold those to come, until the transaction ends."""
    connection.execute(f"SET LOCAL lock_timeout = {_GATE_TIMEOUT_MS}".encode())
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [GATE])


def swap(connection: Connection, one: Generation, *, actor: str, reason: str) -> str:
    """Within a transaction that holds the gate: the generation's tables become the live ones, these a retired
    generation, whose name is returned. LockNotAvailable when a reader holds them, GenerationError when what waits, or
    the place in the log, is not the same on both sides."""
    connection.execute(f"SET LOCAL lock_timeout = {SWAP_LOCK_TIMEOUT_MS}".encode())
    place = {"name": one.name, "topic": EVENTS}
    if connection.execute(QUERIES["parked_differently"], place).fetchone() is not None:
        raise GenerationError(
            f"other events wait in {one.name} than in the live tables", hint=f"drop {one.name}, and rebuild"
        )
    new = {"state": "retired", "tables": one.tables, "version": TABLES_VERSION, "built_by": None}
    row = connection.execute(QUERIES["new"], {**new, "actor": actor, "reason": reason}).fetchone()
    assert row is not None
    retired = str(row[0])
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(retired)))
    _move(connection, one, retired)
    connection.execute(sql.SQL("DROP SCHEMA {}").format(sql.Identifier(one.name)))
    if one.tables is None:
        _change_places(connection, one.name, retired)
    else:
        _keep_places(connection, one.name, retired)
    connection.execute(QUERIES["state"], {"name": one.name, "state": "promoted", "differing": None})
    return retired


def outcome(connection: Connection, name: str) -> str | None:
    """As `swap` returned it, when its transaction was committed: for who has lost the answer."""
    row = connection.execute(QUERIES["swapped"], {"name": name}).fetchone()
    return None if row is None else str(row[0])


def _move(connection: Connection, one: Generation, retired: str) -> None:
    names = one.names
    between = bridges(connection, names, NAMES)
    empty(connection, between, names, one.name)
    grants = connection.execute(QUERIES["grants"], {"tables": names}).fetchall()
    owners = connection.execute(QUERIES["owners"], {"tables": names}).fetchall()
    neighbours = sorted({name for key in between for name in (key.table, key.target)} - set(names))
    locked = [sql.Identifier(GENERATION, name) for name in [*names, *neighbours]]
    locked += [sql.Identifier(one.name, name) for name in names]
    connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.SQL(", ").join(locked)))
    for key in between:
        connection.execute(key.dropped(GENERATION))
    move = sql.SQL("ALTER TABLE {} SET SCHEMA {}")
    for source, target in ((GENERATION, retired), (one.name, GENERATION)):
        for table in names:
            connection.execute(move.format(sql.Identifier(source, table), sql.Identifier(target)))
    for key in between:
        connection.execute(key.made(GENERATION, valid=False))
    for table, right, role in grants:
        grantee = sql.SQL("PUBLIC") if role is None else sql.Identifier(role)
        connection.execute(
            sql.SQL("GRANT {} ON {} TO {}").format(sql.SQL(right), sql.Identifier(GENERATION, table), grantee)
        )
    for table, owner in owners:  # who writes the live tables goes on, whoever rebuilt them
        connection.execute(
            sql.SQL("ALTER TABLE {} OWNER TO {}").format(sql.Identifier(GENERATION, table), sql.Identifier(owner))
        )


def _change_places(connection: Connection, name: str, retired: str) -> None:
    """All tables moved: what belongs to a generation by its name goes with them."""
    place = {"name": name, "retired": retired, "topic": EVENTS}
    for step in ("positions", "beginnings", "redactions"):
        connection.execute(QUERIES[f"kept_{step}"], place)
        connection.execute(QUERIES[f"live_{step}"], place)
    for step in ("parked_workflows", "parked_events"):
        connection.execute(QUERIES[f"kept_{step}"], place)
    connection.execute(QUERIES["forget_positions"], place)


def _keep_places(connection: Connection, name: str, retired: str) -> None:
    """Some tables moved: what belongs to the live tables stays, and is so for the retired ones, too."""
    place = {"name": name, "retired": retired, "topic": EVENTS}
    elsewhere = [partition for (partition,) in connection.execute(QUERIES["stand_elsewhere"], place).fetchall()]
    if elsewhere:
        raise GenerationError(f"{name} stands elsewhere than the live tables in partitions {elsewhere}")
    for step in ("kept_positions", "copied_beginnings", "copied_redactions"):
        connection.execute(QUERIES[step], place)
    for step in ("parked_workflows", "parked_events"):
        connection.execute(QUERIES[f"kept_{step}"], place)
    for step in ("positions", "beginnings", "redactions"):
        connection.execute(QUERIES[f"forget_{step}"], place)
    connection.execute(QUERIES["fence"], place)
