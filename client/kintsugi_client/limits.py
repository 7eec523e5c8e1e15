"""Who gives a workflow more of what ran out: a port, and an implementation that limits child processes on this machine.

A size is always a multiple of the base, never of the size before: asked twice, it is the same.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ._schemas.errors import ConfigError, KintsugiError
from ._schemas.ids import uuid_bytes

#: By the engine's name of a resource: the limit of a process, how many of its units one of ours is, and ours.
_LIMITS = {
    "memory": ("RLIMIT_AS", 1024 * 1024, "MB"),
    "cpu": ("RLIMIT_CPU", 1, "s"),
    "disk": ("RLIMIT_FSIZE", 1024 * 1024, "MB"),
    "connections": ("RLIMIT_NOFILE", 1, "files"),
}
#: Workflows whose sizes are kept in memory, when no folder keeps them; the oldest go back to the base.
_WORKFLOWS_MAX = 10_000
#: Sets the limits, then becomes the program: a process of its own cannot be limited before it runs, and code between
#: fork and exec may deadlock in a process with threads.
_BECOME = (
    "import json, os, resource, sys\n"
    "for name, size in json.loads(sys.argv[1]):\n"
    "    kind = getattr(resource, name)\n"
    "    hard = resource.getrlimit(kind)[1]\n"
    "    size = size if hard == resource.RLIM_INFINITY else min(size, hard)\n"
    "    resource.setrlimit(kind, (size, size))\n"
    "os.execvp(sys.argv[2], sys.argv[2:])\n"
)


class Scaler(Protocol):
    """Gives a workflow, or one of its steps, more of a resource."""

    def scale(self, workflow_id: str, step_id: str | None, resource: str, factor: float) -> str:
        """Make it `factor` times its base; returns the size reached, in words. What it raises fails the command."""


class LocalLimits:
    """Limits per workflow for the child processes of its steps. Implements `Scaler`; thread-safe.

    `base` and `most` are by resource: memory (MB of address space), cpu (seconds), disk (MB of one file), connections
    (open files). With a folder the sizes outlive the process, and all that share it agree.
    """

    def __init__(self, base: Mapping[str, int], *, most: Mapping[str, int], folder: Path | None = None) -> None:
        for name, size in (*base.items(), *most.items()):
            if name not in _LIMITS or type(size) is not int or size < 1:
                raise ConfigError(f"limits: {name}: {size!r:.40} is no size of {', '.join(_LIMITS)}")
        if any(name not in most or most[name] < size for name, size in base.items()):
            raise ConfigError("limits: each resource has a most, not below its base")
        self._base = dict(base)
        self._most = dict(most)
        self._folder = folder
        self._sizes: OrderedDict[str, dict[str, int]] = OrderedDict()
        self._lock = threading.Lock()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def scale(self, workflow_id: str, step_id: str | None, resource: str, factor: float) -> str:
        """See `Scaler`. KintsugiError for what is not limited here, and beyond the most that this machine gives."""
        base = self._base.get(resource)
        if base is None:
            raise KintsugiError(f"no {resource} is limited here: it cannot be scaled")
        if not math.isfinite(factor) or factor <= 0:
            raise KintsugiError(f"a factor of {factor:g} is no size")
        size = math.ceil(base * factor)
        if size > self._most[resource]:
            raise KintsugiError(f"{size} {_LIMITS[resource][2]} of {resource} are more than the {self._most[resource]}")
        with self._lock:
            self._keep(workflow_id, {**self._kept(workflow_id), resource: size})
        return f"{size} {_LIMITS[resource][2]}"

    def size(self, workflow_id: str, resource: str) -> int:
        """What a workflow has of a resource."""
        with self._lock:
            return self._kept(workflow_id).get(resource, self._base[resource])

    def run(
        self, workflow_id: str, arguments: Sequence[str], *, timeout_s: float, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program under the workflow's limits, as `subprocess.run` does, with its output as text."""
        sizes = [(_LIMITS[name][0], self.size(workflow_id, name) * _LIMITS[name][1]) for name in self._base]
        shim = [sys.executable, "-I", "-S", "-c", _BECOME, json.dumps(sizes), *arguments]
        return subprocess.run(shim, timeout=timeout_s, capture_output=True, text=True, check=False, **options)

    def _kept(self, workflow_id: str) -> dict[str, int]:
        if self._folder is None:
            return self._sizes.get(workflow_id, {})
        try:
            found = json.loads(self._path(workflow_id).read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise KintsugiError(f"the limits of workflow {workflow_id} cannot be read: {error}") from error
        sizes = found if isinstance(found, dict) else {}
        return {n: s for n, s in sizes.items() if n in self._base and type(s) is int and 1 <= s <= self._most[n]}

    def _keep(self, workflow_id: str, sizes: dict[str, int]) -> None:
        if self._folder is None:
            self._sizes[workflow_id] = sizes
            while len(self._sizes) > _WORKFLOWS_MAX:
                self._sizes.popitem(last=False)
            return
        path = self._path(workflow_id)
        new = path.with_suffix(f".{os.getpid()}")
        try:
            new.write_text(json.dumps(sizes), encoding="utf-8")
            new.replace(path)  # readers see the old sizes or the new
        except OSError as error:
            raise KintsugiError(f"the limits of workflow {workflow_id} cannot be kept: {error}") from error

    def _path(self, workflow_id: str) -> Path:
        assert self._folder is not None
        try:
            uuid_bytes(workflow_id)
        except ValueError as error:
            raise KintsugiError(f"workflow_id: {error}") from None
        return self._folder / f"{workflow_id}.json"
