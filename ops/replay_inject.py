"""What a replay changes in the records it is given: `--inject`. Pure, and repeatable by its seed.

drop@0:1210                       the record is not there
duplicate@0:1210                  it comes again right behind itself
delay@0:1210,records=5            it comes so many records of its partition later
corrupt@0:1210                    one bit of its value is turned over
replace@0:1210,error_code=TIMEOUT fields of the record are others
fail@COMMAND_ID, fail@RetryStep   the service answers a command, or all of a type, with a failure
kill@0:1210                       the engine dies after folding it, before anything was written, and starts again
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from schemas.admission import admit
from schemas.codec import Codec, Unknown
from schemas.errors import KintsugiError, PoisonError
from schemas.ids import derive_id
from schemas.log_record import LogRecord
from schemas.records import COMMAND_TYPES, Command
from schemas.records.events import CommandAcknowledged

from .replay_range import Range, ReplayError

#: Injections of one replay: more is another history.
INJECTIONS_MAX = 100
DELAY_RECORDS_MAX = 100_000
PRODUCER = "kintsugi-replay"
_SPEC = re.compile(r"(?P<kind>[a-z]+)@(?P<target>[^,]+)(?:,(?P<options>.*))?", re.DOTALL)
_AT = re.compile(r"(\d{1,9}):(\d{1,18})")
_COUNT = re.compile(r"\d{1,6}")
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_OPTIONS: dict[str, frozenset[str] | None] = {
    "drop": frozenset(),
    "duplicate": frozenset(),
    "delay": frozenset({"records"}),
    "corrupt": frozenset(),
    "replace": None,  # the record's fields
    "fail": frozenset({"detail"}),
    "kill": frozenset(),
}
_FORMS = "kinds are drop, duplicate, delay, corrupt, replace, fail and kill; drop@0:1210 drops that record"


@dataclass(slots=True, kw_only=True)
class Injection:
    """One change. `applied` counts how often it was made."""

    text: str
    kind: str
    place: tuple[int, int] | None
    target: str
    options: dict[str, str] = field(default_factory=dict)
    applied: int = 0


@dataclass(frozen=True, slots=True)
class Item:
    """A record of the range; `moved` when it is not what stands at its place in the log."""

    record: LogRecord
    moved: bool = False


def parse(text: str) -> Injection:
    """One `--inject`. ReplayError "inject" says what is wrong with it."""
    match = _SPEC.fullmatch(text)
    if match is None or match["kind"] not in _OPTIONS:
        raise ReplayError("inject", f"{text!r:.100} is no injection", hint=_FORMS)
    kind, target = match["kind"], match["target"]
    options: dict[str, str] = {}
    for part in (match["options"] or "").split(",") if match["options"] else ():
        name, sign, value = part.partition("=")
        if not sign or not name:
            raise ReplayError("inject", f"{text!r:.100}: {part!r:.40} is not name=value", hint=_FORMS)
        options[name] = value
    allowed = _OPTIONS[kind]
    unknown = sorted(set(options) - allowed) if allowed is not None else []
    if unknown:
        raise ReplayError("inject", f"{text!r:.100}: {kind} knows no {unknown[0]!r:.40}", hint=_FORMS)
    at = _AT.fullmatch(target)
    if kind == "fail":
        if _ID.fullmatch(target) is None and target not in COMMAND_TYPES:
            names = ", ".join(sorted(COMMAND_TYPES))
            raise ReplayError(
                "inject", f"{text!r:.100} names no command", hint=f"fail@ID of a command, or one of {names}"
            )
    elif at is None:
        raise ReplayError("inject", f"{text!r:.100}: {target!r:.40} is no PARTITION:OFFSET", hint=_FORMS)
    if kind == "delay" and not (
        _COUNT.fullmatch(options.get("records", "")) and 1 <= int(options["records"]) <= DELAY_RECORDS_MAX
    ):
        raise ReplayError("inject", f"{text!r:.100}: by how many records?", hint="delay@0:1210,records=5")
    if kind == "replace" and not options:
        raise ReplayError("inject", f"{text!r:.100}: which field?", hint="replace@0:1210,error_code=TIMEOUT")
    place = None if at is None or kind == "fail" else (int(at[1]), int(at[2]))
    return Injection(text=text, kind=kind, place=place, target=target, options=options)


def parse_all(texts: Sequence[str]) -> list[Injection]:
    """All of a command line."""
    if len(texts) > INJECTIONS_MAX:
        raise ReplayError("inject", f"{len(texts)} injections, {INJECTIONS_MAX} allowed")
    return [parse(text) for text in texts]


def check(injections: Sequence[Injection], ranges: Sequence[Range]) -> None:
    """ReplayError for an injection whose place is not in the range."""
    for injection in injections:
        if injection.place is None:
            continue
        partition, offset = injection.place
        if not any(r.partition == partition and r.start <= offset < r.end for r in ranges):
            raise ReplayError(
                "inject", f"{injection.text}: {injection.target} is outside the range", hint="extend --from and --to"
            )


def inject(records: Sequence[LogRecord], injections: Sequence[Injection], codec: Codec, seed: int) -> list[Item]:
    """The records of one partition, changed. ReplayError where the range holds no record at a place."""
    items = [Item(record) for record in records]
    for injection in injections:
        if injection.place is None or injection.kind == "kill":
            continue
        partition, offset = injection.place
        if not records or records[0].partition != partition:
            continue
        number = next((n for n, i in enumerate(items) if i.record.offset == offset), -1)
        if number < 0:
            raise ReplayError("inject", f"{injection.text}: there is no record at {injection.target}")
        injection.applied += 1
        if injection.kind == "drop":
            del items[number]
        elif injection.kind == "duplicate":
            items.insert(number + 1, Item(items[number].record, True))
        elif injection.kind == "delay":
            item = items.pop(number)
            items.insert(number + int(injection.options["records"]), Item(item.record, True))
        elif injection.kind == "corrupt":
            items[number] = Item(_corrupted(items[number].record, seed), True)
        else:
            items[number] = Item(_replaced(items[number].record, injection, codec), True)
    return items


def _corrupted(record: LogRecord, seed: int) -> LogRecord:
    """One bit behind the schema's id is turned over; which one is drawn from the seed and the place."""
    value = bytearray(record.value or b"")
    if not value:
        return record
    draw = random.Random(f"{seed}|{record.partition}|{record.offset}")
    first = min(10 if value[:2] == b"\xc3\x01" else 5, len(value) - 1)
    value[draw.randrange(first, len(value))] ^= 1 << draw.randrange(8)
    return replace(record, value=bytes(value))


