"""JSON objects that commands read from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer


def read_object(file: Path, option: str) -> dict[str, Any]:
    """The JSON object in ``file``; raises typer.BadParameter, blaming ``option``."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise typer.BadParameter(f"{file} is not JSON: {error}", param_hint=option) from None
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{file} must hold a JSON object", param_hint=option)
    return value
