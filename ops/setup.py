"""What a deployment does once: topics, schemas, tables. Doing it again changes nothing."""

from __future__ import annotations

from projections.migrate import migrate
from schemas.catalog import shipped
from schemas.registry import Registry

from .kafka_topics import create
from .stack import Addresses


def set_up(at: Addresses) -> None:
    """Make what is missing. RetriableError when a server is away, FatalError when one refuses."""
    create(at.kafka)
    with Registry(at.registry) as registry:
        registry.register(shipped().values())
    migrate(at.postgres)
