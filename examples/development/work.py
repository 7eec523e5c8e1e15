"""The work of the steps, small but real: sources are written, compiled, their checks run, the result copied."""

from __future__ import annotations

import json
import os
import py_compile
import random
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from importlib.machinery import SourcelessFileLoader
from pathlib import Path

MODULES = 3
#: What a deployment leaves, whole or not at all.
MANIFEST = "manifest.json"
#: A tool that asks for 600 MB, and touches none of it: what it meets is the limit, and not the machine.
HUNGRY_TOOL = (sys.executable, "-I", "-S", "-c", "bytes(600 * 1024 * 1024)")
#: Ways in which generated code can be wrong for good.
SYNTAX = "syntax"
LOGIC = "logic"


class StepFailedError(Exception):
    """A step's failure with a code that Kintsugi classifies it by."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """A line of the ledger: the deployment was run, by which command (None: the first run) and as which run."""

    workflow_id: str
    command_id: str | None
    step_run_id: str
    pid: int


def generate(folder: Path, index: int, seed: int, defect: str | None) -> list[str]:
    """Write a few modules and the checks of their functions; returns the names of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(f"{seed}|{index}|code")
    checks = []
    names = []
    for number in range(MODULES):
        factor, offset, value = draw.randint(2, 99), draw.randint(1, 99), draw.randint(1, 999)
        wrong = defect is not None and number == MODULES - 1
        body = f"return value * {factor} + {offset}"
        if wrong and defect == SYNTAX:
            body = f"return value * * {factor}"
        elif wrong:
            body = f"return value * {factor} - {offset}"
        name = f"part_{number}.py"
        (folder / name).write_text(f"def part_{number}(value):\n    {body}\n", encoding="utf-8")
        checks.append(f"assert part_{number}({value}) == {value * factor + offset}, 'part_{number}({value})'\n")
        names.append(name)
    (folder / "checks.py").write_text("".join(checks), encoding="utf-8")
    return [*names, "checks.py"]


def build(folder: Path, sources: list[str]) -> list[str]:
    """Compile each source; StepFailedError says what the compiler says. Returns the names of the compiled files."""
    made = []
    for name in sources:
        target = folder / f"{name}c"
        try:
            py_compile.compile(str(folder / name), cfile=str(target), doraise=True)
        except py_compile.PyCompileError as error:
            raise StepFailedError("BUILD_FAILED", str(error.exc_value)) from None
        made.append(target.name)
    return made


def run_checks(folder: Path, artefacts: list[str]) -> int:
    """Load what was built and run its checks; StepFailedError names the one that fails. Returns their number."""
    names: dict[str, object] = {}
    for artefact in artefacts:
        code = SourcelessFileLoader(artefact, str(folder / artefact)).get_code(artefact)
        assert code is not None
        try:
            exec(code, names)
        except AssertionError as error:
            raise StepFailedError("TEST_FAILED", f"check failed: {error}") from None
    return len(artefacts) - 1


def deploy(folder: Path, target: Path, artefacts: list[str], *, execution: Execution) -> str:
    """Copy the artefacts and write a manifest, which appears whole or not at all. Returns its name."""
    target.mkdir(parents=True, exist_ok=True)
    for artefact in artefacts:
        shutil.copy2(folder / artefact, target / artefact)
    manifest = {**asdict(execution), "artefacts": artefacts, "deployed_at": time.time()}
    temporary = target / f"manifest.{execution.step_run_id}"
    temporary.write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    temporary.replace(target / MANIFEST)
    return MANIFEST


def append_to_ledger(path: Path, execution: Execution) -> None:
    """One line, in one write, so that several processes can share the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
    try:
        os.write(handle, (json.dumps(asdict(execution)) + "\n").encode())
    finally:
        os.close(handle)


def read_ledger(path: Path) -> list[Execution]:
    """Every execution so far."""
    if not path.exists():
        return []
    return [Execution(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
