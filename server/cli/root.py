"""The table of commands, and what becomes of an error that reaches the top.

Exit codes: 0 done, 1 the command failed (message and remedy on stderr), 2 wrong usage or settings.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from mappers.errors import InterlockError

COMMANDS = {
    "quickstart": "See a model with a backdoor made safe, from training to a table of rates.",
    "serve": "Serve a model over HTTP, with switches and steering vectors per request.",
    "compare": "Continue one prompt under several settings, side by side.",
    "jobs": "Submit background jobs to a running server and watch them.",
    "artifacts": "List, import and export switches, vectors, mappers, probes and datasets.",
    "keys": "Issue API keys, list them and take them back.",
    "profiles": "Write named bundles of interventions, also served as models.",
    "policy": "Show the policy, and replace it.",
    "audit": "Read the audit log and verify its chain.",
    "receipts": "Verify what was done to an answer.",
    "evaluate": "Measure switches and transferred vectors on behaviour, and write a report.",
    "bench": "Measure this machine: speed and memory against peers on the same weights.",
    "organisms": "Build the small models with planted behaviour.",
    "doctor": "Examine machine, data directory, model and server, with remedies.",
    "health": "Ask whether a server is ready; exit code 0 means yes.",
    "version": "Print the versions of Interlock and of what it runs on.",
}


class LazyGroup(TyperGroup):
    """Knows every command's name and summary; imports a command's module only when that command is called."""

    def __init__(self) -> None:
        stubs = [TyperCommand(name, help=summary) for name, summary in COMMANDS.items()]
        super().__init__(
            name="interlock",
            help="An LLM inference server whose safety behaviour can be switched per request.",
            commands=stubs,
            no_args_is_help=True,
            context_settings={"help_option_names": ["-h", "--help"]},
        )

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The called command itself in place of its stub."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, typer.main.get_command(import_module(f"server.cli.{name}").app), rest


def command_app(**options: Any) -> typer.Typer:
    """A Typer application with the conventions of all commands: ``-h``, no completion options, plain tracebacks."""
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **options,
    )


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command line, this process's unless ``arguments`` are given, and exits.

    An :class:`InterlockError` is shown as its message, without a traceback.
    """
    try:
        LazyGroup()(args=arguments, prog_name="interlock")
    except InterlockError as error:
        typer.secho(f"error: {error.message}", err=True, fg=typer.colors.RED)
        sys.exit(1)
    sys.exit(0)
