"""A service that starts again takes up no command a second time: it reads on where its group stands."""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import replace

from kintsugi_client import Client

from ops.stack import Addresses
from schemas.ids import derive_id
from schemas.records.commands import RetryStep
from schemas.records.events import CommandAcknowledged
from schemas.topics import COMMANDS
from tests.stack.kit import Topics, build, wait_for

PARTITIONS = 8
#: Joining is a race between a seek and librdkafka's own lookup; most starts lose it in one partition.
STARTS = 4
FAR_AWAY_US = 4_000_000_000_000_000


def command(service: str, number: int) -> RetryStep:
    workflow_id = str(uuid.uuid4())
    made = build(
        RetryStep,
        workflow_id,
        command_id=derive_id(workflow_id, "command", number),
        error_id=str(uuid.uuid4()),
        attempt_number=1,
        expires_at=FAR_AWAY_US,
        reason="a test",
        actor="test",
        step_id="build",
    )
    return replace(made, workflow_type=service)


def test_no_command_is_answered_again_after_a_restart(addresses: Addresses, topics: Topics) -> None:
    service = f"rejoins-{uuid.uuid4().hex[:8]}"
    handled: Counter[str] = Counter()
    sent: list[RetryStep] = []
    for _ in range(STARTS):
        fresh = [command(service, number) for number in range(2 * PARTITIONS)]
        with Client(service, kafka=addresses.kafka, registry=addresses.registry) as client:
            client.workflow_type(service).on("RetryStep")(lambda c, _: handled.update([c.command_id]))
            assert client.listen()
            for number, record in enumerate(fresh):
                value, place = topics.codec.encode(record), number % PARTITIONS
                topics.producer.produce(COMMANDS, key=record.workflow_id, value=value, partition=place)
            assert topics.producer.flush(20) == 0
            sent.extend(fresh)
            wait_for("all are carried out", lambda: all(handled[c.command_id] for c in sent))
    assert handled == Counter({c.command_id: 1 for c in sent})
    answers = topics.events(CommandAcknowledged, {c.workflow_id for c in sent})
    assert Counter(a.status for a in answers) == {"accepted": len(sent), "succeeded": len(sent)}
