"""The local stack: Kafka, a schema registry and Postgres, from the environment, Docker, or child processes."""

from __future__ import annotations

from .backends import down, ensure, is_given, logs, status
from .local import PartStatus, kill_part, log_of
from .state import Addresses, StackDownError, StackError, addresses, home_of

__all__ = [
    "Addresses",
    "PartStatus",
    "StackDownError",
    "StackError",
    "addresses",
    "down",
    "ensure",
    "home_of",
    "is_given",
    "kill_part",
    "log_of",
    "logs",
    "status",
]
