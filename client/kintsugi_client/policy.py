"""When checkpoints are made and how they are kept: the policy's `checkpoints` block, for one workflow type."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ._schemas.canonical import CODECS
from ._schemas.errors import ConfigError

#: The story's `compression` block.
COMPRESS_FROM_BYTES = 1024
#: The story's `critical_steps`; a service that names its steps otherwise gives its own, or declares steps critical.
CRITICAL_STEPS_DEFAULT = frozenset({"code_generation", "build", "test", "deployment"})
#: What the client makes by itself. `manual` may be listed too: a service may always ask for one.
AUTOMATIC = ("step_start", "step_complete", "critical_point", "error_recovery")
CHECKPOINT_TYPES = (*AUTOMATIC, "manual")
_ALGORITHMS = ("gzip", "zstd")
#: Of `retention` and `redact` others take care: the keeper, and what shows states.
_BLOCK = ("auto_create", "types", "critical_steps", "redact", "retention", "compression")
_COMPRESSION = ("enabled", "algorithm", "min_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPolicy:
    """`types` says which automatic checkpoints are made; `auto_create=False` is the same as none of them.

    A type is chosen by rule, never by the caller: see `type_of`.
    """

    auto_create: bool = True
    types: Collection[str] = AUTOMATIC
    critical_steps: Collection[str] = CRITICAL_STEPS_DEFAULT
    codec: str = "gzip"
    compress_from_bytes: int = COMPRESS_FROM_BYTES

    def __post_init__(self) -> None:
        if not isinstance(self.auto_create, bool):
            raise ConfigError(f"checkpoints.auto_create: {self.auto_create!r:.80} is neither true nor false")
        for name, texts in (("types", self.types), ("critical_steps", self.critical_steps)):
            object.__setattr__(self, name, _texts(f"checkpoints.{name}", texts))
        unknown = sorted(set(self.types) - set(CHECKPOINT_TYPES))
        if unknown:
            raise ConfigError(f"checkpoints.types: {unknown[0]!r:.80} is none of {', '.join(CHECKPOINT_TYPES)}")
        if self.codec not in CODECS:
            raise ConfigError(f"codec {self.codec!r:.80} is none of {', '.join(CODECS)}")
        size = self.compress_from_bytes
        if type(size) is not int or size < 0:
            raise ConfigError(f"checkpoints.compression.min_size: {size!r:.80} is no number of bytes from 0")

    @classmethod
    def from_block(cls, block: Mapping[str, Any]) -> CheckpointPolicy:
        """From the `checkpoints` block of a policy file, with that file's defaults. ConfigError names the key."""
        _check_keys("checkpoints", block, _BLOCK)
        compression = block.get("compression", {})
        _check_keys("checkpoints.compression", compression, _COMPRESSION)
        algorithm, enabled = compression.get("algorithm", "gzip"), compression.get("enabled", True)
        if algorithm not in _ALGORITHMS:
            raise ConfigError(f"checkpoints.compression.algorithm: {algorithm!r:.80} is none of gzip, zstd")
        if not isinstance(enabled, bool):
            raise ConfigError(f"checkpoints.compression.enabled: {enabled!r:.80} is neither true nor false")
        return cls(
            auto_create=block.get("auto_create", True),
            types=block.get("types", AUTOMATIC),
            critical_steps=block.get("critical_steps", ()),
            codec=algorithm if enabled else "identity",
            compress_from_bytes=compression.get("min_size", COMPRESS_FROM_BYTES),
        )

    def type_of(self, moment: str, *, critical: bool) -> str | None:
        """The checkpoint to make at this moment (a type but `critical_point`); None when none is to be made.

        A completed critical step is a critical point where those are listed, else as any other step.
        """
        if moment == "manual":
            return moment
        if not self.auto_create:
            return None
        if moment == "step_complete" and critical and "critical_point" in self.types:
            return "critical_point"
        return moment if moment in self.types else None


def _check_keys(where: str, block: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(block, Mapping):
        raise ConfigError(f"{where}: a block of keys, not {type(block).__name__}")
    unknown = [key for key in block if key not in allowed]
    if unknown:
        raise ConfigError(f"{where}: {unknown[0]!r:.80} is none of {', '.join(allowed)}")


def _texts(where: str, texts: object) -> frozenset[str]:
    if not isinstance(texts, Collection) or isinstance(texts, str | bytes) or any(type(t) is not str for t in texts):
        raise ConfigError(f"{where}: a list of texts, not {texts!r:.80}")
    return frozenset(texts)
