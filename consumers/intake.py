"""What the recovery role has taken in and not folded yet, sorted into lanes by what failed, most of it undecoded."""

from __future__ import annotations

from collections.abc import Sequence

from confluent_kafka import Message

from schemas.admission import admit
from schemas.codec import Codec
from schemas.errors import PoisonError
from schemas.headers import lane_in, lane_of
from schemas.records import Record
from schemas.records.events import WorkflowErrorOccurred

from .dead_letter import headers_of, raw
from .lanes import Entry, Lanes
from .memory import Memory

#: No more is taken in beyond either bound: a storm of some seconds, and a moment of large checkpoints.
QUEUED_RECORDS_MAX = 20_000
QUEUED_BYTES_MAX = 64 * 1024 * 1024


class Intake:
    """Records that wait to be folded, of all partitions."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._lanes = Lanes()

    def __len__(self) -> int:
        return len(self._lanes)

    @property
    def full(self) -> bool:
        """Whether a bound is reached."""
        return len(self._lanes) >= QUEUED_RECORDS_MAX or self._lanes.size_bytes >= QUEUED_BYTES_MAX

    def kind_of(self, message: Message) -> type[Record] | None:
        """The type a record claims to have; None when it is none of ours. RetriableError without the registry."""
        return self._codec.kind_of(raw(message.value()))

    def put(self, memory: Memory, message: Message, kind: type[Record] | None) -> None:
        """Take a record in."""
        in_force = memory.in_force.policy, memory.in_force.breakers
        entry = Entry(memory.partition, message.offset() or 0, message, in_force)
        if kind is WorkflowErrorOccurred:
            self._lanes.put(entry, lane_in(headers_of(message)) or self._read_lane(entry))
        elif self._lanes.waits(*entry.key):
            self._lanes.put(entry, None)
        else:
            self._lanes.put(entry, _lane_of_open(memory, entry.key[1]))

    def take(self, most: int) -> Sequence[Entry]:
        """The next records to fold."""
        return [self._lanes.take() for _ in range(min(most, len(self._lanes)))]

    def waits(self, partition: int, workflow_id: str) -> bool:
        """Whether records of this workflow wait."""
        return self._lanes.waits(partition, workflow_id.encode())

    def waits_in(self, partition: int) -> bool:
        """Whether records of this partition wait."""
        return self._lanes.frontier(partition) is not None

    def frontier(self, partition: int, end: int) -> int:
        """All records before this offset are folded; `end` when nothing waits."""
        found = self._lanes.frontier(partition)
        return end if found is None else found

    def forget(self, partition: int) -> None:
        """Drop what waits of a partition."""
        self._lanes.forget(partition)

    def _read_lane(self, entry: Entry) -> bytes | None:
        """The lane of an error whose producer named none."""
        try:
            record = admit(self._codec, raw(entry.message.key()), raw(entry.message.value()))
        except PoisonError:
            return None  # it is read again when its turn comes, and set aside then
        if not isinstance(record, WorkflowErrorOccurred):
            return None
        entry.record = record
        return lane_of(record.workflow_type, record.error_code, record.dependency)


def _lane_of_open(memory: Memory, key: bytes) -> bytes | None:
    """The lane of the error that is being repaired, if there is one."""
    state = memory.states.get(key.decode("ascii", "replace"))
    if state is None or not state.cases:
        return None
    case = next(iter(state.cases.values()))
    return lane_of(state.workflow_type, case.error_code, case.dependency)
