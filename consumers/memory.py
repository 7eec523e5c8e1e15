"""What the recovery role keeps of one partition: states, their next timers, and which workflows have ended."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from engine.events import Delivered
from engine.inforce import InForce
from engine.policy import Policy
from engine.state import WorkflowState
from engine.timers import next_due_us

#: How long a workflow that has ended stays, broker time: late events find its whole state.
LINGER_US = 60_000_000
#: A workflow of which only stray events were seen, never its start, is forgotten after this much silence.
STRAY_LINGER_US = 3_600_000_000
#: Ended workflows whose state is kept although the linger is not over.
LINGERING_MAX = 10_000
#: Ids of ended workflows remembered, so that a late event does not open one anew: about 10 MB at most.
ENDED_MAX = 50_000
#: Ids of timer facts in the log already that the state has not reacted to yet.
FIRED_MAX = 10_000
#: A timer that was written but moved nothing is looked at again after this long, with whatever else is due then.
LOOK_AGAIN_US = 1_000_000


class Memory:
    """States and timers of one partition; everything in it can be derived from the log again."""

    def __init__(self, partition: int, policy: Policy, *, effects_from: int, next_offset: int) -> None:
        self.partition = partition
        self.states: dict[str, WorkflowState] = {}
        #: Effects of records before it are in the log already.
        self.effects_from = effects_from
        self.next_offset = next_offset
        #: Broker time of the newest record folded, and of the newest one taken in.
        self.log_us = self.seen_us = 0
        self.waiting_for_human: set[str] = set()
        self.traces: dict[str, str] = {}
        self.ended: OrderedDict[str, None] = OrderedDict()
        self.folded = 0
        self.in_force = InForce(policy)
        self._timers: list[tuple[int, str]] = []
        self._armed: dict[str, int] = {}
        self._lingering: OrderedDict[str, int] = OrderedDict()
        self._fired: OrderedDict[str, None] = OrderedDict()

    def restore(self, states: Iterable[WorkflowState], ended: Iterable[str], in_force: dict[str, Any]) -> None:
        """Take over the content of a snapshot."""
        self.in_force.load(in_force)
        self.ended = OrderedDict.fromkeys(ended)
        for state in states:
            self.keep(state)

    def take(self, event: Delivered) -> bool:
        """Fold a control record; False for any other. A policy that changes moves the timers of all workflows."""
        before = self.in_force.policy
        if not self.in_force.take(event):
            return False
        if self.in_force.policy is not before:
            for state in self.states.values():
                if not state.ended_at_us:
                    self._arm(state.workflow_id, next_due_us(state, self.in_force.policy))
        return True

    def get(self, workflow_id: str, workflow_type: str) -> WorkflowState | None:
        """The state to fold on: kept, or the bare fact that the workflow has ended, or none."""
        state = self.states.get(workflow_id)
        if state is None and workflow_id in self.ended:
            state = WorkflowState(workflow_id, workflow_type, self.partition)
            state.status, state.ended_at_us = "ended", 1
        return state

    def keep(self, state: WorkflowState) -> None:
        """Store a state that was folded and set its timer."""
        workflow_id = state.workflow_id
        if workflow_id in self.ended:
            return
        self.states[workflow_id] = state
        if state.ended_at_us:
            self._armed.pop(workflow_id, None)
            self._lingering.setdefault(workflow_id, state.ended_at_us)
        else:
            self._arm(workflow_id, next_due_us(state, self.in_force.policy))
        if state.cases and any(case.intervention_id is not None for case in state.cases.values()):
            self.waiting_for_human.add(workflow_id)
        elif self.waiting_for_human:
            self.waiting_for_human.discard(workflow_id)

    def follow(self, state: WorkflowState, trace: str | None) -> None:
        """Remember the trace of an open repair, so that what its timers cause belongs to it too."""
        if state.cases and trace is not None:
            self.traces[state.workflow_id] = trace
        elif not state.cases and self.traces:
            self.traces.pop(state.workflow_id, None)

    @property
    def next_due_us(self) -> int | None:
        """When the nearest timer is due. It may turn out to be void."""
        timers = self._timers
        while timers and self._armed.get(timers[0][1]) != timers[0][0]:
            heapq.heappop(timers)
        return timers[0][0] if timers else None

    def take_due(self, now_us: int, most: int) -> list[WorkflowState]:
        """Workflows with a timer due; each is armed again when it is folded next, at the latest after a moment."""
        taken: list[WorkflowState] = []
        while len(taken) < most:
            due_us = self.next_due_us
            if due_us is None or due_us > now_us:
                break
            _, workflow_id = heapq.heappop(self._timers)
            taken.append(self.states[workflow_id])
            self._arm(workflow_id, now_us + LOOK_AGAIN_US)
        return taken

    def first_fired(self, event_id: str) -> bool:
        """Whether this timer fact has not been written by us before."""
        if event_id in self._fired:
            return False
        self._fired[event_id] = None
        if len(self._fired) > FIRED_MAX:
            self._fired.popitem(last=False)
        return True

    def unfire(self, event_id: str) -> None:
        """The log says that this timer fact was written before its time: it has to be written again."""
        self._fired.pop(event_id, None)

    def evict(self) -> None:
        """Forget states of workflows that ended long ago; their ids stay for longer."""
        horizon_us = self.log_us - LINGER_US
        while self._lingering:
            workflow_id, ended_at_us = next(iter(self._lingering.items()))
            if ended_at_us > horizon_us and len(self._lingering) <= LINGERING_MAX:
                break
            del self._lingering[workflow_id]
            self.states.pop(workflow_id, None)
            self.waiting_for_human.discard(workflow_id)
            self.traces.pop(workflow_id, None)
            self.ended[workflow_id] = None
            if len(self.ended) > ENDED_MAX:
                self.ended.popitem(last=False)

    def forget_strays(self) -> None:
        """Forget workflows never seen to start, with nothing open and long silent. Looks at every state."""
        horizon_us = self.log_us - STRAY_LINGER_US
        for state in list(self.states.values()):
            if state.started_offset < 0 and not state.cases and not state.runs and state.heard_us < horizon_us:
                del self.states[state.workflow_id]
                self._armed.pop(state.workflow_id, None)

    def _arm(self, workflow_id: str, due_us: int | None) -> None:
        if due_us is None:
            self._armed.pop(workflow_id, None)
        elif self._armed.get(workflow_id) != due_us:
            self._armed[workflow_id] = due_us
            heapq.heappush(self._timers, (due_us, workflow_id))
            if len(self._timers) > 2 * len(self._armed) + 1024:
                # Each fold that moves a deadline leaves a void entry behind; they must not outnumber the real ones.
                self._timers = [(due, key) for key, due in self._armed.items()]
                heapq.heapify(self._timers)
