"""The steps' work is real: what does not compile is not built, what computes wrongly fails its checks."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from examples.development import work
from examples.development.work import Execution, StepFailedError

EXECUTION = Execution(workflow_id="w", command_id="c", step_run_id="r", pid=1)


def test_generated_sources_build_and_pass_their_checks(tmp_path: Path) -> None:
    for index in range(20):
        folder = tmp_path / str(index)
        artefacts = work.build(folder, work.generate(folder, index, 1, None))
        assert work.run_checks(folder, artefacts) == work.MODULES


def test_generation_can_be_repeated(tmp_path: Path) -> None:
    names = work.generate(tmp_path / "a", 5, 1, None)
    assert work.generate(tmp_path / "b", 5, 1, None) == names
    assert [(tmp_path / "a" / n).read_bytes() for n in names] == [(tmp_path / "b" / n).read_bytes() for n in names]


def test_what_does_not_compile_is_not_built(tmp_path: Path) -> None:
    sources = work.generate(tmp_path, 1, 1, work.SYNTAX)
    with pytest.raises(StepFailedError, match=r"invalid syntax \(part_2.py, line 2\)") as caught:
        work.build(tmp_path, sources)
    assert caught.value.code == "BUILD_FAILED"


def test_what_computes_wrongly_is_built_and_fails_its_check(tmp_path: Path) -> None:
    artefacts = work.build(tmp_path, work.generate(tmp_path, 1, 1, work.LOGIC))
    with pytest.raises(StepFailedError, match=r"check failed: part_2\(\d+\)") as caught:
        work.run_checks(tmp_path, artefacts)
    assert caught.value.code == "TEST_FAILED"


def test_a_deployment_copies_the_artefacts_and_says_who_made_it(tmp_path: Path) -> None:
    artefacts = work.build(tmp_path / "work", work.generate(tmp_path / "work", 1, 1, None))
    target = tmp_path / "target"
    manifest = json.loads((target / work.deploy(tmp_path / "work", target, artefacts, execution=EXECUTION)).read_text())
    assert manifest["command_id"] == "c"
    assert manifest["artefacts"] == artefacts
    assert sorted(p.name for p in target.iterdir()) == sorted([*artefacts, "manifest.json"])
    assert work.run_checks(target, artefacts) == work.MODULES


def test_a_ledger_takes_lines_from_many_writers(tmp_path: Path) -> None:
    ledger = tmp_path / "deep" / "ledger.jsonl"
    assert work.read_ledger(ledger) == []
    executions = [Execution(workflow_id=f"w{n}", command_id=None, step_run_id=f"r{n}", pid=n) for n in range(50)]
    threads = [threading.Thread(target=work.append_to_ledger, args=(ledger, e)) for e in executions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(work.read_ledger(ledger), key=lambda e: e.pid) == executions
