"""What the log is told of an error: its code, its texts, the state as evidence, and what is known of its cause."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ._schemas.records.events import WorkflowErrorOccurred
from .checkpoints import new_id
from .errors import ClosedError, OutcomeUnknownError, SupersededError
from .texts import CODE_MAX, CONTEXT_MAX, STACK_MAX, STEP_ID_MAX, clean, describe, json_text

if TYPE_CHECKING:
    from .run import Run
    from .workflow import Workflow


def report(
    workflow: Workflow,
    run: Run,
    step_id: str,
    error: BaseException | None,
    *,
    code: str | None,
    reason: str | None,
    message: str | None,
    context: Mapping[str, Any] | None,
    dependency: str | None,
    step_run_id: str | None,
    evidence: bool,
) -> str:
    """See `Workflow.report_error`."""
    step_id = describe(step_id, STEP_ID_MAX)
    evidence_id = _evidence(workflow, step_id, run) if evidence else None
    error_id = new_id()
    if reason is None and isinstance(error, OutcomeUnknownError):
        reason = error.reason
    workflow.tell(
        WorkflowErrorOccurred,
        run,
        error_id=error_id,
        step_id=step_id,
        step_run_id=step_run_id,
        command_id=run.command_id,
        error_code=_code_of(error, code),
        error_message=describe("" if error is None else error) if message is None else describe(message),
        stack_trace=_stack_of(error),
        context=json_text(context, CONTEXT_MAX) if context else None,
        checkpoint_id=evidence_id,
        detected_by="service",
        reason=reason,
        dependency=_text_of(error, "dependency") if dependency is None else clean(dependency, CODE_MAX),
    )
    run.reported = True
    return error_id


def _evidence(workflow: Workflow, step_id: str, run: Run) -> str | None:
    try:
        return workflow.saver.evidence(step_id, run)
    except (SupersededError, ClosedError):
        raise
    except Exception as failure:
        workflow.vault.miss("evidence", workflow.workflow_id, failure)
        return None


def _code_of(error: BaseException | None, code: str | None) -> str:
    """The code given, else the exception's own `code`, else its class."""
    if isinstance(code, str) and code:
        return clean(code, CODE_MAX)
    return _text_of(error, "code") or ("Error" if error is None else clean(type(error).__name__, CODE_MAX))


def _text_of(error: BaseException | None, name: str) -> str | None:
    """An attribute of an exception, if it is text that says something."""
    try:
        found = getattr(error, name, None)
    except Exception:  # a property of the service's own may do anything
        return None
    return clean(found, CODE_MAX) if isinstance(found, str) and found else None


def _stack_of(error: BaseException | None) -> str | None:
    if error is None:
        return None
    try:
        return clean("".join(traceback.format_exception(error)), STACK_MAX)
    except Exception as failure:
        return f"<the stack trace cannot be written: {type(failure).__name__}>"
