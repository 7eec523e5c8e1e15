"""Servers of a test's own, which it may break: a broker and Postgres without the rest of a stack, and a small disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil
import psycopg

from ops.stack import servers
from ops.stack.processes import free_port
from ops.stack.state import Part

from .kit import wait_for

#: What a write-ahead log takes in one piece, so that it fits a small disk.
WAL_SEGMENT_BYTES = 1024 * 1024
START_S = 60.0
_USER = servers.postgres_user()


class Disk:
    """A file system of a fixed size, seen by those alone who are started through it, and by this test through /proc.

    It goes with the process that holds it, and that with ours.
    """

    def __init__(self, size_bytes: int) -> None:
        """OSError where mounting is not allowed."""
        self._point = Path(tempfile.mkdtemp(prefix="kintsugi-disk-"))
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs -o size={size_bytes},mode=777 none {self._point}"
             " && echo mounted && exec cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"mounted\n":
            self.close()
            raise OSError("mounting is not allowed here")
        self.through = ("nsenter", "--mount", f"--target={self._holder.pid}")
        #: Its folder, for those who are started through it, and for this test.
        self.inside, self.folder = self._point, Path(f"/proc/{self._holder.pid}/root{self._point}")

    @property
    def free_bytes(self) -> int:
        """What is left of it."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def fill(self, left_bytes: int) -> None:
        """Leave so little of it."""
        ballast = self.folder / "ballast"
        with ballast.open("wb") as out:
            while (room := self.free_bytes - left_bytes) > 0:
                out.write(bytes(min(room, 1024 * 1024)))
                out.flush()

    def clear(self) -> None:
        """Give the room back."""
        (self.folder / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        """Give it up."""
        self._holder.kill()
        self._holder.communicate()
        shutil.rmtree(self._point, ignore_errors=True)


@cache
def may_mount() -> bool:
    """Whether there can be such disks."""
    try:
        Disk(1024 * 1024).close()
    except OSError:
        return False
    return True


class Server(ABC):
    """A process that outlives nobody: it may be killed, frozen, limited and started again over its data."""

    #: Whom it runs as, if not ourselves.
    user: int | None = None

    def __init__(self, home: Path, name: str) -> None:
        self.log = home / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen: list[psutil.Process] = []

    @abstractmethod
    def command(self) -> tuple[Sequence[str], int | None]:
        """What runs it, and as whom."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it is ready."""

    def begin(self) -> None:
        """Start it, if it does not run."""
        if not self.running:
            command, user = self.command()
            with self.log.open("ab") as out:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    user=user,
                    group=user,
                    extra_groups=[] if user is not None else None,
                )

    def start(self) -> None:
        """Start it if it does not run, and wait until it answers."""
        self.begin()

        def ready() -> bool:
            assert self.running, f"{self.log.name} ended:\n{self.log.read_text(errors='replace')[-3000:]}"
            return self.answers()

        wait_for(f"{self.log.name} answers", ready, START_S)

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def family(self) -> list[psutil.Process]:
        """It and its children; nobody when it has ended, and another process may have its number."""
        if self._process is not None and self.running:
            with contextlib.suppress(psutil.NoSuchProcess):
                own = psutil.Process(self._process.pid)
                return [own, *own.children(recursive=True)]
        return []

    def limit_files(self, size_bytes: int | None) -> None:
        """From now on the kernel lets no file of it grow beyond this; None: as far as there is room."""
        limit = "unlimited" if size_bytes is None else str(size_bytes)
        for family in (self.family[:1], self.family):  # those that it starts meanwhile have the limit from it
            for process in family:
                command = ["prlimit", f"--pid={process.pid}", f"--fsize={limit}:"]
                done = subprocess.run(
                    command, capture_output=True, text=True, check=False, user=self.user, group=self.user
                )
                assert done.returncode == 0 or not process.is_running(), done.stderr

    def freeze(self) -> None:
        """It keeps its connections, and answers nothing."""
        self._frozen = self.family
        for process in self._frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        for process in self._frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        self._frozen = []

    def kill(self) -> None:
        """As when the machine's power fails, but for what is in the page cache."""
        family = self.family
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, 20)
        if self._process is not None:
            self._process.wait(20)


class Postgres(Server):
    """One server. Its folder is below `home`, or on `disk`; its write-ahead log always below `home`."""

    user = _USER

    def __init__(self, home: Path, *, disk: Disk | None = None, options: Sequence[str] = ()) -> None:
        super().__init__(home, "postgres")
        self.port = free_port()
        self._disk, self._options = disk, options
        self.folder = (disk.inside if disk else home) / "data"
        self._wal = home / "wal"

    @property
    def url(self) -> str:
        """Of its database."""
        return f"postgresql://kintsugi@127.0.0.1:{self.port}/kintsugi"

    def make(self) -> None:
        """Make its folder."""
        self.run("initdb", "-D", str(self.folder), "-U", "kintsugi", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8",
                 "--no-sync", "--no-instructions", f"--wal-segsize={WAL_SEGMENT_BYTES >> 20}",
                 f"--waldir={self._wal}")  # fmt: skip

    def copy(self, primary: Postgres) -> None:
        """Make it a streaming replica of another."""
        self.run("pg_basebackup", "-d", primary.url, "-D", str(self.folder), f"--waldir={self._wal}",
                 "--write-recovery-conf", "--checkpoint=fast", "--no-sync")  # fmt: skip

    def run(self, program: str, *arguments: str) -> None:
        """One of Postgres's programs, where the server runs and as the same user."""
        command, user = self._through(program, *arguments)
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd="/",
                              user=user, group=user, extra_groups=[] if user is not None else None)  # fmt: skip
        assert done.returncode == 0, done.stderr

    def _through(self, program: str, *arguments: str) -> tuple[list[str], int | None]:
        command = [str(servers.postgres_programs() / program), *arguments]
        if self._disk is None:
            return command, _USER
        return [*self._disk.through, f"--setuid={_USER}", f"--setgid={_USER}", *command], None

    def command(self) -> tuple[Sequence[str], int | None]:
        options = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", *self._options)
        return self._through("postgres", "-D", str(self.folder), f"-cport={self.port}", *(f"-c{o}" for o in options))

    def answers(self) -> bool:
        try:
            with psycopg.connect(self.url.rsplit("/", 1)[0] + "/postgres", autocommit=True, connect_timeout=2) as c:
                if not c.execute("SELECT 1 FROM pg_database WHERE datname = 'kintsugi'").fetchone():
                    c.execute("CREATE DATABASE kintsugi")
            return True
        except psycopg.OperationalError:
            return False


class Broker(Server):
    """One broker of Kafka."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, "kafka")
        self._home = home
        self._part = Part(free_port(), extra={"controller": free_port()})
        self.address = f"127.0.0.1:{self._part.port}"

    def command(self) -> tuple[Sequence[str], int | None]:
        return servers.kafka_command(self._home, servers.install(lambda _: None), self._part), None

    def answers(self) -> bool:
        return servers.kafka_answers(self._part)


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that Postgres's own user gets to, which pytest's `tmp_path` is not."""
    made = Path(tempfile.mkdtemp(prefix="kintsugi-servers-"))
    made.chmod(0o755)
    if _USER is not None:
        os.chown(made, _USER, _USER)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
