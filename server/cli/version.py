"""``interlock version``, from the metadata of installed packages: nothing heavy is imported."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from server.cli.output import AsJson, print_fields, print_json
from server.cli.root import command_app

PACKAGES = ("interlock", "torch", "transformers", "fastapi")

app = command_app()


@app.command("version")
def show(as_json: AsJson = False) -> None:
    """Print the versions of Interlock and of what it runs on."""
    versions = {name: _installed(name) for name in PACKAGES} | {"python": platform.python_version()}
    if as_json:
        print_json(versions)
    else:
        print_fields(versions)


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
