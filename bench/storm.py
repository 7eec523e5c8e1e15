"""A storm: what becomes of the workflows that fail on one target, and of those that have nothing to do with it."""

from __future__ import annotations

import time
import uuid
from collections import Counter

from consumers.log_reader import LogReader, record_of
from engine.policy import default_policy
from engine.testing import START_US
from engine.testing_storm import Storm
from schemas.codec import Codec
from schemas.records.events import BreakerChanged, IncidentChanged, RepairHeld
from schemas.registry import Registry
from schemas.topics import COMMANDS, COORDINATION, EVENTS

from .errors import Failing, commands_of, failing
from .figures import Benchmark, Figure, Latencies, Setup
from .processes import LEAD_S, Published, Publisher, Ready, Receiver, Role, stand_at_end, write

#: Simulated: so many workflows fail within ten seconds on a target that bears twice as many.
WORKFLOWS, WORKFLOWS_QUICK = 10_000, 500
_FAIL_S, _DOWN_S = 10, 90
_HEAL_S_MAX = 900

#: On the real stack: so many errors in one second, beside workflows that fail at a calm rate, each on its own.
ERRORS, ERRORS_QUICK = 10_000, 300
UNRELATED_PER_S = 100
_SECONDS, _SECONDS_QUICK = 12.0, 4.0
#: The storm begins when the calm rate has gone on for so long.
_BEFORE_S = 2.0
_ANSWER_S = 60.0
_FIRST = 50
_RATIO_MAX = 2.0


def _measure(setup: Setup) -> list[Figure]:
    return [*_simulated(setup), *_real(setup)]


