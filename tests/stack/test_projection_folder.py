"""Adding a table touches its folder alone: it is migrated, projected and verified."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import projections

_FOLD = '''
"""How many steps of each workflow were skipped."""

from projections.kit import Table, Touch, columns
from schemas.records.events import StepSkipped


def _key(event):
    return event.record.workflow_id


def _skipped(row, event):
    workflow_id, count = (event.record.workflow_id, 0) if row is None else (row[0], row[2])
    return (workflow_id, workflow_id, count + 1)


TABLE = Table(
    name="skipped_steps",
    columns=columns(3, id="uuid", workflow_id="uuid->workflows", skipped="int"),
    touches={StepSkipped: Touch(_key, _skipped)},
    since=3,
)
'''
_TABLE = """
CREATE TABLE skipped_steps (
  id UUID PRIMARY KEY,
  workflow_id UUID REFERENCES workflows(id) ON DELETE SET NULL,
  skipped INTEGER NOT NULL
);
"""
_USE = """
import sys
from engine.policy import default_policy
from engine.testing import Service, World
from projections.catalog import TABLES
from projections.migrate import migrate
from projections.reader import snapshot
from projections.store import Store
from projections.verify import TableCheck
from schemas.records.events import StepSkipped, StepSpec

url = sys.argv[1]
print("migrated", [step.name for step in migrate(url) if step.state == "applied now"])
world = World(default_policy())
service = Service(world, (StepSpec(step_id="a"), StepSpec(step_id="b")))
for step in ("a", "b"):
    service.emit(StepSkipped, step_id=step, reason="not needed")
store = Store(url)
store.claim(0)
store.apply(0, world.log, [], start=0, end=len(world.log))
store.close()
(table,) = (table for table in TABLES if table.name == "skipped_steps")
check = TableCheck()
for event in world.log:
    check.add(event)
with snapshot(url) as tables:
    print("rows", [row[2] for row in tables.rows(table)])
    print("drifts", [drift for t in TABLES for drift in check.compare(t.name, tables.rows(t))])
"""


def test_a_folder_is_all_that_a_new_table_takes(database: str, tmp_path: Path) -> None:
    package = tmp_path / "projections"
    shutil.copytree(Path(projections.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    folder = package / "skipped_steps"
    folder.mkdir()
    for name, text in (("__init__.py", ""), ("fold.py", _FOLD), ("table.sql", _TABLE)):
        (folder / name).write_text(text, encoding="utf-8")
    root = Path(projections.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", _USE, database],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["migrated ['0003_skipped_steps']", "rows [2]", "drifts []"]
