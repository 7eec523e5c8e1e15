"""Makes the plan of a replay from what a person asked for, held against log, archive and the policy in force."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from consumers.history import History
from consumers.log_reader import LogReader
from consumers.policies import read_policies
from engine.invariants import GRACE_US
from engine.policy import Policy, default_policy, load_policy
from schemas.errors import ConfigError
from schemas.topics import EVENTS

from . import reads
from .archive import archive_of, history_of
from .output import NotFoundError
from .replay import Plan
from .replay_commands import Window, window
from .replay_inject import check, parse_all
from .replay_range import Oldest, Range, Resolver, check_topic, parse_place
from .reveal import DeniedError
from .stack import Addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a person asked for. `started_with`: the policy that ran where none was applied."""

    topic: str = EVENTS
    starts: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    workflow: str | None = None
    cold: bool = False
    injected: tuple[str, ...] = ()
    archived: bool = True
    accept_gap: bool = False
    started_with: Policy | None = None


def in_force(log: LogReader, started_with: Policy | None, say: Callable[[str], None]) -> Policy:
    """The policy that says today what may be replayed and shown: the one applied last."""
    newest = read_policies(log).newest
    if newest is not None:
        try:
            return load_policy(newest.text, "the applied policy")
        except ConfigError as error:  # of another release; recovery does not take it either
            say(f"the policy applied last cannot be read by this version: {error}")
    return started_with or default_policy()


def planned(at: Addresses, asked: Asked, say: Callable[[str], None], **options: Any) -> tuple[Plan, Window, Policy]:
    """The plan, where its commands are, and the policy in force. ReplayError says what is wrong with what was asked
    for, DeniedError what the policy does not allow."""
    check_topic(asked.topic)
    injections = parse_all(asked.injected)
    with LogReader(at.kafka) as log:
        policy = in_force(log, asked.started_with, say)
        if not policy.replay_mode.enabled:
            raise DeniedError("debugging.replay_mode.enabled is false in the policy in force: nothing is replayed")
        starts = asked.starts or _of_workflow(at, asked.workflow)
        begin, end = [parse_place(text) for text in starts], [parse_place(text) for text in asked.ends]
        history = history_of(at, log, archived=asked.archived)
        resolver = Resolver(history, archive_of(at, log) if asked.archived else None)
        days = policy.replay_mode.days_max
        oldest = Oldest.of(days, time.time_ns() // 1_000_000, refuse=bool(asked.starts))
        ranges, gaps = resolver.ranges(begin, end, cold=asked.cold, accept_gap=asked.accept_gap, oldest=oldest)
        for partition, first in resolver.shortened.items():
            say(f"partition {partition}: begins at {first}: debugging.replay_mode.max_replay_days is {days}")
        check(injections, ranges)
        commands = window(log, _began_ms(history, ranges))
    plan = Plan(
        ranges=tuple(ranges),
        workflow_id=asked.workflow,
        injections=asked.injected,
        archived=asked.archived,
        accept_gap=asked.accept_gap or bool(gaps),
        missing=tuple(gaps),
        states=policy.state_inspection.enabled,
        state_size_bytes_max=policy.state_inspection.state_size_bytes_max,
        redact=policy.redact,
        **options,
    )
    return plan, commands, policy


def _of_workflow(at: Addresses, workflow_id: str | None) -> tuple[str, ...]:
    if workflow_id is None:
        return ()
    found = reads.workflow(at.postgres, workflow_id)
    if found is None:
        raise NotFoundError(f"no workflow {workflow_id}; kintsugi workflows list shows those that are there")
    return (f"{found['log_partition']}:{found['first_offset']}",)


def _began_ms(history: History, ranges: list[Range]) -> int:
    """A broker time before which no command can follow from a record of the ranges: brokers' clocks differ a little."""
    found: list[int] = []
    for range_ in ranges:
        records = history.read({range_.partition: (range_.start, range_.start + 1)}, on_gap=lambda _: None)
        found.append(next((record.timestamp_ms for record in records), 0))
    return max(0, min(found) - GRACE_US // 1000)
