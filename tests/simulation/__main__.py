"""Runs seeds until stopped: `python -m tests.simulation [--seed N] [--count N] [--plant DEFECT]`.

A failing seed is told at once, with the command that runs it again; the exit code is 1 when there was one. Stopped by
Ctrl-C or SIGTERM it says how far it came.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .run import Simulation
from .slips import ALL, planted

#: Seconds between two lines of progress.
PROGRESS_S = 10.0
#: Findings shown of one seed; the others mostly follow from the first.
SHOWN_MAX = 5


def again(seed: int, plant: str | None = None) -> str:
    """The command that runs one seed again."""
    return f".venv/bin/python -m tests.simulation --seed {seed} --count 1" + (f" --plant {plant}" if plant else "")


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 1 when a seed failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=None, help="how many; until stopped when it is not given")
    parser.add_argument("--plant", choices=ALL, default=None, help="a defect to be found")
    asked = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
    seed, failed, happened, began_s = asked.seed, list[int](), Counter[str](), time.monotonic()
    told_s = began_s
    end = None if asked.count is None else asked.seed + asked.count
    try:
        with planted(asked.plant) as slips:
            while end is None or seed < end:
                simulation = Simulation(seed, slips)
                findings = simulation.run()
                happened += simulation.happened
                if findings:
                    failed.append(seed)
                    print(f"seed {seed} failed; again: {again(seed, asked.plant)}")
                    print("".join(f"  {finding}\n" for finding in findings[:SHOWN_MAX]), end="", flush=True)
                seed += 1
                if time.monotonic() - told_s > PROGRESS_S:
                    told_s = time.monotonic()
                    rate = (seed - asked.seed) / (told_s - began_s)
                    print(f"seed {seed}: {len(failed)} failed, {rate:.0f} a second", flush=True)
    except KeyboardInterrupt:
        print(f"stopped; to go on: make soak SEED={seed}")
    print(f"{seed - asked.seed} seeds from {asked.seed} on, {len(failed)} failed")
    print("happened: " + ", ".join(f"{name} {count}" for name, count in sorted(happened.items())))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
