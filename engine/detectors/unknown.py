"""Errors that no other detector and no code explains: never dropped, and grouped by what they look like.

Two are alike when they come from the same step of the same kind of workflow with the same code, and their messages and
the last frames of their stacks differ in numbers, ids and quoted names alone.
"""

from __future__ import annotations

from schemas.fingerprint import fingerprint_of
from schemas.records.events import WorkflowErrorOccurred


def fingerprint(error: WorkflowErrorOccurred) -> str:
    """The one its service gave it, for it alone could read the texts; else of the error itself."""
    return error.fingerprint or fingerprint_of(
        error.workflow_type, error.step_id, error.error_code, error.error_message, error.stack_trace
    )
