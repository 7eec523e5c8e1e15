"""The run itself: starts the stack, the roles and the services, kills two of them, waits, and gathers the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from examples.development.service import LEDGER
from examples.development.work import read_ledger
from ops import stack
from ops.output import MISMATCH, OK
from ops.setup import set_up
from ops.stack import Addresses

from . import report
from .children import Child, Children
from .plan import Plan, Settings, plan_of
from .report import Check, Report
from .screen import ENDED, Screen
from .tables import Tables, ends_of

POLICY = Path(__file__).parent / "policy.yaml"
#: Workflows started a second by all services together: 240 take 24 s, long enough to kill somebody in the middle.
STARTS_PER_SECOND = 10.0
SERVICES = 2
#: Shares of the workflows after which the first recovery process and the first service process are killed.
KILL_RECOVERY_AT = 1 / 3
KILL_SERVICE_AT = 1 / 2
#: What a process manager takes to notice and start anew.
REPLACE_AFTER_S = 3.0
ROLES_TIMEOUT_S = 60.0
#: After the last workflow has started; no ladder of the demo's policy takes longer than a minute.
REPAIRS_TIMEOUT_S = 90.0
CATCH_UP_TIMEOUT_S = 30.0
#: The last answer of a service to a command follows its workflow's end within milliseconds.
SETTLE_TIMEOUT_S = 10.0
VERIFY_TIMEOUT_S = 120.0
_POLL_S = 0.25


@dataclass(slots=True)
class _Victim:
    """A process that is killed with -9 on the way, and how another one like it is started."""

    child: Child
    arguments: tuple[str, ...]
    at_started: int
    killed_at_s: float = 0.0
    replaced: bool = False


def prepare(screen: Screen) -> Addresses:
    """The stack with topics, schemas and tables. What is there already is left as it is."""
    at = stack.ensure(say=screen.say)
    set_up(at)
    screen.say("topics, schemas and tables are there")
    return at


def conduct(settings: Settings, screen: Screen) -> Report:
    """Run everything and report. FatalError when a process ends by itself or does not come up."""
    at = prepare(screen)
    plan = plan_of(uuid.uuid4().hex[:12], settings)
    environment = {**os.environ, **at.environment()}
    with Children(environment, settings.scratch / "logs") as children:
        run = _Run(settings, screen, plan, Tables(at, plan.ids, ends_of(at)), children)
        run.start()
        run.watch()
        run.settle()
        return run.report(verified(environment))


def verified(environment: dict[str, str]) -> Check:
    """What `kintsugi verify` says about the whole log and all tables."""
    name = "log, commands and tables agree (kintsugi verify)"
    done = subprocess.run(
        [sys.executable, "-m", "ops.cli", "verify", "--policy", str(POLICY), "--output", "json"],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=VERIFY_TIMEOUT_S,
        check=False,
    )
    if done.returncode == OK:
        return Check(name=name, ok=True, detail=done.stderr.strip().splitlines()[0])
    if done.returncode == MISMATCH:
        return Check(name=name, ok=False, detail=json.dumps(json.loads(done.stdout)["counts"]))
    return Check(name=name, ok=False, detail=f"exit code {done.returncode}: {done.stderr.strip()[-500:]}")


class _Run:
    """One run, phase by phase."""

    def __init__(self, settings: Settings, screen: Screen, plan: Plan, tables: Tables, children: Children) -> None:
        self._settings = settings
        self._screen = screen
        self._plan = plan
        self._tables = tables
        self._children = children
        self._recoveries: list[Child] = []
        self._services: list[Child] = []
        self._victims: list[_Victim] = []
        self._began_s = 0.0

    def start(self) -> None:
        """Two recovery processes, the coordinator and the projector, then the services."""
        role = ("ops.cli", "run", "recovery", "--policy", str(POLICY))
        self._recoveries = [self._children.start(f"recovery {n}", *role) for n in (1, 2)]
        projector = self._children.start("projector", "ops.cli", "run", "projector")
        coordinator = self._children.start("coordinator", "ops.cli", "run", "coordinator", "--policy", str(POLICY))
        for child in (*self._recoveries, projector, coordinator):
            self._children.wait_until(f"{child.name} has partitions", child.has_partitions, ROLES_TIMEOUT_S)
        self._screen.say("2 recovery processes, a coordinator and a projector run")
        self._began_s = time.monotonic()
        shares = [self._share(number) for number in range(SERVICES)]
        self._services = [self._children.start(f"service {n}", *share) for n, share in enumerate(shares, 1)]
        total = len(self._plan.ids)
        self._screen.say(f"{SERVICES} services start {total} workflows (run {self._plan.run}, seed {self._plan.seed})")
        self._victims = [
            _Victim(self._recoveries[0], role, round(total * KILL_RECOVERY_AT)),
            _Victim(self._services[0], shares[0], round(total * KILL_SERVICE_AT)),
        ]

    def watch(self) -> None:
        """Show progress, kill and replace, until every workflow has ended or waits for a human, or time is up."""
        total = len(self._plan.ids)
        timeout_s = total / STARTS_PER_SECOND + REPAIRS_TIMEOUT_S
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            self._children.check()
            by_status = self._tables.progress()
            self._screen.progress(total, by_status)
            for victim in self._victims:
                self._maybe_kill(victim, sum(by_status.values()))
            killed = all(victim.replaced for victim in self._victims)
            if killed and sum(by_status.get(status, 0) for status in ENDED) == total:
                return
            time.sleep(_POLL_S)
        self._screen.say(f"not every workflow has ended within {timeout_s:.0f} s")

    def settle(self) -> None:
        """Let the last answers arrive, stop services and recovery, and let the tables catch up."""
        deadline_s = time.monotonic() + SETTLE_TIMEOUT_S
        while self._tables.in_flight() and time.monotonic() < deadline_s:
            self._children.check()
            time.sleep(_POLL_S)
        self._children.stop(self._services)
        self._children.stop(self._recoveries)
        self._children.wait_until("the tables have caught up", lambda: not self._tables.behind(), CATCH_UP_TIMEOUT_S)
        self._screen.say("services and recovery have stopped, the tables hold the whole log; checking")

    def report(self, agreement: Check) -> Report:
        """Gather rows, log and ledger."""
        workflows, attempts, waiting = (self._tables.ask(name) for name in ("workflows", "attempts", "waiting"))
        errors, runs = self._tables.ask("errors"), self._tables.step_runs()
        executions = read_ledger(self._settings.scratch / LEDGER)
        return Report(
            version=report.VERSION,
            run=self._plan.run,
            seed=self._plan.seed,
            seconds=round(time.monotonic() - self._began_s, 1),
            workflows=report.outcomes(self._plan, workflows),
            faults=report.by_fault(self._plan, workflows),
            errors=report.by_error(errors),
            errors_again=sum(not row["root"] for row in errors),
            attempts=report.by_strategy(attempts),
            times=report.times(attempts),
            waiting=waiting,
            taken_over=report.taken_over(runs),
            checks=[
                report.finished(self._plan, workflows),
                report.handed_over(self._plan, workflows, waiting),
                report.deployed(workflows, executions),
                report.once_in_log(runs),
                report.once_in_ledger(executions),
                agreement,
            ],
        )

    def _share(self, number: int) -> tuple[str, ...]:
        """Command line of a service process: its part of the workflows."""
        total = len(self._plan.ids)
        first, end = total * number // SERVICES, total * (number + 1) // SERVICES
        return (
            "examples.development",
            f"--run={self._plan.run}",
            f"--seed={self._plan.seed}",
            f"--first={first}",
            f"--count={end - first}",
            f"--scratch={self._settings.scratch}",
            f"--per-second={STARTS_PER_SECOND / SERVICES}",
        )

    def _maybe_kill(self, victim: _Victim, started: int) -> None:
        name = victim.child.name
        if not victim.killed_at_s:
            if started < victim.at_started:
                return
            victim.child.kill()
            victim.killed_at_s = time.monotonic()
            self._screen.say(
                f"kill -9 {victim.child.pid} ({name}): the other one takes over what it had, "
                f"a replacement starts in {REPLACE_AFTER_S:.0f} s"
            )
        elif not victim.replaced and time.monotonic() - victim.killed_at_s >= REPLACE_AFTER_S:
            replacement = self._children.start(f"{name} again", *victim.arguments)
            (self._services if victim.child in self._services else self._recoveries).append(replacement)
            victim.replaced = True
            self._screen.say(f"{name} runs again, as process {replacement.pid}")
