"""Checkpoints, error reports and recovery commands for workflow services.

client = Client.connect("builder")
development = client.workflow_type("development", version="1")

@development.step("build", timeout_ms=60_000)
def build(ctx):
    ctx.state["artifact"] = compile_sources(ctx.state["sources"])

client.listen()                      # carry out recovery commands
development.start({"sources": "src"})
"""

from __future__ import annotations

from ._schemas.errors import ConfigError, KintsugiError, RetriableError, StateError
from .client import Client
from .errors import BufferFullError, NotDeliveredError, RestoreError, SupersededError
from .outbox import Undelivered
from .types import WorkflowType
from .workflow import StepContext, Workflow

__all__ = [
    "BufferFullError",
    "Client",
    "ConfigError",
    "KintsugiError",
    "NotDeliveredError",
    "RestoreError",
    "RetriableError",
    "StateError",
    "StepContext",
    "SupersededError",
    "Undelivered",
    "Workflow",
    "WorkflowType",
]
