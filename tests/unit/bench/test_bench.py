"""The benchmarks run, and what is stored of them."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_a_benchmark_runs_and_stores_its_figures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "engine", "--quick", "--results", str(tmp_path), "--output", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / "engine.json").read_text(encoding="utf-8"))
    assert stored["machine"]["python"] == platform.python_version()
    assert "fold + decide" in [figure["figure"] for figure in stored["figures"]]
    assert all(figure["measured"] > 0 for figure in stored["figures"])
    assert json.loads(done.stdout)


def test_committed_results_are_whole_and_name_no_path() -> None:
    files = sorted((ROOT / "bench" / "results").glob("*.json"))
    assert len(files) >= 6
    for file in files:
        text = file.read_text(encoding="utf-8")
        stored = json.loads(text)
        assert not stored["quick"]
        assert stored["machine"]["commit"] and stored["figures"]
        assert "/root" not in text and "/home" not in text
