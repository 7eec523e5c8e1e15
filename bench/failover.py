"""A recovery process is killed with -9 -> the next decision on its partitions; nothing lost, nothing decided twice."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from typing import NamedTuple

from schemas.codec import Codec
from schemas.records.events import RecoveryDecided
from schemas.registry import Registry
from schemas.topics import EVENTS, TOPICS

from .errors import failing
from .figures import Benchmark, Figure, Setup
from .processes import LEAD_S, Publisher, Received, Receiver, Role, stand_at_end, write

ROUNDS, ROUNDS_QUICK = 3, 1
#: Enough that every partition has an error several times within each second.
ERRORS_PER_S = 100
_BEFORE_S, _AFTER_S = 1.0, 6.0
_ANSWER_S = 30.0
#: The role's own figures of its lag are renewed once a second.
_SETTLE_S = 2.0
_GOAL_S = 3.0
#: Partitions of each of the two processes.
_SHARE = next(topic.partitions for topic in TOPICS if topic.name == EVENTS) // 2


def _measure(setup: Setup) -> list[Figure]:
    rounds = ROUNDS_QUICK if setup.quick else ROUNDS
    gaps_s: list[float] = []
    outcome: Counter[str] = Counter()
    with Registry(setup.stack.registry) as registry:
        codec = Codec(registry)
        for number in range(rounds):
            setup.say(f"kill {number + 1} of {rounds}")
            gaps_s += _takeover(codec, _kill(setup, codec), outcome)
    return [
        Figure(name="kill -9 -> next decision, first partition", measured=min(gaps_s), unit="s"),
        Figure(
            name="kill -9 -> next decision, slowest partition",
            measured=max(gaps_s),
            unit="s",
            at_most=_GOAL_S,
            note=f"{rounds} kills, {len(gaps_s)} partitions taken over",
        ),
        Figure(name="errors not decided", measured=outcome["lost"], unit="errors", at_most=0.0),
        Figure(
            name="errors decided twice",
            measured=outcome["twice"],
            unit="errors",
            at_most=0.0,
            note=f"of {outcome['errors']:,}; {outcome['copies']} equal copies of one decision in the log",
        ),
    ]


class Kill(NamedTuple):
    """What happened around one kill: moments are monotonic; `due_s` is when each error was to be published."""

    at_s: float
    partitions: set[int]
    due_s: dict[str, float]
    found: list[Received]


def _kill(setup: Setup, codec: Codec) -> Kill:
    """Kill one of two processes under a steady stream of errors, and wait until the other has done the rest."""
    at, group = setup.stack, f"bench-{uuid.uuid4()}"
    stand_at_end(at.kafka, group)
    roles = [Role(at, setup.folder, "recovery", group=group) for _ in range(2)]
    try:
        for role in roles:
            role.wait("share of the partitions", lambda role: role.caught_up() and len(role.partitions()) == _SHARE)
        cases = [failing(codec) for _ in range(int(ERRORS_PER_S * (_BEFORE_S + _AFTER_S)))]
        write(at.kafka, [record for case in cases for record in case.before])
        timeout_s = LEAD_S + _BEFORE_S + _AFTER_S + _ANSWER_S
        receiver = Receiver(at.kafka, EVENTS, timeout_s=timeout_s)
        publisher = Publisher(at.kafka, [case.error for case in cases], per_second=ERRORS_PER_S)
        time.sleep(max(0.0, publisher.begin_s + _BEFORE_S - time.monotonic()))
        partitions, killed_s = roles[0].partitions(), time.monotonic()
        roles[0].end()
        published = publisher.result(timeout_s)
        time.sleep(_SETTLE_S)
        roles[1].wait("end of the log", Role.caught_up)
        receiver.stop()
        found = receiver.result()
        write(at.kafka, [case.after for case in cases])
    finally:
        for role in roles:
            role.end()
    due_s = {case.error_id: sent.due_s for case, sent in zip(cases, published, strict=True)}
    return Kill(killed_s, partitions, due_s, found)


def _takeover(codec: Codec, kill: Kill, outcome: Counter[str]) -> list[float]:
    """From the kill to the first decision on an error published after it, for each partition of the victim."""
    decisions: dict[str, set[str]] = {error_id: set() for error_id in kill.due_s}
    next_s = dict.fromkeys(kill.partitions, float("inf"))
    for item in kill.found:
        record = codec.decode(item.value)
        if not isinstance(record, RecoveryDecided) or record.error_id not in decisions:
            continue
        if record.event_id in decisions[record.error_id]:
            outcome["copies"] += 1
        decisions[record.error_id].add(record.event_id)
        if item.partition in next_s and kill.due_s[record.error_id] > kill.at_s:
            next_s[item.partition] = min(next_s[item.partition], item.at_s - kill.at_s)
    outcome["errors"] += len(decisions)
    outcome["lost"] += sum(not ids for ids in decisions.values())
    outcome["twice"] += sum(len(ids) > 1 for ids in decisions.values())
    return list(next_s.values())


BENCHMARK = Benchmark(
    name="failover",
    measures="one of two recovery processes killed with -9 under a stream of errors -> next decision on its partitions",
    compared_to="nothing: the wait for the dead member's session to end is most of it",
    run=_measure,
)
