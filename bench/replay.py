"""Replay of recorded history: events per second of what `kintsugi replay` runs, from the bytes of an archive on."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka import Message

from consumers.history import History
from consumers.log_reader import LogReader, Ranges
from consumers.policies import Applied
from engine.inspection import Inspector
from engine.policy import default_policy
from ops.hidden import Hidden
from ops.replay import Plan, Replay
from ops.replay_range import Range, Resolver
from ops.replay_shown import Shown
from schemas.archive import Archive
from schemas.archive_format import FileBuilder
from schemas.codec import Codec
from schemas.log_record import LogRecord, encode
from schemas.objects import Objects
from schemas.topics import EVENTS

from .figures import Benchmark, Figure, Setup, median
from .workload import history

WORKFLOWS, WORKFLOWS_QUICK = 3_000, 150
REPEATS, REPEATS_QUICK = 5, 2
#: As the archiver writes them: a file is full at 16 MiB, which is about so many records of this workload.
FILE_RECORDS = 20_000
_GOAL_EVENTS_PER_S = 20_000
_TIMEOUT_S = 600.0
_CLUSTER = "bench"
_processes = multiprocessing.get_context("spawn")


class Taken(NamedTuple):
    """What a replay took."""

    seconds: float
    cpu_s: float


def _measure(setup: Setup) -> list[Figure]:
    count = _archived(setup.folder, WORKFLOWS_QUICK if setup.quick else WORKFLOWS)
    repeats = REPEATS_QUICK if setup.quick else REPEATS
    taken: dict[str, list[Taken]] = {"recorded": [], "own": [], "read": []}
    for number in range(repeats):
        setup.say(f"replay {count:,} events, each way: {number + 1} of {repeats}")
        for way, found in taken.items():
            found.append(_in_child(setup.folder, way, count))
    rates = {way: count / median([t.seconds for t in found]) for way, found in taken.items()}
    cpu_us = 1e6 * median([t.cpu_s for t in taken["recorded"]]) / count
    return [
        Figure(
            name="replay",
            measured=rates["recorded"],
            unit="events/s",
            at_least=_GOAL_EVENTS_PER_S,
            note=f"{count:,} events from the archive, median of {repeats}; every decision as recorded",
        ),
        Figure(name="replay, the engine's own facts", measured=rates["own"], unit="events/s", note="--facts own"),
        Figure(name="reading alone", measured=rates["read"], unit="events/s", note="the same files, nothing done"),
        Figure(name="replay, CPU", measured=cpu_us, unit="us/event"),
    ]


def _archived(folder: Path, workflows: int) -> int:
    """The workload as the archiver would have kept it; how many records."""
    archive, codec, log = _archive(folder), Codec(), history(workflows)
    for first in range(0, len(log), FILE_RECORDS):
        builder = FileBuilder(_CLUSTER, EVENTS, 0, first)
        for event in log[first : first + FILE_RECORDS]:
            key, value = event.record.workflow_id.encode(), codec.encode(event.record)
            record = LogRecord(0, event.offset, event.timestamp_us // 1000, 2, key, value, ())
            builder.add(record, encode(record))
        if archive.put(builder) is None:
            raise RuntimeError("a file of the archive was not written")
    return len(log)


def _archive(folder: Path) -> Archive:
    return Archive(Objects(folder.as_uri()), cluster=_CLUSTER, topic=EVENTS)


class _Emptied(LogReader):
    """The log after retention took everything."""

    def __init__(self, end: int) -> None:
        self._end = end

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        return {0: (self._end, self._end)}

    def read(self, topic: str, ranges: Ranges) -> Iterator[Message]:
        return iter(())


def _in_child(folder: Path, way: str, count: int) -> Taken:
    """In a process of its own, as the command does it."""
    ours, theirs = _processes.Pipe()
    child = _processes.Process(target=_timed, args=(folder, way, count, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        if not ours.poll(_TIMEOUT_S):
            raise RuntimeError(f"not replayed within {_TIMEOUT_S:.0f} s")
        seconds, cpu_s, wrong = ours.recv()
    except EOFError:
        raise RuntimeError("the replaying process ended without an answer") from None
    finally:
        child.kill()
        child.join()
    if wrong:
        raise RuntimeError(f"what was replayed is not what was recorded: {wrong}")
    return Taken(seconds, cpu_s)


def _timed(folder: Path, way: str, count: int, answer: Connection) -> None:
    archive = _archive(folder)
    past = History(_Emptied(count), EVENTS, archive)
    [range_], _ = Resolver(past, archive).ranges([], [], cold=False, accept_gap=False)
    gc.collect()
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    wrong = _read(past, range_) if way == "read" else _replayed(past, range_, way)
    answer.send((time.perf_counter() - began_s, time.process_time() - began_cpu_s, wrong))


def _read(past: History, range_: Range) -> Any:
    read = sum(1 for _ in past.read({0: (range_.start, range_.end)}))
    return None if read == range_.end else f"{read} records"


def _replayed(past: History, range_: Range, facts: str) -> Any:
    policy = default_policy()
    document = Replay(
        Plan(ranges=(range_,), facts=facts),
        [],
        history=past,
        codec=Codec(),
        applied=Applied([]),
        ran_with=policy,
        policy=None,
        inspector=Inspector(verify=policy.corruption.verify_on_arrival),
        shown=Shown(Hidden({}), (), policy.state_inspection.state_size_bytes_max),
    ).run(lambda *_: None)
    whole = document["records"] == range_.end and not document["set_aside"] and document["decisions"]
    return None if whole and set(document["verdicts"]) == {"same"} else document["verdicts"]


BENCHMARK = Benchmark(
    name="replay",
    measures="events per second of a replay: read, decode, verify, fold, decide, compare, fold into rows of all tables",
    compared_to="reading the same files of the archive alone",
    run=_measure,
    needs_stack=False,
)
