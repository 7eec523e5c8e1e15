"""A stack of a test's own, which it may break, whatever the environment names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ops import stack
from ops.setup import set_up
from ops.stack import Addresses
from ops.stack.state import VARIABLES


@contextmanager
def own_stack(home: Path) -> Iterator[Addresses]:
    """Started, set up, and gone at the end, also when it could not be started whole."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in VARIABLES.values():
            patch.delenv(variable, raising=False)
        try:
            at = stack.ensure(home)
            set_up(at)
            yield at
        finally:
            stack.down(home, purge=True)
