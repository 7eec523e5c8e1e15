"""What a service may see, beside the tree in `_schemas.errors`."""

from __future__ import annotations

from ._schemas.errors import KintsugiError, RetriableError


class BufferFullError(RetriableError):
    """Kafka is away and the buffer is full: the record was refused, nothing was dropped."""


class NotDeliveredError(RetriableError):
    """The broker did not confirm the record in time, or refused it. One that waits may still arrive."""


class ClosedError(KintsugiError):
    """The client is closed, or closing: no step begins, and nothing more is recorded."""


class RestoreError(KintsugiError):
    """A workflow cannot go on from where it should. `reason` is one of

    checkpoint_missing  neither the log nor the archive has it
    object_missing      its state is not in object storage
    corrupt             its bytes are not what was saved; `fault` says what is wrong with them
    key_missing         it is sealed with a key that is not here
    key_erased          its key was erased, so that nobody can read it
    schema              the state does not fit the JSON Schema of its version
    migration_missing, migration_failed, downgrade   it is of another version than the service
    unavailable         Kafka, the registry, the object store or the key provider was away for too long
    """

    def __init__(self, reason: str, message: str, *, fault: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        self.fault = fault

    @property
    def corrupt(self) -> bool:
        """Whether the bytes are not what was saved."""
        return self.reason == "corrupt"


class RefusedError(KintsugiError):
    """A command that cannot be carried out as it stands. `reason` is one of

    edit_invalid      the edit, or the result supplied for a skipped step, leaves no valid state
    never_ran         the step to undo has not completed
    no_compensation   nothing is registered that undoes the step
    not_reconcilable  nothing is registered that could tell whether the step took effect
    not_running       the step to cancel is not at work here
    """

    def __init__(self, reason: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class LeaseError(KintsugiError):
    """A part of a shared resource was not granted, or was taken away. `reason` is the coordinator's (timed_out,
    deadlock, too_large and others: see the operations handbook), or no_answer."""

    def __init__(self, reason: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        #: What the error of a step is classified by that lets it through.
        self.code = "DEADLOCK" if reason == "deadlock" else "COORDINATION_FAILURE"


class OutcomeUnknownError(KintsugiError):
    """To be raised by a step that cannot tell whether what it asked for took effect: a request without an answer.

    Such a step is not run again before it is reconciled, or a human has looked.
    """

    reason = "outcome_unknown"

    def __init__(self, message: str, *, dependency: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        #: The outside system that gave no answer.
        self.dependency = dependency


def reason_of(error: BaseException) -> str | None:
    """The short reason in the answer to a command that could not be carried out."""
    return error.reason if isinstance(error, RestoreError | RefusedError) else None


class SupersededError(KintsugiError):
    """This run was replaced by a command; what it still does is not recorded. Let it end."""


class StepCancelledError(SupersededError):
    """A command has cancelled this step, not the workflow. Let it end."""


class PausedError(KintsugiError):
    """The workflow was paused; this run of it ends here, between two steps."""
