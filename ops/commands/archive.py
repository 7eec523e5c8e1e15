"""`kintsugi archive status | list | cat | verify`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ops.output import MISMATCH, output_option, progress_bar, say, show, show_json

if TYPE_CHECKING:
    from ops.archive import Report
    from schemas.log_record import LogRecord

#: Records printed by `cat` when no end is given.
_CAT_RECORDS = 20
_PARTITION = click.option("--partition", type=click.IntRange(0), required=True, help="Which one.")


@click.group()
def archive() -> None:
    """Show, check and read the archive of the log."""


@archive.command()
@output_option
def status(output: str) -> None:
    """How far each partition is archived, and what that takes."""
    from ops import archive as archives
    from ops.stack import addresses

    rows = archives.status(addresses())
    show([{k: _time(v) if k == "last_record" else v for k, v in row.items()} for row in rows], output)
    total = {name: sum(row[name] for row in rows) for name in ("lag_records", "lost_records", "files", "bytes")}
    say(f"{total['files']} files, {total['bytes']} bytes; {total['lag_records']} records not archived yet")
    if total["lost_records"]:
        say(f"{total['lost_records']} records are neither archived nor in the log any more")


@archive.command("list")
@_PARTITION
@output_option
def list_(partition: int, output: str) -> None:
    """The files of a partition, from their headers."""
    from ops import archive as archives
    from ops.stack import addresses

    rows = [
        {
            "first": info.first,
            "next": info.next,
            "records": info.records,
            "bytes": size_bytes,
            "from": _time(info.first_timestamp_ms),
            "to": _time(info.last_timestamp_ms),
            "gap": info.gap_reason,
        }
        for info, size_bytes in archives.files(addresses(), partition)
    ]
    show(rows, output, empty="nothing is archived")


@archive.command()
@_PARTITION
@click.option("--from", "start", type=click.IntRange(0), required=True, help="First offset.")
@click.option("--to", "end", type=click.IntRange(1), help="Offset after the last; default: 20 records.")
def cat(partition: int, start: int, end: int | None) -> None:
    """Archived records as JSON lines; bytes as base64. States are in them: mind where the output goes."""
    import orjson

    from ops import archive as archives
    from ops.stack import addresses

    limit = start + _CAT_RECORDS if end is None else end
    for record in archives.records(addresses(), partition, start, limit):
        click.echo(orjson.dumps(_plain(record)).decode())


@archive.command()
@click.option("--allow-gaps", is_flag=True, help="Recorded gaps are listed, and are no difference.")
@output_option
def verify(allow_gaps: bool, output: str) -> None:
    """Prove that the archive is whole and equal to the log.

    Every file: header, digest, offsets in order, the next one begins where it ends. Every record that the log still
    holds is equal to it in each byte, headers and times included. Exit 6 when anything differs or a gap is recorded;
    what the log had lost before archiving began is only listed.
    """
    from ops.archive import verify as check
    from ops.stack import addresses

    with progress_bar() as progress:
        report = check(addresses(), progress, allow_gaps=allow_gaps)
    if output == "json":
        show_json({**asdict(report), "sound": report.sound})
    else:
        for found in (report.known_gaps, report.findings):
            if found:
                show([asdict(f) for f in found], output)
    _conclude(report)


def _conclude(report: Report) -> None:
    say(
        f"{report.files} files, {report.records} records, {report.bytes} bytes; "
        f"{report.compared} records compared with the log"
    )
    if report.empty_offsets:
        say(f"{report.empty_offsets} offsets without a record, as in the log when they were archived")
    if report.known_gaps:
        say(f"{len(report.known_gaps)} gaps are known: the log had lost these records before they could be archived")
    if not report.sound:
        for what, count in sorted(report.counts.items()):
            say(f"  {what}: {count}")
        say("the archive is not what it should be")
        raise click.exceptions.Exit(MISMATCH)
    say("the archive is whole and equal to the log")


def _plain(record: LogRecord) -> dict[str, Any]:
    from base64 import b64encode

    def text(data: bytes | None) -> str | None:
        return None if data is None else b64encode(data).decode()

    return {
        "partition": record.partition,
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
        "timestamp_type": record.timestamp_type,
        "key": text(record.key),
        "value": text(record.value),
        "headers": [[key, text(value)] for key, value in record.headers],
    }


def _time(timestamp_ms: int | None) -> Any:
    from datetime import UTC, datetime

    return None if timestamp_ms is None else datetime.fromtimestamp(timestamp_ms / 1000, UTC)
