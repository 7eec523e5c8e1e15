"""What a partition's log says about incidents and whom was told of them: a fold, and what is left to be told.

Only the log counts. A notification is wanted from the moment an `IncidentChanged` asks for it until its
`NotificationDelivered` is read back, so a new owner that reads the same log knows the same. Ids are derived from
incident, channel, kind and revision.

What became needless before it was told (the incident is over, and nobody was paged) is dropped without a fact; so is
everything that comes before the group's position, which only moves past what is settled.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from schemas.ids import derive_id
from schemas.records.events import IncidentChanged, NotificationDelivered

from .notice import ACKNOWLEDGE, ESCALATE, RESOLVE, TRIGGER

#: Open incidents remembered in one partition; the one that changed longest ago, of which nobody is to be told, goes.
INCIDENTS_MAX = 10_000
#: Incidents that are over, remembered so that a change that comes twice opens none again.
ENDED_MAX = 10_000
#: Channels of one incident; a policy knows three.
CHANNELS_MAX = 10
#: Who could not be told is tried again by a later change of the incident, after this long.
RENEW_US = 600_000_000
#: As wide as the record's field may be.
_CHANNEL_CHARS_MAX = 50
RESOLVED = "resolved"
ESCALATED, ACKNOWLEDGED = "escalated", "acknowledged"


@dataclass(slots=True, kw_only=True, eq=False)
class Notification:
    """Something to be told once. `uncertain`: an owner before us may have told it, without leaving the fact."""

    notification_id: str
    record: IncidentChanged
    channel: str
    kind: str
    offset: int
    timestamp_us: int
    uncertain: bool
    tries: int = 0


@dataclass(slots=True, eq=False)
class Line:
    """One incident on one channel."""

    #: A page is open there, as far as facts say.
    open: bool = False
    #: It may be, although no fact says so: a trigger was tried, or its fact is beyond the log's retention.
    maybe: bool = False
    #: When it was last given up to page.
    given_up_us: int | None = None
    #: Who was last said to look after it.
    owner: str | None = None
    #: In the order to be told.
    waiting: deque[Notification] = field(default_factory=deque)
    #: The first of them is on its way: handed over, or told and its fact not read back yet.
    busy: bool = False

    @property
    def will_be_open(self) -> bool:
        """Whether a page is open once all that waits is told."""
        last = self._last()
        return self.open if last is None else last == TRIGGER

    @property
    def will_be_closed(self) -> bool:
        """Whether what waits ends with a close."""
        return self._last() == RESOLVE

    def _last(self) -> str | None:
        return next((n.kind for n in reversed(self.waiting) if n.kind in (TRIGGER, RESOLVE)), None)


@dataclass(slots=True, eq=False)
class _Incident:
    revision: int
    over: bool = False
    lines: dict[str, Line] = field(default_factory=dict)


class Memory:
    """Incidents of one partition.

    `effects_from`: the group's position. `high`: the log's end when the partition was taken: what stands before it may
    have been dealt with by another.
    """

    def __init__(self, partition: int, *, effects_from: int, high: int, keyed: Iterable[str]) -> None:
        self.partition = partition
        self.effects_from = effects_from
        self.high = high
        self.next_offset = 0
        #: Whether everything that others left in the log has been read: nothing is told before.
        self.live = False
        self._keyed = frozenset(keyed)
        self._incidents: OrderedDict[str, _Incident] = OrderedDict()
        self._ended: OrderedDict[str, int] = OrderedDict()
        #: What is not settled, in the order of the log: the first one's offset is the position.
        self._unsettled: dict[str, Notification] = {}
        #: Lines in which something may be told now.
        self._touched: dict[tuple[str, str], None] = {}

    @property
    def position(self) -> int:
        """Everything before this offset is settled."""
        first = next(iter(self._unsettled.values()), None)
        return self.next_offset if first is None else first.offset

    def __len__(self) -> int:
        """Open incidents."""
        return len(self._incidents)

    def changed(self, record: IncidentChanged, offset: int, timestamp_us: int) -> None:
        """Fold a change of an incident."""
        incident_id = record.incident_id
        incident = self._incidents.get(incident_id)
        known = self._ended.get(incident_id) if incident is None else incident.revision
        if known is not None and record.revision <= known:
            return
        if incident is None:
            incident = self._incidents[incident_id] = _Incident(record.revision)
            if known is None and record.revision > 1 and record.state == RESOLVED:
                # The log does not hold its beginning any more.
                incident.lines = {name: Line(maybe=True) for name in _names(record) if name in self._keyed}
        incident.revision = record.revision
        incident.over = record.state == RESOLVED
        self._incidents.move_to_end(incident_id)
        if incident.over:
            for name, line in incident.lines.items():
                line.owner = line.given_up_us = None
                # A close that waits already is the one that counts: who reads the log again does not know that a page
                # may be open, so would not want a second, and the first would lie before the position.
                if line.will_be_open or (line.maybe and not line.will_be_closed):
                    self._want(line, name, RESOLVE, record, offset, timestamp_us)
        else:
            self._page(incident, record, offset, timestamp_us)
        self._forget(incident_id, incident)
        self._bound()

    def delivered(self, fact: NotificationDelivered, timestamp_us: int) -> None:
        """Fold what people were told."""
        incident = self._incidents.get(fact.incident_id)
        line = None if incident is None else incident.lines.get(fact.channel)
        if incident is None or line is None:
            return
        told = self._unsettled.get(fact.notification_id)
        if told is not None and told in line.waiting:
            line.busy = False
            # One after the other: what came before it was dropped by the owner that told this, without a fact.
            while (settled := line.waiting.popleft()) is not told:
                del self._unsettled[settled.notification_id]
            del self._unsettled[told.notification_id]
        elif fact.outcome != "delivered":
            return  # another owner gave up what was settled before
        if fact.kind == TRIGGER:
            line.open = fact.outcome == "delivered"
            line.maybe = not line.open and fact.tries > 0
            line.given_up_us = None if line.open else timestamp_us
        elif fact.kind == RESOLVE:
            line.open = line.maybe = False
        self._touched[(fact.incident_id, fact.channel)] = None
        self._forget(fact.incident_id, incident)

    def go_live(self) -> None:
        """The log has been read to its end: what is still wanted is to be told, if it comes after the position."""
        self.live = True
        for notification in [n for n in self._unsettled.values() if n.offset < self.effects_from]:
            self.drop(notification)
        self._touched.update(((i, name), None) for i, found in self._incidents.items() for name in found.lines)

    def take_next(self) -> Iterator[Notification]:
        """What to tell now; each is the first of its line, which is busy from then on."""
        while self._touched:
            key = next(iter(self._touched))
            del self._touched[key]
            incident = self._incidents.get(key[0])
            line = None if incident is None else incident.lines.get(key[1])
            if incident is None or line is None:
                continue
            found = self._first(line, key[1])
            if found is not None:
                line.busy = True
                yield found
            else:
                self._forget(key[0], incident)

    def overtaken(self) -> Iterator[Notification]:
        """What is on its way in a touched line although the incident is over meanwhile."""
        for incident_id, name in list(self._touched):
            incident = self._incidents.get(incident_id)
            line = None if incident is None else incident.lines.get(name)
            if line is not None and line.busy and any(n.kind == RESOLVE for n in list(line.waiting)[1:]):
                yield line.waiting[0]

    def wanted(self, notification_id: str) -> Notification | None:
        """A notification that is not settled."""
        return self._unsettled.get(notification_id)

    def returned(self, notification: Notification, tries: int) -> None:
        """It was not told, and is not on its way any more."""
        notification.tries = tries
        self._line(notification).busy = False
        self._touch(notification)

    def drop(self, notification: Notification) -> None:
        """It need not be told."""
        line = self._line(notification)
        if line.waiting[0] is notification:
            line.busy = False
        line.waiting.remove(notification)
        del self._unsettled[notification.notification_id]
        self._touch(notification)

    def _page(self, incident: _Incident, record: IncidentChanged, offset: int, timestamp_us: int) -> None:
        escalated = record.reason == ESCALATED
        for name in _names(record) if record.page or escalated else ():
            line = incident.lines.setdefault(name, Line())
            if line.will_be_open:
                if escalated:
                    self._want(line, name, ESCALATE, record, offset, timestamp_us)
            elif escalated or line.given_up_us is None or timestamp_us - line.given_up_us >= RENEW_US:
                self._want(line, name, TRIGGER, record, offset, timestamp_us)
        owner = record.owner or (record.actor or "somebody" if record.reason == ACKNOWLEDGED else None)
        if owner is None:
            return
        for name, line in incident.lines.items():
            if line.will_be_open and line.owner != owner:
                line.owner = owner
                self._want(line, name, ACKNOWLEDGE, record, offset, timestamp_us)

    def _want(
        self, line: Line, channel: str, kind: str, record: IncidentChanged, offset: int, timestamp_us: int
    ) -> None:
        notification = Notification(
            notification_id=derive_id(record.incident_id, f"notify|{channel}|{kind}", record.revision),
            record=record,
            channel=channel,
            kind=kind,
            offset=offset,
            timestamp_us=timestamp_us,
            uncertain=offset < self.high,
        )
        line.waiting.append(notification)
        self._unsettled[notification.notification_id] = notification
        self._touch(notification)

    def _first(self, line: Line, channel: str) -> Notification | None:
        """The first that is still worth telling; what is not is dropped."""
        while line.waiting and not line.busy:
            head = line.waiting[0]
            if any(n.kind == RESOLVE for n in list(line.waiting)[1:]):
                if head.kind == TRIGGER:
                    line.maybe = line.maybe or head.uncertain or head.tries > 0
            elif head.kind == RESOLVE:
                # A page that may be open is closed where that is harmless; elsewhere people would read that something
                # is over of which they never heard.
                if line.open or (line.maybe and channel in self._keyed):
                    return head
            elif head.kind == TRIGGER or line.open:
                return head
            line.waiting.popleft()
            del self._unsettled[head.notification_id]
        return None

    def _forget(self, incident_id: str, incident: _Incident) -> None:
        if incident.over and not any(line.waiting for line in incident.lines.values()):
            self._incidents.pop(incident_id, None)
            self._ended[incident_id] = incident.revision
            self._ended.move_to_end(incident_id)
            if len(self._ended) > ENDED_MAX:
                self._ended.popitem(last=False)

    def _bound(self) -> None:
        if len(self._incidents) <= INCIDENTS_MAX:
            return
        for incident_id, incident in self._incidents.items():
            if not any(line.waiting for line in incident.lines.values()):
                del self._incidents[incident_id]
                return

    def _line(self, notification: Notification) -> Line:
        return self._incidents[notification.record.incident_id].lines[notification.channel]

    def _touch(self, notification: Notification) -> None:
        self._touched[(notification.record.incident_id, notification.channel)] = None


def _names(record: IncidentChanged) -> list[str]:
    return list(dict.fromkeys(name[:_CHANNEL_CHARS_MAX] for name in record.channels))[:CHANNELS_MAX]
