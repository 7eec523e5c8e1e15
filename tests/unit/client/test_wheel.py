"""The client's wheel: what a service installs, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
#: Names of this repository's other packages; a service may have its own of the same name.
FOREIGN = ("engine", "consumers", "projections", "ops", "schemas", "bench", "examples", "tests")
#: A record is written in the service's process and read in it, also one that an earlier release wrote.
ROUND_TRIP = """
import sys
sys.path[:0] = [{unpacked!r}, {installed!r}]
import kintsugi_client
assert kintsugi_client.__file__.startswith({unpacked!r}), kintsugi_client.__file__
from kintsugi_client._schemas.catalog import released, shipped
from kintsugi_client._schemas.codec import Codec
from kintsugi_client._schemas.records import RECORD_TYPES
from kintsugi_client._schemas.records.events import StepSpec, WorkflowStarted
assert set(shipped()) == set(RECORD_TYPES) and len(released()) >= len(shipped())
record = WorkflowStarted(
    event_id="e", workflow_id="w", workflow_type="t", occurred_at=1, producer="p",
    workflow_version="1", steps=(StepSpec(step_id="a"), StepSpec(step_id="b", depends_on=("a",))), input="{{}}",
)
assert Codec().decode(Codec().encode(record)) == record
client = kintsugi_client.Client.connect("s", kafka="127.0.0.1:1")
workflow = client.workflow_type("t").begin({{"n": 1}})
with workflow.step("a") as step:
    step.state["n"] = 2
assert client.close(0).waiting == 5
for name in {foreign!r}:
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(name + " can be imported")
print("as it should be")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, so that nothing is left in the work tree; without any index."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("client", "schemas"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder / "out"), str(folder / "client")], check=True, timeout=120)
    (built,) = (folder / "out").iterdir()
    assert built.name == "kintsugi_client-0.3.0-py3-none-any.whl"
    return zipfile.ZipFile(built)


def test_it_installs_one_package(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"kintsugi_client", "kintsugi_client-0.3.0.dist-info"}
    names = set(wheel.namelist())
    assert {"kintsugi_client/__init__.py", "kintsugi_client/py.typed", "kintsugi_client/_schemas/py.typed"} <= names


def test_it_holds_every_schema_and_no_other_data(wheel: zipfile.ZipFile) -> None:
    inside = "kintsugi_client/_schemas/"
    packed = {name.removeprefix(inside) for name in wheel.namelist() if name.endswith(".avsc")}
    assert packed == {str(p.relative_to(ROOT / "schemas")) for p in (ROOT / "schemas").rglob("*.avsc")}
    kinds = {Path(name).suffix or Path(name).name for name in wheel.namelist() if ".dist-info/" not in name}
    assert kinds == {".py", ".avsc", ".typed"}


def test_it_asks_for_what_the_client_imports_and_no_more(wheel: zipfile.ZipFile) -> None:
    metadata = Parser().parsestr(wheel.read("kintsugi_client-0.3.0.dist-info/METADATA").decode())
    declared = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = metadata.get_all("Requires-Dist") or []
    always = [n for n in needed if "extra ==" not in n]
    assert [n.replace(" ", "") for n in always] == declared["dependencies"]
    assert not any(word in n for n in needed for word in ("psycopg", "pydantic", "click", "kintsugi"))


def test_it_works_where_nothing_else_of_this_repository_is(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    # -S: no site-packages, and so no editable install; the libraries that the client needs are named by their folder.
    script = ROUND_TRIP.format(unpacked=str(tmp_path), installed=sysconfig.get_paths()["purelib"], foreign=FOREIGN)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], cwd=tmp_path, env={}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "as it should be", done.stderr
