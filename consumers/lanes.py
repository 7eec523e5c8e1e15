"""Which of the records taken in is handled next: lanes in turn, in each lane workflow by workflow, each in its order.

A storm's records fill one lane; whatever fails for another reason waits for one of them, not for all of them
(deficit round robin, Shreedhar and Varghese 1995, with a quantum of one record). A workflow is in one lane at a time.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any

from confluent_kafka import Message

#: Lanes told apart at once. What would need another goes into the common one.
LANES_MAX = 4_096
#: The lane of whatever belongs to no failure.
COMMON = b""


class Entry:
    """A record that waits, with what was in force at its place in the log. `record`: set when it is decoded already."""

    __slots__ = ("done", "in_force", "key", "message", "offset", "partition", "record")

    def __init__(self, partition: int, offset: int, message: Message, in_force: Any) -> None:
        self.partition = partition
        self.offset = offset
        self.message = message
        self.key = partition, message.key() or b""
        self.in_force = in_force
        self.record: Any = None
        self.done = False


class _Queue:
    """What waits of one workflow, in the log's order."""

    __slots__ = ("entries", "lane")

    def __init__(self, lane: bytes) -> None:
        self.lane = lane
        self.entries: deque[Entry] = deque()


class Lanes:
    """Records that wait, of all partitions of a process. Not thread-safe."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._count = 0
        self._queues: dict[tuple[int, Any], _Queue] = {}
        self._lanes: OrderedDict[bytes, OrderedDict[tuple[int, Any], _Queue]] = OrderedDict()
        #: By partition, in the log's order; those at the head that are done are gone.
        self._order: dict[int, deque[Entry]] = {}

    def __len__(self) -> int:
        return self._count

    def waits(self, partition: int, key: bytes) -> bool:
        """Whether anything with this key waits."""
        return (partition, key) in self._queues

    def put(self, entry: Entry, lane: bytes | None) -> None:
        """Take a record in. With a lane its workflow goes there with all that waits of it; without one it stays where
        it is."""
        queue = self._queues.get(entry.key)
        if queue is None:
            queue = self._queues[entry.key] = _Queue(self._open(lane or COMMON))
            self._lanes[queue.lane][entry.key] = queue
        elif lane is not None and lane != queue.lane:
            self._leave(entry.key, queue)
            queue.lane = self._open(lane)
            self._lanes[queue.lane][entry.key] = queue
        queue.entries.append(entry)
        self._order.setdefault(entry.partition, deque()).append(entry)
        self._count += 1
        self.size_bytes += len(entry.message)

    def take(self) -> Entry:
        """The next record to handle. `done` is to be set when it is; IndexError when there is none."""
        if not self._lanes:
            raise IndexError("nothing waits")
        lane, queues = next(iter(self._lanes.items()))
        key, queue = next(iter(queues.items()))
        entry = queue.entries.popleft()
        if queue.entries:
            queues.move_to_end(key)
        else:
            del queues[key], self._queues[key]
        if queues:
            self._lanes.move_to_end(lane)
        else:
            del self._lanes[lane]
        self._count -= 1
        self.size_bytes -= len(entry.message)
        return entry

    def frontier(self, partition: int) -> int | None:
        """Offset of the first record of a partition that is not done; None when all are."""
        order = self._order.get(partition)
        while order and order[0].done:
            order.popleft()
        return order[0].offset if order else None

    def forget(self, partition: int) -> None:
        """Drop what waits of a partition."""
        self._order.pop(partition, None)
        for key in [key for key in self._queues if key[0] == partition]:
            queue = self._queues[key]
            self._leave(key, queue)
            del self._queues[key]
            self._count -= len(queue.entries)
            self.size_bytes -= sum(len(entry.message) for entry in queue.entries)

    def _open(self, lane: bytes) -> bytes:
        if lane not in self._lanes:
            if len(self._lanes) >= LANES_MAX:
                lane = COMMON
            self._lanes.setdefault(lane, OrderedDict())
        return lane

    def _leave(self, key: tuple[int, Any], queue: _Queue) -> None:
        queues = self._lanes[queue.lane]
        del queues[key]
        if not queues:
            del self._lanes[queue.lane]