def _replaced(record: LogRecord, injection: Injection, codec: Codec) -> LogRecord:
    try:
        found = admit(codec, record.key, record.value)
        if isinstance(found, Unknown):
            raise ReplayError("inject", f"{injection.text}: {found.name} is unknown to this version")
        known = set(type(found).__dataclass_fields__)
        for name in injection.options:
            if name not in known:
                fields = ", ".join(sorted(known))
                raise ReplayError("inject", f"{injection.text}: {type(found).__name__} has no {name}", hint=fields)
        values: dict[str, Any] = {n: _value(v, getattr(found, n)) for n, v in injection.options.items()}
        changed = replace(found, **values)
        value = Codec().encode(changed)
        admit(codec, record.key, value)
    except PoisonError as error:
        raise ReplayError("inject", f"{injection.text}: the record cannot be read: {error}") from error
    except (ValueError, TypeError, AttributeError) as error:  # of the encoder, which is generated
        if isinstance(error, KintsugiError):
            raise
        raise ReplayError("inject", f"{injection.text}: the schema does not allow it: {error}"[:500]) from error
    return replace(record, value=value)


def _value(text: str, before: object) -> object:
    """Text stays text where the field held text; else it is JSON."""
    if isinstance(before, str):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def failure_of(command: Command, detail: str) -> CommandAcknowledged:
    """The service's answer to a command that a replay lets fail."""
    return CommandAcknowledged(
        event_id=derive_id(command.command_id, "replay|failed"),
        workflow_id=command.workflow_id,
        workflow_type=command.workflow_type,
        correlation_id=command.correlation_id,
        causation_id=command.event_id,
        occurred_at=command.occurred_at,
        producer=PRODUCER,
        command_id=command.command_id,
        error_id=command.error_id,
        attempt_number=command.attempt_number,
        status="failed",
        detail=detail or "failed by --inject",
    )
