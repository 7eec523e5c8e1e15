"""Where a run begins: what it takes over, and what the log is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ._schemas.records.events import StateMigrated
from .checkpoints import Chain, now_us

if TYPE_CHECKING:
    from ._schemas.migrations import Link
    from .run import Run
    from .workflow import Workflow

_COUNT_MAX = 2**31 - 1


class Standing:
    """A verified checkpoint, the workflow's input, or what the run before left in memory."""

    __slots__ = (
        "chain",
        "checkpoint_id",
        "completed",
        "data",
        "epoch",
        "from_input",
        "links",
        "metadata",
        "step_id",
    )

    def __init__(
        self,
        data: dict[str, Any],
        *,
        completed: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        chain: Chain | None = None,
        epoch: int = 0,
        checkpoint_id: str | None = None,
        step_id: str = "",
        from_input: bool = False,
        links: tuple[Link, ...] = (),
    ) -> None:
        self.data = data
        self.completed = completed or []
        self.metadata = metadata or {}
        self.chain = chain
        self.epoch = epoch
        self.checkpoint_id = checkpoint_id
        self.step_id = step_id
        self.from_input = from_input
        #: Migrations that brought the data to the service's version.
        self.links = links


def take_over(run: Run, before: Run) -> None:
    """Let a run begin with what the one before it has."""
    run.data, run.completed, run.metadata = before.data, list(before.completed), dict(before.metadata)
    run.epoch = max(run.epoch, before.epoch)


def stand(workflow: Workflow, run: Run, standing: Standing) -> dict[str, Any]:
    """Let the run begin where it should; returns what the log is to be told of a restored checkpoint."""
    restores = max(_restores(run.metadata), _restores(standing.metadata))
    run.data, run.completed, run.metadata = standing.data, standing.completed, dict(standing.metadata)
    workflow.chain = _chain(workflow.chain, run, standing)
    run.epoch = max(run.epoch, standing.epoch)
    if standing.checkpoint_id is None:
        return {}
    restored: dict[str, Any] = {"restored_at": now_us(), "restore_count": restores + 1}
    run.metadata.update(restored, restored_from=standing.checkpoint_id)
    return restored


def tell_standing(
    workflow: Workflow, run: Run, standing: Standing, restored: Mapping[str, Any], reason: str | None
) -> None:
    """Tell the log what was migrated and restored. Object storage may be asked: the workflow's lock is not held."""
    if standing.checkpoint_id is None:
        return
    _tell_migrated(workflow, run, standing)
    workflow.saver.restored(
        standing.step_id,
        run,
        checkpoint_id=standing.checkpoint_id,
        command_id=run.command_id,
        reason=reason,
        **restored,
    )


def _chain(own: Chain, run: Run, standing: Standing) -> Chain:
    """Numbers go on above all that anybody knows; the links go on from where the run begins."""
    if standing.from_input and run.epoch == 0:
        return own  # of an engine that counts no runs
    begins = Chain() if standing.from_input else standing.chain or own
    return Chain(max(own.sequence, begins.sequence, run.last_sequence), begins.digest, begins.chain_digest)


def _tell_migrated(workflow: Workflow, run: Run, standing: Standing) -> None:
    for link in standing.links:
        workflow.tell(
            StateMigrated,
            run,
            checkpoint_id=standing.checkpoint_id,
            from_version=link.from_version,
            to_version=link.to_version,
            digest_before=link.digest_before,
            digest_after=link.digest_after,
            command_id=run.command_id,
            # States of the versions between are never saved: what they look like does not matter.
            state_schema=workflow.kind.state_schema if link is standing.links[-1] else None,
        )


def _restores(metadata: Mapping[str, Any]) -> int:
    """How often the state was restored. Metadata are data of the service too, so anything may stand there."""
    count = metadata.get("restore_count", 0)
    return count if type(count) is int and 0 <= count < _COUNT_MAX else 0
