"""Kafka goes away and comes back, under a service that must not stop. On a stack of these tests' own."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions
from kintsugi_client import BufferFullError, Client, ClosedError, NotDeliveredError, Workflow

from ops import stack
from ops.kafka_topics import create
from ops.stack import Addresses
from schemas.records.commands import CompensateStep, RetryStep
from schemas.records.events import CheckpointCreated, WorkflowErrorOccurred
from schemas.topics import COMMANDS, EVENTS

from .client_kit import PARTITIONS, Desk, Here, assert_chain
from .kit import Topics, wait_for
from .stacks import own_stack

#: So small that a few steps fill it: 80 for heartbeats, 90 for states, 100 for what ends something.
BUFFER_RECORDS = 100
OUTAGE_S = 90.0


class Broken:
    """A stack whose broker can be taken away."""

    def __init__(self, home: Path, at: Addresses) -> None:
        self.home = home
        self.at = at

        self.away = False

    def take_away(self) -> None:
        if not self.away:
            stack.kill_part("kafka", self.home)
            self.away = True

    def bring_back(self) -> None:
        if self.away:
            assert stack.ensure(self.home) == self.at
            wait_for("a leader of every partition", self._leads, OUTAGE_S)
            self.away = False

    def _leads(self) -> bool:
        """A broker that answers may not yet lead the partitions that it has."""
        consumer = Consumer({"bootstrap.servers": self.at.kafka, "group.id": "looker", "log_level": 0})
        try:
            for topic, found in consumer.list_topics(timeout=10).topics.items():
                for partition in found.partitions:
                    consumer.get_watermark_offsets(TopicPartition(topic, partition), 10)
        except KafkaException:
            return False
        finally:
            consumer.close()
        return True


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    home = tmp_path_factory.mktemp("stack")
    with own_stack(home) as at:
        yield Broken(home, at)


@pytest.fixture
def topics(broken: Broken) -> Iterator[Topics]:
    found = Topics(broken.at)
    yield found
    found.registry.close()


@pytest.fixture
def make(broken: Broken, tmp_path: Path) -> Iterator[Callable[..., Here]]:
    made: list[Here] = []

    def serve(**options: Any) -> Here:
        environment = broken.at.environment()
        made.append(Here(environment, tmp_path, options.pop("name", f"svc-{uuid.uuid4()}"), **options))
        return made[-1]

    yield serve
    (tmp_path / "release").touch()
    for here in made:
        here.client.close(5.0)


def test_steps_go_on_while_the_buffer_fills_and_all_of_it_arrives_in_order(
    broken: Broken, topics: Topics, make: Callable[..., Here]
) -> None:
    broken.bring_back()
    sent: list[tuple[str, str]] = []

    def note(record: Any) -> Any:
        sent.append((record.workflow_id, record.event_id))
        return record

    client = make(config={"queue.buffering.max.messages": BUFFER_RECORDS}, interceptors=[note]).client
    kind = client.workflow_type("own", checkpoint_types=())
    workflow = kind.begin()
    with workflow.step("before") as step:
        step.checkpoint()
    wait_for("all so far", lambda: client.outbox.undelivered().waiting == 0)
    broken.take_away()
    with workflow.step("during") as step:
        step.state["n"] = 1
        with pytest.raises(NotDeliveredError, match=r"within 0\.3 s; it waits in the buffer"):
            step.checkpoint(timeout_s=0.3)
        for _ in range(200):  # heartbeats stop nothing, and leave room for what matters more
            step.heartbeat(0.5)
        for _ in range(10):
            with pytest.raises(NotDeliveredError):
                step.checkpoint(timeout_s=0)
        with pytest.raises(BufferFullError, match=r"\(100 records or 131072 KiB\): CheckpointCreated refused"):
            step.checkpoint()
        with pytest.raises(BufferFullError):
            kind.begin()
    workflow.complete()
    report = client.outbox.undelivered()
    # 80 with the step's start and its checkpoint, 90 with ten more; then the end of step and workflow.
    assert (report.waiting, report.refused) == (92, 200 - 78 + 2)
    broken.bring_back()
    wait_for("everything", lambda: client.outbox.undelivered().waiting == 0, OUTAGE_S)
    closed = client.close()
    assert (closed.waiting, closed.given_up, closed.refused) == (0, 0, report.refused)

    records = topics.records(EVENTS, of={workflow.workflow_id})
    arrived = [r.event_id for r in records]
    # In the order of the calls, each once, and nothing is missing but what was refused.
    assert arrived == [event_id for workflow_id, event_id in sent if event_id in set(arrived)]
    assert len(set(arrived)) == len(arrived) == len(sent) - report.refused
    assert [type(r).__name__ for r in records][-2:] == ["StepCompleted", "WorkflowCompleted"]
    assert_chain(topics.events(CheckpointCreated, {workflow.workflow_id}))


def test_commands_are_carried_out_once_after_the_broker_was_away(
    broken: Broken, topics: Topics, make: Callable[..., Here]
) -> None:
    broken.bring_back()
    here = make()
    assert here.client.listen()
    workflow = here.kind.start({"plan": {"two": ["fail:BROKEN"]}})
    wait_for("its error", lambda: here.ran(workflow.workflow_id) == ["one", "two"])
    broken.take_away()
    time.sleep(2)  # long enough for the client to notice, in its own time
    broken.bring_back()
    command = retry(topics, here, workflow)
    desk = Desk(topics)
    desk.send(command)
    desk.wait_answers(command, ("accepted", False), ("succeeded", False), ("succeeded", True))
    assert here.ran(workflow.workflow_id) == ["one", "two", "two", "three"]


def test_topics_that_do_not_exist_yet_are_waited_for(broken: Broken, tmp_path: Path) -> None:
    """A service may be deployed before `kintsugi topics create` was run: it begins to listen when they are there."""
    broken.bring_back()
    admin = AdminClient({"bootstrap.servers": broken.at.kafka})
    admin.delete_topics([COMMANDS])[COMMANDS].result(30)
    client = Client.connect("early", kafka=broken.at.kafka, registry=broken.at.registry)
    client.workflow_type("early")
    assert not client.listen(ready_timeout_s=1.0)
    create(broken.at.kafka)
    assert client.listen(ready_timeout_s=OUTAGE_S)
    assert not client.close()


def test_commands_in_partitions_that_were_added_are_carried_out(
    broken: Broken, topics: Topics, make: Callable[..., Here]
) -> None:
    broken.bring_back()
    here = make(config={"topic.metadata.refresh.interval.ms": 500})
    here.kind.on("CompensateStep")(lambda command, workflow: None)
    assert here.client.listen()
    admin = AdminClient({"bootstrap.servers": broken.at.kafka})
    admin.create_partitions([NewPartitions(COMMANDS, PARTITIONS + 2)])[COMMANDS].result(30)
    desk = Desk(topics)
    command = desk.build(CompensateStep, str(uuid.uuid4()), here.name, step_id="one")
    value = topics.codec.encode(command)
    for _ in range(2):  # the second one is a copy, and known as such
        desk.producer.produce(COMMANDS, value, command.workflow_id, partition=PARTITIONS + 1)
    wait_for("it is in the log", lambda: desk.producer.flush(1) == 0)
    wait_for("its end", lambda: here.client.stats()["succeeded"] == 1, OUTAGE_S)
    wait_for("the copy", lambda: here.client.stats()["repeated"] == 1, OUTAGE_S)


def test_a_close_while_kafka_is_away_says_what_was_not_delivered(broken: Broken, make: Callable[..., Here]) -> None:
    broken.bring_back()
    client = make().client
    workflow = client.workflow_type("own").begin()
    wait_for("its start", lambda: workflow.known_partition() >= 0, OUTAGE_S)
    broken.take_away()
    with workflow.step("one") as step:
        step.heartbeat()
    began_s = time.monotonic()
    report = client.close(1.0)
    assert time.monotonic() - began_s < 30
    assert (report.waiting, report.given_up, report.refused) == (5, 0, 0)
    assert report.by_type == {"StepStarted": 1, "CheckpointCreated": 2, "StepProgressed": 1, "StepCompleted": 1}
    with pytest.raises(ClosedError):
        workflow.step("two").__enter__()


def test_a_service_that_starts_before_kafka_works_once_kafka_is_there(
    broken: Broken, topics: Topics, make: Callable[..., Here]
) -> None:
    broken.take_away()
    here = make()
    assert not here.client.listen(ready_timeout_s=0.5)
    workflow = here.kind.start({"plan": {"two": ["fail:BROKEN"]}})
    wait_for("its error", lambda: here.ran(workflow.workflow_id) == ["one", "two"])
    broken.bring_back()
    assert here.client.listen(ready_timeout_s=OUTAGE_S)
    retry(topics, here, workflow)


def retry(topics: Topics, here: Here, workflow: Workflow) -> RetryStep:
    """Let a workflow's second step be retried, and wait until the service has answered."""
    desk = Desk(topics)
    of = {workflow.workflow_id}
    wait_for("the report", lambda: topics.events(WorkflowErrorOccurred, of), OUTAGE_S)
    command = desk.build(RetryStep, workflow.workflow_id, here.name, step_id="two", **desk.where(workflow.workflow_id))
    desk.send(command)
    wait_for("answers", lambda: len(desk.answers(command)) == 2, OUTAGE_S)
    desk.wait_answers(command, ("accepted", False), ("succeeded", False))
    return command