def _simulated(setup: Setup) -> list[Figure]:
    workflows = WORKFLOWS_QUICK if setup.quick else WORKFLOWS
    setup.say(f"{workflows:,} workflows fail in {_FAIL_S} s, simulated on the real engine")
    policy = default_policy()
    began_s = time.perf_counter()
    storm = Storm(policy, workflows=workflows, seconds=_FAIL_S, capacity_per_s=2 * workflows // _FAIL_S)
    storm.fleet.run(_DOWN_S)
    storm.target.heal()
    took_s = storm.settle(_HEAL_S_MAX)
    storm.fleet.run(2 * policy.storms.quiet_ms / 1000)
    per_s = storm.fleet.folded / (time.perf_counter() - began_s)
    incidents = storm.fleet.told(IncidentChanged)
    sent = Counter((at_us - START_US) // 1_000_000 for c in storm.callers for at_us, _ in c.commands)
    down = [count for second, count in sent.items() if _FAIL_S < second < _DOWN_S]
    return [
        Figure(name="workflows not recovered", measured=storm.waiting, unit="workflows", at_most=0),
        Figure(name="second collapses of the target", measured=storm.target.collapses, unit="times", at_most=0),
        Figure(name="incidents", measured=len({i.incident_id for i in incidents}), unit="incidents", at_most=1),
        Figure(name="pages", measured=_pages(incidents), unit="pages", at_most=1),
        Figure(name="records of the incident", measured=len(incidents), unit="records"),
        Figure(
            name="commands in a second while it is down, most",
            measured=max(down, default=0),
            unit="commands",
            at_most=policy.storms.canaries,
            note=f"{sum(down)} in {_DOWN_S - _FAIL_S} s",
        ),
        Figure(
            name="commands in a second after it healed, most",
            measured=max((count for second, count in sent.items() if second >= _DOWN_S), default=0),
            unit="commands",
            at_most=storm.target.capacity_per_s,
        ),
        Figure(name="healed -> all recovered", measured=took_s, unit="s", note="simulated time"),
        Figure(name="simulated", measured=per_s, unit="records/s", note="engines of 8 partitions and the coordinator"),
    ]


def _pages(incidents: list[IncidentChanged]) -> int:
    """How often people are told: when `page` is set first, and at escalations."""
    paged = {i.incident_id for i in incidents if i.page}
    return len(paged) + sum(i.reason == "escalated" for i in incidents)


def _real(setup: Setup) -> list[Figure]:
    at = setup.stack
    seconds = _SECONDS_QUICK if setup.quick else _SECONDS
    errors = ERRORS_QUICK if setup.quick else ERRORS
    with Registry(at.registry) as registry:
        hop = _hop(setup, Codec(registry), seconds=seconds, errors=errors)
    group = f"bench-{uuid.uuid4()}"
    stand_at_end(at.kafka, group)
    stand_at_end(at.kafka, f"{group}-coordinator", COORDINATION)
    roles = [Role(at, setup.folder, "recovery", group=group)]
    try:
        roles.append(Role(at, setup.folder, "coordinator", group=f"{group}-coordinator"))
        for role in roles:
            role.wait("partitions", Role.caught_up)
        with Registry(at.registry) as registry:
            codec = Codec(registry)
            _run(setup, codec, roles[0], seconds=_SECONDS_QUICK, errors=0)  # the broker warms up
            quiet, _ = _run(setup, codec, roles[0], seconds=seconds, errors=0)
            stormy, held = _run(setup, codec, roles[0], seconds=seconds, errors=errors)
    finally:
        for role in roles:
            role.end()
    ratio = stormy.ms(0.99) / quiet.ms(0.99)
    name = "unrelated error -> command"
    return [
        *quiet.figures(f"{name}, quiet"),
        *stormy.figures(f"{name}, {errors:,} errors in a second beside it"),
        *hop.figures(
            f"one hop, {errors:,} errors in a second beside it",
            note="produce -> consume without the engine; an error takes three",
        ),
        Figure(name=f"{name}, p99 to that when it is quiet", measured=ratio, unit="x", at_most=_RATIO_MAX),
        Figure(name="repairs of the storm that were held", measured=held, unit="repairs", note=f"of {errors:,}"),
    ]


def _hop(setup: Setup, codec: Codec, *, seconds: float, errors: int) -> Latencies:
    """What broker and machine take of it: the same errors, only read back, from the moment the storm begins."""
    at, count = setup.stack, int(UNRELATED_PER_S * seconds)
    setup.say(f"one hop through the broker, without the engine, {errors:,} errors in one second beside it")
    first, calm, storm = ([failing(codec).error for _ in range(number)] for number in (_FIRST, count, errors))
    timeout_s = LEAD_S + seconds + _ANSWER_S
    receiver = Receiver(at.kafka, EVENTS, keys=[error.key for error in calm], timeout_s=timeout_s)
    published, begin_s = _publish(at.kafka, calm, storm, first, timeout_s)
    arrived = {item.value: item.at_s for item in receiver.result()}
    pairs = zip(calm, published, strict=True)
    return Latencies([arrived[error.value] - sent.due_s for error, sent in pairs if sent.due_s >= begin_s])


def _publish(
    kafka: str, calm: list[Ready], storm: list[Ready], first: list[Ready], timeout_s: float
) -> tuple[list[Published], float]:
    """Send the one at the calm rate, and after a while the other within a second; when that was, else the beginning."""
    publisher = Publisher(kafka, calm, per_second=UNRELATED_PER_S, first=first)
    begin_s = publisher.begin_s
    if storm:
        time.sleep(max(0.0, begin_s + _BEFORE_S - LEAD_S - time.monotonic()))
        storming = Publisher(kafka, storm, per_second=len(storm), first=first)
        begin_s = storming.begin_s
        storming.result(timeout_s)
    return publisher.result(timeout_s), begin_s


def _run(setup: Setup, codec: Codec, role: Role, *, seconds: float, errors: int) -> tuple[Latencies, int]:
    """Latencies of unrelated errors from the moment a storm begins, if there is one; and how many repairs were held."""
    at, count = setup.stack, int(UNRELATED_PER_S * seconds)
    setup.say(
        f"{count:,} unrelated errors at {UNRELATED_PER_S}/s" + (f", and {errors:,} in one second" if errors else "")
    )
    target = f"target {uuid.uuid4()}"
    calm = [failing(codec, f"system {uuid.uuid4()}") for _ in range(count)]
    storm = [failing(codec, target) for _ in range(errors)]
    before = [record for case in (*calm, *storm) for record in case.before]
    processed = role.processed() + len(before)
    write(at.kafka, before)
    role.wait("end of the log", lambda role: role.processed() >= processed)
    timeout_s = LEAD_S + seconds + _ANSWER_S
    receiver = Receiver(at.kafka, COMMANDS, keys=[case.error.key for case in calm], timeout_s=timeout_s)
    # Read when it is over: a reader of all events beside the engine would take its share of the machine.
    begin = _ends(at.kafka)
    # Their starts once more: a start that comes twice changes nothing.
    first = [case.before[0] for case in calm[:_FIRST]]
    published, begin_s = _publish(at.kafka, [c.error for c in calm], [c.error for c in storm], first, timeout_s)
    answered = {command.error_id: item.at_s for item, command in commands_of(codec, receiver.result())}
    role.wait("end of the log", Role.caught_up)
    with LogReader(at.kafka) as log:
        seen = [codec.decode(record_of(m).value) for m in log.read(EVENTS, _since(begin, _ends(at.kafka)))]
    held = {r.workflow_id for r in seen if isinstance(r, RepairHeld)}
    opened = [r for r in seen if isinstance(r, BreakerChanged) and target in r.breaker]
    _end(at.kafka, [*calm, *storm])
    missing = sum(case.error_id not in answered for case in calm)
    if missing:
        raise RuntimeError(f"{missing} of {count} unrelated errors were not answered")
    if errors and not opened:
        raise RuntimeError("no breaker opened")
    pairs = [(case, sent) for case, sent in zip(calm, published, strict=True) if sent.due_s >= begin_s]
    return Latencies([answered[case.error_id] - sent.due_s for case, sent in pairs]), len(held)


def _ends(kafka: str) -> dict[int, int]:
    with LogReader(kafka) as log:
        return {partition: end for partition, (_, end) in log.bounds(EVENTS).items()}


def _since(begin: dict[int, int], end: dict[int, int]) -> dict[int, tuple[int, int]]:
    return {partition: (begin[partition], end[partition]) for partition in end if end[partition] > begin[partition]}


def _end(kafka: str, cases: list[Failing]) -> None:
    write(kafka, [case.after for case in cases])


BENCHMARK = Benchmark(
    name="storm",
    measures="workflows that fail together on one target, simulated; unrelated errors beside them on the real stack",
    compared_to="the same unrelated errors when it is quiet, in the same run",
    run=_measure,
)
