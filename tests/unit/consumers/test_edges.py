"""The small parts: clock, deadlines, crash points, settings, waiting, logs, dead-letter headers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import cast

import pytest

from consumers import roles
from consumers.clock import BrokerClock
from consumers.deadline import Deadline
from consumers.handler import Handler
from consumers.kafka import consumer_settings, is_incremental, producer_settings
from consumers.settings import role_settings
from consumers.slots import BACKOFF_S_MAX, Slot
from schemas.errors import ConfigError


def test_the_clock_follows_a_broker_that_is_ahead() -> None:
    clock = BrokerClock()
    hour_us = 3_600_000_000
    clock.acknowledged(clock.now_us() + hour_us)
    assert abs(clock.now_us() - time.time_ns() // 1000 - hour_us) < 1_000_000


def test_the_clock_follows_a_broker_that_is_behind_only_when_it_is_sure() -> None:
    clock = BrokerClock()
    behind_us = clock.now_us() - 3_600_000_000
    for number in range(3):
        assert abs(clock.now_us() - time.time_ns() // 1000) < 1_000_000, number
        clock.acknowledged(behind_us)
    assert abs(clock.now_us() - behind_us) < 1_000_000


def test_late_acknowledgements_do_not_turn_the_clock_back() -> None:
    clock = BrokerClock()
    for _ in range(100):
        clock.acknowledged(clock.now_us() - 2_000_000)
    assert abs(clock.now_us() - time.time_ns() // 1000) < 1_000_000


def test_a_step_of_this_machines_clock_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = BrokerClock()
    before_us = clock.now_us()
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert 0 <= clock.now_us() - before_us < 1_000_000


def test_a_deadline_is_shared_and_has_a_floor() -> None:
    deadline = Deadline(0.0)
    assert deadline.passed
    assert deadline.left_s() == 0.0
    assert deadline.left_s(floor_s=2.0) == 2.0
    assert 9 < Deadline(10).left_s() <= 10


@pytest.mark.parametrize(("setting", "reached"), [("after_fold", 1), ("after_fold:3", 3), ("after_poll", 0)])
def test_a_crash_point_kills_at_its_turn(setting: str, reached: int) -> None:
    code = (
        "from consumers.crash import crash_point\n"
        "for n in range(1, 6):\n    print(n, flush=True); crash_point('after_fold')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KINTSUGI_CRASH_AT": setting},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (-signal.SIGKILL if reached else 0)
    assert done.stdout.split() == [str(n) for n in range(1, (reached or 5) + 1)]


def test_a_crash_point_that_does_not_exist_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import consumers.crash"],
        env={**os.environ, "KINTSUGI_CRASH_AT": "after_lunch"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "KINTSUGI_CRASH_AT" in done.stderr and "after_fold" in done.stderr


@pytest.mark.parametrize(
    "key", ["enable.auto.commit", "auto.offset.reset", "producer.acks", "producer.enable.idempotence"]
)
def test_settings_that_the_guarantees_rest_on_cannot_be_passed_through(key: str) -> None:
    with pytest.raises(ConfigError, match=key.removeprefix("producer.")):
        (producer_settings if "producer" in key else consumer_settings)("k", "g", {key: "x"})


@pytest.mark.parametrize("pair", [{"nonsense": "1"}, {"fetch.min.bytes": "many"}])
def test_a_setting_that_librdkafka_refuses_is_a_wrong_configuration(pair: dict[str, str]) -> None:
    settings = role_settings(
        kafka="127.0.0.1:1", registry="http://r", group="g", extra={"session.timeout.ms": "6000", **pair}
    )
    with pytest.raises(ConfigError, match=next(iter(pair))):
        roles._loop("projector", settings, cast(Handler, None), BrokerClock())


def test_settings_for_the_producer_do_not_reach_the_consumer() -> None:
    extra = {"producer.compression.type": "zstd", "fetch.min.bytes": "2"}
    assert "compression.type" not in consumer_settings("k", "g", extra)
    assert consumer_settings("k", "g", extra)["fetch.min.bytes"] == "2"
    assert producer_settings("k", "g", extra)["compression.type"] == "zstd"
    assert "fetch.min.bytes" not in producer_settings("k", "g", extra)


def test_the_protocol_says_how_assignments_come() -> None:
    assert is_incremental(consumer_settings("k", "g", {}))
    assert not is_incremental(consumer_settings("k", "g", {"partition.assignment.strategy": "range"}))
    newer = consumer_settings("k", "g", {"group.protocol": "consumer"})
    assert is_incremental(newer)
    assert "session.timeout.ms" not in newer


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"kafka: .*metrics_port: "):
        role_settings(kafka="", registry="http://r", group="g", metrics_port=70_000)


def test_waits_grow_to_a_bound_and_end_with_success() -> None:
    slot = Slot(0)
    delays = []
    for _ in range(12):
        slot.wait(slot.failures + 1)
        delays.append(slot.delay_s)
    assert delays[0] <= 0.2
    assert BACKOFF_S_MAX / 2 <= delays[-1] <= BACKOFF_S_MAX
    slot.begin(5, None)
    slot.done(9)
    assert slot.failures == 0


def test_the_position_is_never_moved_back() -> None:
    slot = Slot(0)
    slot.begin(10, 50)
    slot.done(20)
    assert not slot.dirty
    slot.done(51)
    assert slot.dirty
    slot.saved()
    assert (slot.dirty, slot.committed) == (False, 51)


def test_logs_are_json_with_ids_and_without_stacks() -> None:
    code = (
        "from consumers.telemetry import setup_logs, log\n"
        "setup_logs('recovery')\n"
        "try:\n    raise ValueError('boom')\n"
        "except ValueError as error:\n"
        "    log().warning('x', error=error, workflow_id='w', partitions={0: 1})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    line = json.loads(done.stderr)
    assert (line["error"], line["at"]) == ("ValueError", ["__main__:4"])
    assert (line["role"], line["workflow_id"], line["level"]) == ("recovery", "w", "warning")
    assert "Traceback" not in done.stderr


def test_a_broker_that_is_away_is_told_of_seldom_and_in_json() -> None:
    code = (
        "import time\n"
        "from confluent_kafka import Consumer\n"
        "from consumers.kafka import Reporter, consumer_settings\n"
        "from consumers.telemetry import setup_logs\n"
        "setup_logs('recovery')\n"
        "consumer = Consumer({**consumer_settings('127.0.0.1:1', 'g', {}), 'error_cb': Reporter()})\n"
        "end_s = time.monotonic() + 1\n"
        "while time.monotonic() < end_s: consumer.poll(0.1)\n"
        "consumer.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    told = [line.get("facility") or line["error"].split(":")[0] for line in lines]
    assert {"FAIL", "_TRANSPORT"} <= set(told)
    assert len(told) == len(set(told)), "each kind once"
