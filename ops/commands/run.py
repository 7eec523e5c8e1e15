"""`kintsugi run ROLE`: one role in this process, or all of them as child processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import ExitStack

    from consumers.keeper.role import Keeper
    from consumers.loop import Loop
    from consumers.settings import RoleSettings
    from engine.policy import Policy

ROLES = ("recovery", "projector", "archiver", "keeper", "coordinator", "notifier")


@click.command("run")
@click.argument("role", type=click.Choice([*ROLES, "all"]))
@click.option("--policy", type=click.Path(exists=True, dir_okay=False), help="Policy file; default: the story's.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=0, help="0 takes a free port and logs it.")
@click.option("--metrics-host", default="127.0.0.1", show_default=True, help="Where /metrics listens.")
@click.option("--group", help="Consumer group; default: kintsugi-ROLE.")
@click.option(
    "--archive-age",
    type=click.FloatRange(0, 3600, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="archiver: records wait this long at most before they are written.",
)
@click.option(
    "--scrub-rate",
    type=click.FloatRange(1, 1_000_000),
    default=2_000.0,
    show_default=True,
    metavar="CHECKPOINTS",
    help="keeper: proven again per second at most.",
)
@click.option(
    "--retention-interval",
    type=click.FloatRange(0, 86_400, min_open=True),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="keeper: how often it looks for what is beyond its retention.",
)
@click.option(
    "--orphan-grace",
    type=click.FloatRange(2, 365 * 24),
    default=24.0,
    show_default=True,
    metavar="HOURS",
    help="keeper: objects that nothing refers to stay this long.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
@click.option(
    "-X", "extra", multiple=True, metavar="KEY=VALUE", help="librdkafka setting; producer.KEY for the producer."
)
def run(
    role: str,
    policy: str | None,
    metrics_port: int,
    metrics_host: str,
    group: str | None,
    archive_age: float,
    scrub_rate: float,
    retention_interval: float,
    orphan_grace: float,
    log_level: str,
    extra: tuple[str, ...],
) -> None:
    """Run a role until SIGTERM or Ctrl-C. `all` runs every role, each in its own process, for development.

    Exit codes: 0 stopped as told, 1 failed or wrong configuration, 2 wrong usage, 75 a dependency is down.
    """
    pairs = dict(_pair(item) for item in extra)
    if role == "all":
        shared = {
            "--archive-age": archive_age,
            "--scrub-rate": scrub_rate,
            "--retention-interval": retention_interval,
            "--orphan-grace": orphan_grace,
            "--log-level": log_level,
        }
        if policy is not None:
            shared["--policy"] = policy
        raise SystemExit(_run_all(shared, extra))
    given = {
        "group": group or f"kintsugi-{role}",
        "metrics_host": metrics_host,
        "metrics_port": metrics_port,
        "archive_age_s": archive_age,
        "scrub_rate": scrub_rate,
        "retention_interval_s": retention_interval,
        "orphan_grace_s": orphan_grace * 3600,
        "log_level": log_level,
        "extra": pairs,
    }
    _run_one(role, policy, given)


def _pair(item: str) -> tuple[str, str]:
    key, found, value = item.partition("=")
    if not found or not key:
        raise click.BadParameter(f"{item!r} is not KEY=VALUE", param_hint="-X")
    return key, value


def _run_one(role: str, policy: str | None, given: Mapping[str, object]) -> None:
    import os
    from pathlib import Path

    from consumers.roles import archiver_loop, coordinator_loop, recovery_loop
    from consumers.roles import run as run_role
    from consumers.settings import role_settings
    from engine.policy import default_policy, load_policy
    from ops.stack import addresses
    from schemas.keystore import keys_optional

    at = addresses()
    settings = role_settings(
        kafka=at.kafka,
        registry=at.registry,
        postgres=at.postgres,
        objects=at.objects,
        keys=os.environ.get("KINTSUGI_KEYS", ""),
        keys_optional=keys_optional(),
        **given,
    )
    if role == "archiver":
        run_role(role, settings, lambda stack: archiver_loop(settings))
        return
    if role == "notifier":
        from consumers.notifier.settings import channels_of
        from consumers.roles import notifier_loop

        channels = channels_of(os.environ)
        run_role(role, settings, lambda stack: notifier_loop(settings, channels, stack))
        return
    chosen = default_policy() if policy is None else load_policy(Path(policy).read_text(encoding="utf-8"), policy)
    if role == "projector":
        run_role(role, settings, lambda stack: projector_loop(settings, at.postgres, chosen, stack))
        return
    if role == "keeper":
        run_role(role, settings, lambda stack: keeper(settings, chosen, stack))
        return
    if role == "coordinator":
        run_role(role, settings, lambda stack: coordinator_loop(settings, chosen, stack))
        return
    run_role(role, settings, lambda stack: recovery_loop(settings, chosen, stack))


def projector_loop(settings: RoleSettings, postgres: str, policy: Policy, stack: ExitStack) -> Loop:
    """The projector role: consumers' loop around projections' tables, which may not know each other."""
    from consumers import roles
    from projections.store import Store
    from schemas.redaction import Redaction

    store = Store(postgres, redaction=Redaction(policy.redact))
    stack.callback(store.close)
    return roles.projector_loop(settings, store, stack)


def keeper(settings: RoleSettings, policy: Policy, stack: ExitStack) -> Keeper:
    """The keeper role: the jobs of consumers on the tables of projections."""
    from consumers.roles import keeper as role
    from ops.keeper_tables import KeeperTables

    tables = KeeperTables(settings.postgres)
    stack.callback(tables.close)
    return role(settings, policy, tables, stack)


def _roles() -> list[str]:
    """Roles of `all`: without a channel there is nobody whom the notifier could tell."""
    import os

    from consumers.notifier.settings import SWITCHES, configured
    from ops.output import say

    if configured(os.environ):
        return list(ROLES)
    say(f"no notifier: none of {', '.join(SWITCHES.values())} is set")
    return [role for role in ROLES if role != "notifier"]


def _run_all(options: Mapping[str, object], extra: tuple[str, ...]) -> int:
    """Each role as a child; when one ends, all end. Returns the first non-zero exit code."""
    import signal
    import subprocess
    import sys
    import time

    shared = [part for name, value in options.items() for part in (name, str(value))]
    shared += [part for item in extra for part in ("-X", item)]
    children = [subprocess.Popen([sys.executable, "-m", "ops.cli", "run", name, *shared]) for name in _roles()]
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while not stopping and all(child.poll() is None for child in children):
        time.sleep(0.2)
    for child in children:
        if child.poll() is None:
            child.terminate()
    return next((code for code in [child.wait() for child in children] if code), 0)
