"""``interlock serve``: reads the settings and hands them to the composition root."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

import typer

from mappers.errors import InterlockError
from server.cli.options import with_settings_options
from server.cli.root import command_app
from server.settings import read_settings

app = command_app(rich_markup_mode="rich")

CANNOT_SERVE = 2


def serve(options: dict[str, Any]) -> None:
    """Serve a model over HTTP, with switches and steering vectors per request.

    Each option is also a variable (the last word of its text below) and a key of the TOML file given by --config.
    The command line wins over the variable, the variable over the file.

    Example: interlock serve --model ./my-model --reference base=./my-base-model --switch safe
    """
    try:
        settings = read_settings(options, os.environ)
        signal.signal(signal.SIGTERM, _leave)
        from server.serve import run  # torch is imported only once the settings are known to be good

        run(settings)
    except InterlockError as error:
        typer.secho(f"error: {error.message}", err=True, fg=typer.colors.RED)
        raise typer.Exit(CANNOT_SERVE) from None


def _leave(_signal: int, _frame: FrameType | None) -> None:
    """Until the server listens and drains, SIGTERM just ends the command; as process 1 it would be ignored."""
    raise SystemExit(0)


app.command("serve")(with_settings_options(serve))
