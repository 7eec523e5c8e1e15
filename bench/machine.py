"""Facts about the machine that measured, to be stored with the figures: no name and no path of it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import confluent_kafka
import psycopg

from ops.stack import Addresses

_ROOT = Path(__file__).resolve().parents[1]
_LIBRARIES = ("confluent-kafka", "fastavro", "orjson", "psycopg", "zstandard", "rfc8785")
_POM = Path("ops") / "stack" / "pom.xml"


def facts(stack: Addresses | None, *, own_stack: bool) -> dict[str, Any]:
    """CPU, memory, kernel, versions, commit, date, and how busy the machine was before."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": {**{name: version(name) for name in _LIBRARIES}, "librdkafka": confluent_kafka.libversion()[0]},
        "kafka": None if stack is None else kafka_version() if own_stack else "not started by the benchmark",
        "postgres": None if stack is None else _postgres_version(stack.postgres),
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def kafka_version() -> str:
    """Version of the broker that the local stack starts."""
    text = (_ROOT / _POM).read_text(encoding="utf-8")
    found = re.search(r"<artifactId>kafka_[\d.]+</artifactId>\s*<version>([^<]+)</version>", text)
    return found.group(1) if found else "unknown"


def _postgres_version(url: str) -> str:
    with psycopg.connect(url) as connection:
        row = connection.execute("SHOW server_version").fetchone()
    return str(row[0]).split()[0] if row else "unknown"


def _commit() -> str:
    """The commit measured; a tree with changes of the program is told apart from it."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{head} and changes" if changed else head


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.strip()
