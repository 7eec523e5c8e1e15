"""What is stored about the machine: enough to compare figures, nothing that says whose machine it is."""

from __future__ import annotations

import getpass
import json
import platform
import re
import socket
from pathlib import Path

from bench.machine import facts, kafka_version


def test_facts_name_no_host_no_user_and_no_path() -> None:
    found = facts(None, own_stack=False)
    text = json.dumps(found)
    for name in {socket.gethostname(), platform.node(), str(Path.cwd()), str(Path.home())}:
        assert len(name) < 3 or name not in text
    assert not re.search(r'"[^"]*(?<!\w)/(?:\w|\.)[^"]*"', text), text
    assert getpass.getuser() not in found.values()


def test_facts_say_what_figures_depend_on() -> None:
    found = facts(None, own_stack=False)
    assert found["cores"] >= 1
    assert found["memory_gib"] > 0
    assert found["cpu"]
    assert found["kernel"].split()[0] == platform.system()
    assert found["python"] == platform.python_version()
    assert set(found["libraries"]) >= {"confluent-kafka", "librdkafka", "fastavro", "orjson", "psycopg"}
    assert re.fullmatch(r"[0-9a-f]{12}( and changes)?|unknown", found["commit"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["date"])
    assert (found["kafka"], found["postgres"]) == (None, None)


def test_the_version_of_our_own_broker_is_known() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", kafka_version())
