"""How a role inspects checkpoints: with the keys it was given, those of a batch fetched side by side beforehand."""

from __future__ import annotations

from collections.abc import Iterable

from engine.inspection import Inspector
from engine.policy import Policy
from schemas.errors import StateError
from schemas.keystore import Keystore, open_keystore
from schemas.records import Record
from schemas.records.events import CheckpointCreated
from schemas.sealing import key_number_of

from .settings import RoleSettings


class Inspection:
    """An inspector and the keystore behind it, if there is one."""

    def __init__(
        self,
        keystore: Keystore | None = None,
        *,
        keys_optional: bool = False,
        keep_states: bool = True,
        verify: bool = True,
    ) -> None:
        self._keystore = keystore if verify else None
        self.inspector = Inspector(
            None if keystore is None else keystore.get,
            keys_optional=keys_optional,
            keep_states=keep_states,
            verify=verify,
        )

    @property
    def has_keys(self) -> bool:
        """Whether fetching keys beforehand is worth while."""
        return self._keystore is not None

    def prefetch(self, records: Iterable[Record]) -> None:
        """Fetch the keys that these checkpoints are sealed with. What fails is asked for again, and told then."""
        if self._keystore is None:
            return
        wanted = []
        for record in records:
            if type(record) is CheckpointCreated and record.protection != "none" and record.state is not None:
                try:
                    wanted.append((record.workflow_id, key_number_of(record.state)))
                except StateError:
                    continue  # no sealed bytes: the inspection will say so
        if wanted:
            self._keystore.prefetch(wanted)


def inspection_of(settings: RoleSettings, policy: Policy, *, keep_states: bool = True) -> Inspection:
    """The inspection of a role. ConfigError when its keys are configured wrongly."""
    return Inspection(
        open_keystore(settings.keys, settings.objects),
        keys_optional=settings.keys_optional,
        keep_states=keep_states,
        verify=policy.corruption.verify_on_arrival,
    )
