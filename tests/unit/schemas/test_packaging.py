"""Both distributions carry every schema that their readers need, and nothing that only tests need."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from schemas.catalog import RELEASED, shipped
from schemas.generate import snake

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("project", "inside"), [(".", "schemas"), ("client", "kintsugi_client/_schemas")])
def test_wheel_has_the_schemas_and_no_fixtures(project: str, inside: str, tmp_path: Path) -> None:
    """Built from a copy of what it is made of, as a build leaves its traces in the folder it works in."""
    source = tmp_path / "source"
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for folder in ("schemas", "client"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=skipped)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    code = "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=source / project,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]) as wheel:
        names = set(wheel.namelist())
    for schema in shipped().values():
        folder = schema.topic.removeprefix("workflow.")
        assert f"{inside}/avsc/{folder}/{snake(schema.name)}.avsc" in names
    for path in RELEASED.glob("*/avsc/*.avsc"):
        assert f"{inside}/released/{path.relative_to(RELEASED).as_posix()}" in names
    assert not [name for name in names if "/released/" in name and "/avsc/" not in name]
    if project == "client":
        assert {name.split("/")[0].partition("-")[0] for name in names} == {"kintsugi_client"}
