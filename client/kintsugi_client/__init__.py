"""Checkpoints, error reports and recovery commands for workflow services.

client = Client.connect("builder")
development = client.workflow_type("development", version="1")

@development.step("build", timeout_ms=60_000)
def build(ctx):
    ctx.state["artifact"] = compile_sources(ctx.state["sources"])

development.start({"sources": "src"})
client.serve()                       # carry out recovery commands until SIGTERM
"""

from __future__ import annotations

from ._schemas.errors import ConfigError, KintsugiError, RetriableError, StateError
from ._schemas.migrations import Migrations
from ._schemas.objects import ObjectStoreError
from ._schemas.records.events import StepSpec
from .client import Client
from .errors import (
    BufferFullError,
    ClosedError,
    LeaseError,
    NotDeliveredError,
    OutcomeUnknownError,
    PausedError,
    RefusedError,
    RestoreError,
    StepCancelledError,
    SupersededError,
)
from .limits import LocalLimits, Scaler
from .outbox import Undelivered
from .policy import CheckpointPolicy
from .step import StepContext
from .types import WorkflowType
from .workflow import Workflow

__all__ = [
    "BufferFullError",
    "CheckpointPolicy",
    "Client",
    "ClosedError",
    "ConfigError",
    "KintsugiError",
    "LeaseError",
    "LocalLimits",
    "Migrations",
    "NotDeliveredError",
    "ObjectStoreError",
    "OutcomeUnknownError",
    "PausedError",
    "RefusedError",
    "RestoreError",
    "RetriableError",
    "Scaler",
    "StateError",
    "StepCancelledError",
    "StepContext",
    "StepSpec",
    "SupersededError",
    "Undelivered",
    "Workflow",
    "WorkflowType",
]
