"""Error published -> command received, with the recovery role as a process of its own on the real stack."""

from __future__ import annotations

import time
import uuid
from typing import NamedTuple

import psutil

from schemas.codec import Codec
from schemas.registry import Registry
from schemas.topics import COMMANDS, EVENTS

from .errors import Failing, commands_of, failing
from .figures import Benchmark, Figure, Latencies, Setup
from .processes import LEAD_S, Publisher, Ready, Receiver, Role, stand_at_end, write

#: The rate of the goal, and a calm one, whose latency is that of the path itself.
ERRORS_PER_S = 1_000
CALM_PER_S = 100
#: The broker compiles its hot paths while it warms up.
_WARM_S = 6.0
_SECONDS, _SECONDS_QUICK = 15.0, 1.5
_ANSWER_S = 20.0
#: Records sent before the clock runs: some for every partition.
_FIRST = 50


def _measure(setup: Setup) -> list[Figure]:
    at, seconds = setup.stack, _SECONDS_QUICK if setup.quick else _SECONDS
    with Registry(at.registry) as registry:
        codec = Codec(registry)
        setup.say("one hop through the broker, without the engine")
        hop = _hop(setup, codec, seconds=min(seconds, 5.0))
        group = f"bench-{uuid.uuid4()}"
        stand_at_end(at.kafka, group)
        role = Role(at, setup.folder, "recovery", group=group)
        try:
            role.wait("partitions", Role.caught_up)
            _run(setup, codec, role, per_second=ERRORS_PER_S, seconds=min(seconds, _WARM_S))
            busy = _run(setup, codec, role, per_second=ERRORS_PER_S, seconds=seconds)
            calm = _run(setup, codec, role, per_second=CALM_PER_S, seconds=seconds)
        finally:
            role.end()
    name = f"error -> command, {ERRORS_PER_S:,}/s"
    return [
        *busy.answers.figures(name, p50_ms_max=5.0, p99_ms_max=25.0),
        *calm.answers.figures(f"error -> command, {CALM_PER_S}/s"),
        *hop.figures(f"one hop, {ERRORS_PER_S:,}/s", note="produce -> consume; an error takes three"),
        Figure(name="publisher late p99", measured=busy.late.ms(0.99), unit="ms", note="part of the latencies above"),
        Figure(name="recovery role, CPU per error", measured=busy.role_us, unit="us", note=f"at {ERRORS_PER_S:,}/s"),
        Figure(
            name="whole machine busy", measured=busy.machine_percent, unit="%", note=f"all cores, at {ERRORS_PER_S:,}/s"
        ),
    ]


class Run(NamedTuple):
    """One stretch at a fixed rate: latencies from when an error was to be published, how late it was, and CPU used."""

    answers: Latencies
    late: Latencies
    role_us: float
    machine_percent: float


def _run(setup: Setup, codec: Codec, role: Role, *, per_second: int, seconds: float) -> Run:
    count = int(per_second * seconds)
    setup.say(f"{count:,} errors at {per_second:,}/s")
    cases = [failing(codec) for _ in range(count)]
    at = setup.stack
    _write_and_wait(at.kafka, role, [record for case in cases for record in case.before])
    timeout_s = LEAD_S + seconds + _ANSWER_S
    receiver = Receiver(at.kafka, COMMANDS, keys=[case.error.key for case in cases], timeout_s=timeout_s)
    errors = [case.error for case in cases]
    # Their starts once more: a start that comes twice changes nothing.
    publisher = Publisher(at.kafka, errors, per_second=per_second, first=[case.before[0] for case in cases[:_FIRST]])
    time.sleep(max(0.0, publisher.begin_s - time.monotonic()))
    role_s = role.cpu_s()
    psutil.cpu_percent()
    published = publisher.result(timeout_s)
    machine_percent, role_s = psutil.cpu_percent(), role.cpu_s() - role_s
    answered = {command.error_id: item.at_s for item, command in commands_of(codec, receiver.result())}
    _write_and_wait(at.kafka, role, [case.after for case in cases])
    missing = sum(case.error_id not in answered for case in cases)
    if missing:
        raise RuntimeError(f"{missing} of {count} errors were not answered")
    latencies = [answered[case.error_id] - sent.due_s for case, sent in zip(cases, published, strict=True)]
    late = Latencies([sent.late_s for sent in published])
    return Run(Latencies(latencies), late, 1e6 * role_s / count, machine_percent)


def _write_and_wait(servers: str, role: Role, records: list[Ready]) -> None:
    processed = role.processed() + len(records)
    write(servers, records)
    role.wait("end of the log", lambda role: role.processed() >= processed)


def _hop(setup: Setup, codec: Codec, *, seconds: float) -> Latencies:
    """The same errors at the same rate, only read back: nobody acts on them, their workflows never started."""
    at, count = setup.stack, int(ERRORS_PER_S * seconds)
    cases: list[Failing] = [failing(codec) for _ in range(count + _FIRST)]
    cases, first = cases[:count], [case.error for case in cases[count:]]
    timeout_s = LEAD_S + seconds + _ANSWER_S
    receiver = Receiver(at.kafka, EVENTS, keys=[case.error.key for case in cases], timeout_s=timeout_s)
    publisher = Publisher(at.kafka, [case.error for case in cases], per_second=ERRORS_PER_S, first=first)
    published = publisher.result(timeout_s)
    arrived = {item.value: item.at_s for item in receiver.result()}
    pairs = zip(cases, published, strict=True)
    return Latencies([arrived[case.error.value] - sent.due_s for case, sent in pairs if case.error.value in arrived])


BENCHMARK = Benchmark(
    name="latency",
    measures="error published -> command received, open loop at a fixed schedule, recovery as its own process",
    compared_to="one hop through the broker at the same rate in the same run; an error takes three",
    run=_measure,
)
