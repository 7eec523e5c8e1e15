"""Commands as people type them, run in this process, which saves each of them a start."""

from __future__ import annotations

import json
import re
import sys
from typing import Any, NamedTuple

import pytest

from ops.cli import main


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, parsed."""
        return json.loads(self.out)


#: What librdkafka says of the producers of other tests, whose broker is gone: it writes past Python, to the same place.
_NOISE = re.compile(r"^%\d\|.*\n", re.MULTILINE)


class Cli:
    """`cli("errors", "list")` runs `kintsugi errors list`."""

    def __init__(
        self, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self._monkeypatch = monkeypatch
        self._capfd = capfd
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    def __call__(self, *arguments: str) -> Done:
        self._monkeypatch.setattr(sys, "argv", ["kintsugi", *arguments])
        self._capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = self._capfd.readouterr()
        return Done(code, out, _NOISE.sub("", err))
