"""`kintsugi`: one group whose commands are imported only when they are called, so that help is fast."""

from __future__ import annotations

from importlib import import_module

import click

#: name -> (where it is, one line of help). Help must not import a command.
COMMANDS = {
    "up": ("ops.commands.stack:up", "Start the local stack: Kafka, schema registry, Postgres."),
    "status": ("ops.commands.stack:status", "Show how each part of the local stack is."),
    "logs": ("ops.commands.stack:logs", "Show the end of a part's log."),
    "down": ("ops.commands.stack:down", "Stop the local stack."),
    "doctor": ("ops.commands.doctor:doctor", "Check everything Kintsugi needs; each line says the fix."),
    "topics": ("ops.commands.topics:topics", "Create and describe the topics."),
    "schemas": ("ops.commands.schemas:schemas", "Register, check and lint the Avro schemas."),
    "run": ("ops.commands.run:run", "Run a role, such as recovery or notifier, or all of them."),
    "db": ("ops.commands.db:db", "Migrate the database."),
    "workflows": ("ops.commands.workflows:workflows", "List workflows, show one, or tell all that happened to it."),
    "state": ("ops.commands.state:state", "Compare versions of states; try migrations before a deployment."),
    "checkpoints": ("ops.commands.checkpoints:checkpoints", "List, show, prove, compare and export checkpoints."),
    "errors": ("ops.commands.errors:errors", "List errors, or show one with every repair that was tried."),
    "incidents": ("ops.commands.incidents:incidents", "List incidents, show one, look after one."),
    "interventions": ("ops.commands.interventions:interventions", "List what people are asked, and answer."),
    "resources": ("ops.commands.resources:resources", "Show who holds what workflows share, and who waits."),
    "recover": ("ops.commands.recover:recover", "Plan one repair for many errors, and carry the plan out."),
    "dlq": ("ops.commands.dlq:dlq", "List what could not be read or applied; retry or discard it."),
    "verify": ("ops.commands.verify:verify", "Prove that log, commands and tables agree."),
    "projections": ("ops.commands.projections:projections", "Rebuild the tables beside the live ones, change over."),
    "replay": ("ops.commands.replay:replay", "Run engine and projections over a range of events once more."),
    "archive": ("ops.commands.archive:archive", "Show, check and read the archive of the log."),
    "keys": ("ops.commands.keys:keys", "Make, rotate and erase the keys that states are sealed with."),
    "notify": ("ops.commands.notify:notify", "Try the channels that people are told through."),
    "policy": ("ops.commands.policy:policy", "Validate a policy file."),
}

_EXAMPLES = """
Examples:

\b
  kintsugi up                      start Kafka, registry and Postgres here
  kintsugi doctor                  what is missing, and how to get it
  kintsugi run all                 every role in this terminal
  kintsugi errors list             what is broken, and what was tried
  kintsugi workflows timeline ID   everything that happened to one workflow
"""


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        found = COMMANDS.get(name)
        if found is None:
            return None
        module, attribute = found[0].split(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Lazy, epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kintsugi", prog_name="kintsugi")
def cli() -> None:
    """Kintsugi mends broken workflows and keeps every break, decision and repair as an event."""


def main() -> None:
    """Entry point: runs the command, turns our errors into a message and an exit code."""
    from ops.output import guarded

    guarded(cli)


if __name__ == "__main__":
    main()
