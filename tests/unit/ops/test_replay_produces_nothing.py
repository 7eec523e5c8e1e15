"""A replay cannot write to Kafka: its process has nothing to write with."""

from __future__ import annotations

import subprocess
import sys

_LOOK = """
import sys
import ops.replaying
from confluent_kafka import Producer, SerializingProducer
from confluent_kafka.admin import AdminClient
packages = ("ops", "consumers", "projections", "engine", "schemas")
writers = {Producer, SerializingProducer, AdminClient}
ours = [m for name, m in sys.modules.items() if name.partition(".")[0] in packages]
assert len(ours) > 20
print([m.__name__ for m in ours if any(isinstance(v, type) and v in writers for v in vars(m).values())])
"""


def test_no_module_of_the_replaying_process_knows_a_producer() -> None:
    """In a process of its own: other tests have loaded producers into this one."""
    done = subprocess.run([sys.executable, "-c", _LOOK], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
