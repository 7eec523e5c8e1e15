"""`kintsugi policy validate`."""

from __future__ import annotations

from pathlib import Path

import click

from ops.output import output_option, say, show


@click.group()
def policy() -> None:
    """Validate a policy file."""


@policy.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@output_option
def validate(file: Path | None, output: str) -> None:
    """Check FILE (default: the policy that ships) and show the ladders it means.

    Every problem is listed with its path, its value and what is allowed.
    """
    from engine.policy import default_policy, load_policy
    from schemas.errors import ConfigError

    if file is None:
        loaded = default_policy()
    else:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file}: not UTF-8 text: {error}") from None
        loaded = load_policy(text, str(file))
    rows = [
        {
            "error_type": ladder.error_type,
            "rung": number + 1,
            "strategy": rung.strategy,
            "attempts": rung.attempts_max,
            "backoff": f"{rung.backoff.base_ms}..{rung.backoff.max_ms} ms" if rung.backoff else "none",
        }
        for ladder in loaded.ladders.values()
        for number, rung in enumerate(ladder.rungs)
    ]
    show(rows, output)
    for warning in loaded.warnings:
        say(f"warning: {warning}")
    say(f"version {loaded.version}: valid; after the last rung a human is asked")
