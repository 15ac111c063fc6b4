"""Command-line options made from :class:`server.settings.Settings`, so that help and fields cannot drift apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from server.settings import ENV_PREFIX, Settings

PANELS = {
    "Model": ("model", "served_model_name", "references", "switch", "trust_remote_code"),
    "Network": ("host", "port", "api_key", "receipt_key", "insecure_no_auth", "drain_s"),
    "Arithmetic and limits": (
        "dtype",
        "device",
        "threads",
        "max_batch",
        "max_waiting",
        "max_context",
        "prefill_tokens",
        "enforce_eager",
        "kv_memory_mib",
        "prefix_memory_mib",
        "max_strength",
        "artifact_memory_mib",
    ),
    "Keeping and logging": (
        "data_dir",
        "database_url",
        "metrics_compat",
        "otlp_traces_endpoint",
        "log_level",
        "config",
    ),
}
FLAG_NAMES = {"references": "--reference"}


def with_settings_options(command: Callable[[dict[str, Any]], None]) -> Callable[..., None]:
    """``command`` as a function with one keyword for each setting; it gets a mapping of those that were given."""

    def run(**given: Any) -> None:
        command({name: value for name, value in given.items() if value not in (None, [])})

    parameters = [_parameter(name, panel) for panel, names in PANELS.items() for name in names]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = command.__doc__
    return run


def _parameter(name: str, panel: str) -> inspect.Parameter:
    field = Settings.model_fields[name]
    kind = _option_type(field.annotation)
    option = typer.Option(
        FLAG_NAMES.get(name, "--" + name.replace("_", "-")),
        help=_help(name, field),
        rich_help_panel=panel,
        show_default=False,
        metavar="NAME=PLACE" if name == "references" else None,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _option_type(annotation: Any) -> Any:
    """The type that the command line converts to; bounds are left to the settings, which check every source."""
    if get_origin(annotation) is Literal:
        return annotation
    if get_origin(annotation) is dict:
        return list[str]
    while get_args(annotation):  # int of Annotated[int, ...] | None
        annotation = get_args(annotation)[0]
    return annotation if annotation in (bool, int, float, Path) else str


def _help(name: str, field: FieldInfo) -> str:
    known_default = field.default is not PydanticUndefined and field.default not in (None, False)
    default = f" Default: {field.default}." if known_default else ""
    required = " Required." if field.is_required() else ""
    return f"{field.description}{required}{default} [dim]{ENV_PREFIX}{name.upper()}[/dim]"
