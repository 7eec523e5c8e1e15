"""The workflows that this process holds, and those that ended here."""

from __future__ import annotations

import threading
from collections import OrderedDict

from ._schemas.errors import ConfigError
from .workflow import Workflow

#: Workflows that ended here, remembered so that a command still on its way does not run them again. 100 bytes each.
ENDED_MAX = 10_000


class Held:
    """Safe to share between threads."""

    def __init__(self) -> None:
        self._workflows: dict[str, Workflow] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._workflows)

    def all(self) -> list[Workflow]:
        """Every workflow here."""
        with self._lock:
            return list(self._workflows.values())

    def get(self, workflow_id: str) -> Workflow | None:
        """One workflow; None when it is not here."""
        with self._lock:
            return self._workflows.get(workflow_id)

    def add(self, workflow: Workflow) -> None:
        """Hold a new workflow. ConfigError when its id is held already."""
        with self._lock:
            if workflow.workflow_id in self._workflows:
                raise ConfigError(f"workflow {workflow.workflow_id} is already here")
            self._workflows[workflow.workflow_id] = workflow

    def get_or_add(self, workflow: Workflow) -> Workflow:
        """The workflow with this id that is here, else this one."""
        with self._lock:
            return self._workflows.setdefault(workflow.workflow_id, workflow)

    def drop(self, workflow_id: str) -> Workflow | None:
        """Let go of a workflow that is, or will be, another process's."""
        with self._lock:
            return self._workflows.pop(workflow_id, None)

    def end(self, workflow_id: str) -> None:
        """Let go of a workflow that has reached its end, and remember that it has."""
        with self._lock:
            self._workflows.pop(workflow_id, None)
            self._ended[workflow_id] = None
            while len(self._ended) > ENDED_MAX:
                self._ended.popitem(last=False)

    def has_ended(self, workflow_id: str) -> bool:
        """Whether a workflow ended here."""
        with self._lock:
            return workflow_id in self._ended
