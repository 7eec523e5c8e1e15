"""Names what is missing, and the command that installs it, before anything is started. Runs on any Python 3."""

import os
import shutil
import subprocess
import sys

_INSTALL = {
    "venv": ("apt-get install python3-venv", "dnf install python3", "brew install python@3.11"),
    "mvn": ("apt-get install maven", "dnf install maven", "brew install maven"),
    "python": ("apt-get install python3.11", "dnf install python3.11", "brew install python@3.11"),
}


def _how(what):
    managers = ("apt-get", "dnf", "brew")
    for manager, command in zip(managers, _INSTALL[what]):  # noqa: B905 - runs on Python 3.8 too
        if shutil.which(manager):
            return command
    return _INSTALL[what][0]


def _docker_answers():
    if not shutil.which("docker"):
        return False
    try:
        done = subprocess.run(["docker", "info"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def problems():
    """Lines that say what is missing and how to get it; empty when all is there."""
    found = []
    if sys.version_info < (3, 11):
        version = "%d.%d" % sys.version_info[:2]
        found.append(
            "Python 3.11 or newer is needed, this is %s: %s, then make PYTHON=python3.11" % (version, _how("python"))
        )
    try:
        __import__("venv")
        __import__("ensurepip")
    except ImportError:
        found.append("Python's venv module is missing: %s" % _how("venv"))
    given = all(os.environ.get(name) for name in ("KINTSUGI_KAFKA", "KINTSUGI_REGISTRY", "KINTSUGI_POSTGRES"))
    if not given and not shutil.which("mvn") and not _docker_answers():
        found.append(
            "Neither a Docker engine nor Maven is here, one of them brings Kafka and the schema registry: %s"
            % _how("mvn")
        )
    return found


if __name__ == "__main__":
    missing = problems()
    for line in missing:
        print("missing: " + line, file=sys.stderr)
    sys.exit(1 if missing else 0)
