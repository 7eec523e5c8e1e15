"""Brings the peers, pinned and checked, into a folder of this version; needs Maven and Python's venv."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

_HERE = Path(__file__).parent
_PINNED = ("pom.xml", "jars.sha256", "quix.lock")
_TIMEOUT_S = 900


def folder() -> Path:
    """Where this version's peers are kept, per user."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kintsugi"
    digest = sha256(b"".join((_HERE / name).read_bytes() for name in _PINNED)).hexdigest()
    return cache / f"peers-{digest[:16]}"


def install(say: Callable[[str], None]) -> Path:
    """Kafka Connect's and Debezium's jars, and Quix Streams in an environment of its own. RuntimeError without them."""
    target = folder()
    if (target / "complete").exists():
        return target
    shutil.rmtree(target, ignore_errors=True)  # one that was begun
    target.mkdir(parents=True)
    say("bringing Debezium's sink with Maven, and Quix Streams with pip (once per user)")
    maven = shutil.which("mvn")
    if maven is None:
        raise RuntimeError("Maven is needed to bring Kafka Connect and Debezium's sink")
    with tempfile.TemporaryDirectory() as scratch:  # Maven writes beside the pom
        shutil.copy(_HERE / "pom.xml", scratch)
        _done([maven, "-q", "-B", "-f", f"{scratch}/pom.xml", "package", f"-Dpeers.dir={target / 'jars'}"])
    _check(target / "jars")
    _done([sys.executable, "-m", "venv", str(target / "quix")])
    python = str(target / "quix" / "bin" / "python")
    _done([python, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(_HERE / "quix.lock")])
    (target / "complete").touch()
    return target


def _check(jars: Path) -> None:
    """Exactly the jars that are pinned, byte for byte."""
    pinned: dict[str, str] = {}
    for line in (_HERE / "jars.sha256").read_text("utf-8").splitlines():
        digest, name = line.split()
        pinned[name] = digest
    found = {path.name: sha256(path.read_bytes()).hexdigest() for path in jars.glob("*.jar")}
    if found != pinned:
        wrong = sorted(name for name in found.keys() | pinned.keys() if found.get(name) != pinned.get(name))
        raise RuntimeError(f"jars are not those of jars.sha256: {', '.join(wrong)}")


def _done(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{Path(command[0]).name} did not end within {_TIMEOUT_S} s") from None
    if done.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name} failed:\n{(done.stdout + done.stderr)[-2000:]}")
