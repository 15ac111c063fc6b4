"""What the operator sees once the server answers."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from server.settings import Settings
from server.sizes import binary_size
from server.types import EngineLimits, ModelInfo


@dataclass(frozen=True, slots=True)
class Access:
    """Whether no key is asked for, and what is on by default: a switch, a profile or neither."""

    open: bool
    default: str | None = None


def print_banner(
    console: Console, settings: Settings, model: ModelInfo, limits: EngineLimits, url: str, access: Access
) -> None:
    """Model, limits, access and where to go next, on ``console``."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _lines(settings, model, limits, url, access).items():
        grid.add_row(name, value)
    console.print(Panel(grid, title="Interlock", title_align="left", expand=False, border_style="cyan"))


def _lines(settings: Settings, model: ModelInfo, limits: EngineLimits, url: str, access: Access) -> dict[str, str]:
    return {
        "model": f"{model.name} ({model.architecture}, {model.layers} layers of width {model.width})",
        "runs on": f"{model.device}, {model.dtype}" + (f" ({model.dtype_reason})" if model.dtype_reason else ""),
        "places": f"{limits.max_batch} running, {limits.max_waiting} waiting, {limits.context} tokens each",
        "memory": ", ".join(
            (
                f"weights {binary_size(limits.memory.weights)}",
                f"keys and values at most {binary_size(limits.memory.kv)}",
                f"reusable prefixes at most {binary_size(limits.memory.prefixes)}",
            )
        ),
        "on by default": access.default or "nothing; requests may name a switch",
        "references": ", ".join(settings.references) or "none",
        "access": _access(settings, access),
        "data": str(settings.data_dir),
        "url": f"{url}/v1",
        "try": f"curl {url}/v1/capabilities, or {url}/docs in a browser",
    }


def _access(settings: Settings, access: Access) -> str:
    if not access.open:
        return "with an API key"
    return "open to everybody who reaches it" if settings.insecure_no_auth else "open, from this machine only"
