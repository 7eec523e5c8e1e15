"""`kintsugi notify test | list`."""

from __future__ import annotations

import click

from ops.output import ID, output_option, say, show

CHANNELS = ("slack", "email", "pagerduty")
_COLUMNS = ("created_at", "incident_id", "channel", "kind", "outcome", "tries", "detail")


@click.group()
def notify() -> None:
    """Try the channels that people are told through, and list whom was told what."""


@notify.command()
@click.argument("channel", type=click.Choice(CHANNELS))
def test(channel: str) -> None:
    """Send one message that says it is a test, and print what the channel answered.

    PagerDuty's test is resolved at once. Exit 1 when the channel is not configured or refuses, 75 when it is away.
    """
    import os
    import uuid

    from consumers.notifier.channels import ChannelAwayError, ChannelRefusedError
    from consumers.notifier.notice import trial_notice
    from consumers.notifier.settings import SWITCHES, channels_of
    from ops.audit import actor
    from schemas.errors import ConfigError

    found = channels_of(os.environ, only=channel).get(channel)
    variable = SWITCHES[channel]
    if found is None:
        raise ConfigError(f"{channel} is not configured", hint=f"set {variable} or {variable}_FILE")
    try:
        answer = found.send(trial_notice(str(uuid.uuid4()), actor()))
    except ChannelAwayError as error:
        error.hint = "is the address right, and can it be reached from here? kintsugi run notifier keeps trying"
        raise
    except ChannelRefusedError as error:
        error.hint = f"check {variable}: the channel takes no message like this one"
        raise
    finally:
        found.close()
    click.echo(f"{channel}: {answer}")


@notify.command("list")
@click.option("--incident", "incident_id", type=ID, help="Only of this incident.")
@click.option("--channel", type=click.Choice(CHANNELS), help="Only through this one.")
@click.option("--given-up", is_flag=True, help="Only what nobody was told.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@output_option
def list_(incident_id: str | None, channel: str | None, given_up: bool, limit: int, output: str) -> None:
    """Whom was told what, newest first."""
    from ops import reads
    from ops.stack import addresses

    rows = reads.notifications(
        addresses().postgres, incident_id=incident_id, channel=channel, given_up=given_up, limit=limit
    )
    show(rows, output, columns=_COLUMNS, empty="nobody was told anything")
    if len(rows) == limit:
        say(f"the newest {limit}; --limit shows more")
