"""What a role is told at start. Wrong values stop it before it touches anything."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.errors import ConfigError

from .keeper.orphans import GRACE_S, GRACE_S_MIN
from .keeper.role import RETENTION_INTERVAL_S


class RoleSettings(BaseModel):
    """Settings of one role. `extra` are librdkafka's own, "producer." before those of the producer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kafka: str = Field(min_length=1)
    registry: str = Field(min_length=1)
    postgres: str = ""
    objects: str = ""
    keys: str = ""
    keys_optional: bool = False
    group: str = Field(min_length=1, max_length=255)
    metrics_port: int = Field(0, ge=0, le=65535)
    metrics_host: str = Field("127.0.0.1", min_length=1)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    archive_age_s: float = Field(60.0, gt=0, le=3600)
    scrub_rate: float = Field(2_000.0, ge=1, le=1_000_000)
    retention_interval_s: float = Field(RETENTION_INTERVAL_S, gt=0, le=86_400)
    orphan_grace_s: float = Field(GRACE_S, ge=GRACE_S_MIN, le=365 * 86_400)
    stop_timeout_s: float = Field(15.0, gt=0, le=600)
    extra: dict[str, str] = {}


def role_settings(**values: object) -> RoleSettings:
    """Validated settings; ConfigError names each wrong key, its value and what is allowed."""
    try:
        return RoleSettings.model_validate(values)
    except ValidationError as error:
        lines = [f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']} (got {e['input']!r:.80})" for e in error.errors()]
        raise ConfigError("; ".join(lines)) from None
