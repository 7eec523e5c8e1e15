"""What the tests of a replay share: worlds in which workflows failed and were repaired, as engines and as logs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from consumers.history import History
from consumers.log_reader import Ranges
from consumers.policies import Applied
from engine.inspection import Inspector
from engine.testing import Service, World
from ops.hidden import Hidden
from ops.replay import Plan, Replay
from ops.replay_commands import CommandComparison, Window
from ops.replay_inject import parse_all
from ops.replay_range import Range
from ops.replay_scratch import Scratch
from ops.replay_shown import Shown
from schemas.archive_format import Gap
from schemas.codec import Codec
from schemas.log_record import LogRecord
from schemas.records import Command

from ..engine.test_properties import POLICY, STEPS

#: A look at the commands long after everything, of which none is gone.
LATER = Window(ranges=(), whole_from_us=0, now_us=2**60)


def repaired(workflows: int = 1) -> World:
    """Workflows, each of which fails once and is repaired."""
    world = World(POLICY)
    for _ in range(workflows):
        service = Service(world, STEPS)
        service.start("a")
        service.fail("a", "TIMEOUT")
        command = world.commands[-1]
        service.acknowledge(command)
        service.start("a", command)
        service.complete("a", command)
        service.acknowledge(command, "succeeded")
        world.advance(20_000)
        service.start("b")
    return world


def recorded(world: World) -> list[LogRecord]:
    """The world's log as bytes."""
    codec = Codec()
    return [
        LogRecord(0, e.offset, e.timestamp_us // 1000, 2, e.record.workflow_id.encode(), codec.encode(e.record), ())
        for e in world.log
    ]


class Past:
    """A history of one partition in which some offsets are gone."""

    def __init__(self, log: list[LogRecord], gap: Gap | None = None) -> None:
        self.log = log
        self.gap = gap

    def read(self, ranges: Ranges, *, on_gap: Callable[[Gap], None] | None = None) -> Iterator[LogRecord]:
        for start, end in ranges.values():
            gap = self.gap
            if gap is not None and gap.first < end and start < gap.next:
                assert on_gap is not None
                on_gap(gap)
            for record in self.log[start:end]:
                if gap is None or not gap.first <= record.offset < gap.next:
                    yield record


def replayed(
    log: list[LogRecord],
    range_: Range | None = None,
    *specs: str,
    gap: Gap | None = None,
    steps: list[dict[str, Any]] | None = None,
    commands: Sequence[Command] | None = None,
    window: Window = LATER,
    scratch: Scratch | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The document of a replay. `commands`: those that were sent."""
    range_ = range_ or Range(partition=0, first=0, start=0, end=len(log))
    plan = Plan(ranges=(range_,), **{"facts": "own" if specs else "recorded", "injections": specs, **options})
    return Replay(
        plan,
        parse_all(specs),
        history=cast(History, Past(log, gap)),
        codec=Codec(),
        applied=Applied([]),
        ran_with=POLICY,
        policy=None,
        inspector=Inspector(),
        shown=Shown(Hidden({}), (), 10_000),
        look=None if steps is None else steps.append,
        scratch=scratch,
        sent=None if commands is None else CommandComparison(window, commands),
    ).run(lambda *_: None)
