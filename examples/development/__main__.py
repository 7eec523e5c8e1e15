"""`python -m examples.development`: starts its share of workflows, carries out commands, ends on Ctrl-C or SIGTERM."""

from __future__ import annotations

import argparse
import logging
import signal
import tempfile
import uuid
from pathlib import Path
from threading import Event

from .service import Development, Settings, workflow_id_of

_CLOSE_TIMEOUT_S = 10.0


def settings_of(arguments: list[str] | None = None) -> Settings:
    """Settings from the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.development", description=__doc__)
    parser.add_argument("--count", type=int, default=10, help="workflows to start (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the fault plan (default: %(default)s)")
    parser.add_argument("--run", default="", help="name of the run, part of the workflow ids (default: a new one)")
    parser.add_argument(
        "--scratch", type=Path, help="folder for sources, artefacts and the ledger (default: a new one)"
    )
    parser.add_argument(
        "--per-second", type=float, default=5.0, help="workflows started a second (default: %(default)s)"
    )
    parser.add_argument("--work-ms", type=int, default=150, help="time a step takes at least (default: %(default)s)")
    given = parser.parse_args(arguments)
    if given.count < 0 or given.first < 0 or given.per_second <= 0 or given.work_ms < 0:
        parser.error("--count, --first and --work-ms may not be negative, --per-second must be above 0")
    return Settings(
        run=given.run or uuid.uuid4().hex[:12],
        scratch=(given.scratch or Path(tempfile.mkdtemp(prefix="kintsugi-development-"))).resolve(),
        seed=given.seed,
        first=given.first,
        count=given.count,
        per_second=given.per_second,
        work_ms=given.work_ms,
    )


def main() -> None:
    """Run until told to stop. Exit code 1 when Kafka did not confirm everything."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = settings_of()
    stop = Event()
    for wish in (signal.SIGTERM, signal.SIGINT):
        signal.signal(wish, lambda *_: stop.set())
    development = Development(settings)
    print(f"run {settings.run}, scratch folder {settings.scratch}", flush=True)
    if not development.client.listen():
        print("no commands yet: Kafka has assigned no partition", flush=True)
    number = development.start_all(stop)
    print(f"{number} workflows started, the first is {workflow_id_of(settings.run, settings.first)}", flush=True)
    stop.wait()
    lost = development.client.close(_CLOSE_TIMEOUT_S)
    print(f"commands: {development.client.stats()}", flush=True)
    if lost:
        print(f"not confirmed by Kafka: {lost}", flush=True)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
