"""What the operator decides at start-up: one frozen :class:`Settings`, filled by :func:`read_settings`.

Precedence: command line, then ``INTERLOCK_*`` variables, then the TOML file, then the default. A key or variable nobody
knows is an error that names the nearest known one, so that a typing error never becomes a silent default. The text
under each field is also the help of the command-line option.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from mappers.errors import InterlockError

ENV_PREFIX = "INTERLOCK_"
CLIENT_VARIABLES = frozenset({"INTERLOCK_CONFIG", "INTERLOCK_URL"})
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"

Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=96)]
Location = Annotated[str, Field(min_length=1, max_length=4096)]
DtypeSetting = Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"]


class ConfigurationError(InterlockError):
    """The server cannot start with these settings; the message names each field and the remedy."""


def default_data_dir() -> Path:
    """``interlock`` below the XDG data home (``~/.local/share`` where that is not set)."""
    data_home = os.environ.get("XDG_DATA_HOME") or ""
    root = Path(data_home) if Path(data_home).is_absolute() else Path.home() / ".local" / "share"
    return root / "interlock"


class Settings(BaseSettings):
    """All options of ``interlock serve``; build it with :func:`read_settings`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    model: Location
    """Model to serve: a local folder or a hub id, decoder-only, safetensors."""
    served_model_name: Name | None = None
    """Name of the model in the API. Default: the last part of --model."""
    references: Annotated[dict[Name, Location], NoDecode, Field(max_length=32)] = Field(default_factory=dict)
    """Another model that jobs may use, as NAME=PLACE; repeatable (in the variable: separated by commas)."""
    switch: Name | None = None
    """Artifact that is the default safety switch: applied to every request that does not say otherwise."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""

    host: Annotated[str, Field(min_length=1, max_length=255)] = "127.0.0.1"
    """Address to listen on. Anything but a loopback address needs --api-key."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes a free one and prints it."""
    api_key: Annotated[SecretStr, Field(min_length=1, max_length=512)] | None = None
    """First API key, with every scope. Prefer the variable: a command line can be read by others."""
    receipt_key: Annotated[SecretStr, Field(min_length=32, max_length=512)] | None = None
    """Secret that receipts are signed with (HMAC-SHA256). Default: one that is made and kept in the data directory."""
    insecure_no_auth: bool = False
    """Listen on any address without a key: everybody who reaches the port may do everything."""
    drain_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 30.0
    """Seconds that running requests get to finish after SIGTERM."""

    dtype: DtypeSetting = "auto"
    """Number format of the weights. auto: the model's own on a GPU; on a CPU bfloat16 if it is native, else float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs. auto: the GPU where there is one."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads of the model's arithmetic. Default: one for each core."""
    max_batch: Annotated[int, Field(ge=1, le=4096)] = 32
    """Requests computed at once."""
    max_waiting: Annotated[int, Field(ge=0, le=65536)] = 128
    """Requests that may wait for a place; more are answered 429."""
    max_context: Annotated[int, Field(ge=2, le=16_777_216)] | None = None
    """Most tokens of prompt and answer together. Default: what the model was made for."""
    prefill_tokens: Annotated[int, Field(ge=1, le=1_048_576)] = 256
    """Prompt tokens read in one step beside running answers, which wait for it; four times as many where none runs."""
    enforce_eager: bool = False
    """Never replay decode steps as CUDA graphs on a GPU; for a model whose code cannot be captured."""
    kv_memory_mib: Annotated[int, Field(ge=1, le=16_777_216)] | None = None
    """Memory for keys and values of running requests. Default: max_batch whole contexts, as far as memory is free."""
    prefix_memory_mib: Annotated[int, Field(ge=0, le=16_777_216)] | None = None
    """Memory for prompt prefixes that later requests reuse; 0 turns reuse off. Default: a tenth of what is free."""
    max_strength: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 100.0
    """Largest absolute strength a request may ask for."""
    artifact_memory_mib: Annotated[int, Field(ge=1, le=1_048_576)] = 1024
    """Device memory for switches and vectors; those least recently used leave it and are read again when asked for."""

    data_dir: Path = Field(default_factory=default_data_dir)
    """Folder for all that is kept: database, artifacts, jobs. Default: interlock below the XDG data home."""
    database_url: Annotated[SecretStr, Field(min_length=1, max_length=4096)] | None = None
    """PostgreSQL instead of a file in --data-dir: postgresql+psycopg://USER:PASSWORD@HOST/NAME. Prefer the variable."""
    metrics_compat: Literal["none", "vllm"] = "none"
    """vllm: /metrics also has what vLLM has under vLLM's names, for dashboards that were made for it."""
    otlp_traces_endpoint: Annotated[str, Field(pattern="^https?://", max_length=4096)] | None = None
    """Collector that spans are sent to (OTLP over HTTP, http://HOST:4318/v1/traces); needs the extra otel."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log line that is written. Prompts and answers are never logged."""
    config: Path | None = None
    """TOML file with these options, written with underscores; options and variables win over it."""

    @field_validator("references", mode="before")
    @classmethod
    def _split_references(cls, value: object) -> object:
        """Accepts a mapping (TOML), or NAME=LOCATION items as a list (command line) or separated by commas."""
        if isinstance(value, str):
            value = [item.strip() for item in value.split(",") if item.strip()]
        return _named_locations(value) if isinstance(value, list | tuple) else value

    @field_validator("data_dir")
    @classmethod
    def _absolute_data_dir(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("api_key")
    @classmethod
    def _sendable_api_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not (value.get_secret_value().isascii() and value.get_secret_value().isprintable()):
            raise ValueError("use printable ASCII characters: a key travels in an HTTP header")
        return value

    @model_validator(mode="after")
    def _other_hosts_need_a_key(self) -> Settings:
        if not is_loopback(self.host) and self.api_key is None and not self.insecure_no_auth:
            raise ValueError(
                f"host {self.host} can be reached by others but no API key is set: set INTERLOCK_API_KEY, listen on "
                "127.0.0.1, or pass --insecure-no-auth if everybody may do everything"
            )
        return self

    @property
    def model_name(self) -> str:
        """Name the model is served under."""
        return self.served_model_name or Path(self.model).absolute().name

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (the signature is pydantic-settings')
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Options, then variables, then the file named by the option ``config``."""
        config = init_settings().get("config")
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=config)


def plain_environment() -> dict[str, str]:
    """This process's environment without Interlock's settings, for processes that it starts: no API key goes along."""
    return {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}


def read_settings(options: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Settings from command-line options (only those given), ``INTERLOCK_*`` variables and the file ``config``.

    ``environment`` is checked for variables nobody knows; their values are read by pydantic-settings from the process.
    Raises ConfigurationError.
    """
    check_variables(environment)
    config = options.get("config") or environment.get(ENV_PREFIX + "CONFIG")
    if config is not None and not Path(config).is_file():
        raise ConfigurationError(f"config: there is no file {config}")
    try:
        return Settings(**{**options, "config": config})
    except ValidationError as error:
        raise ConfigurationError("\n".join(_explain(detail) for detail in error.errors())) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"config: {config} is not TOML: {error}") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean X?)``, or nothing where no known name is near."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {matches[0]}?)" if matches else ""


def _named_locations(items: Iterable[str]) -> dict[str, str]:
    pairs = [item.partition("=") for item in items]
    for name, equals, location in pairs:
        if not (name and equals and location):
            raise ValueError(f"write NAME=PLACE (a local folder or a hub id), got {name + equals + location!r}")
    locations = {name: location for name, _, location in pairs}
    if len(locations) < len(pairs):
        raise ValueError("each reference needs a name of its own")
    return locations


def check_variables(environment: Mapping[str, str]) -> None:
    """Raises ConfigurationError for an ``INTERLOCK_*`` variable that nobody knows, naming the nearest known one."""
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | CLIENT_VARIABLES
    unknown = sorted(name for name in environment if name.startswith(ENV_PREFIX) and name.upper() not in known)
    if unknown:
        lines = [f"variable {name} is not an option of Interlock{nearest(name, known)}" for name in unknown]
        raise ConfigurationError("\n".join(lines))


def _explain(detail: ErrorDetails) -> str:
    field = ".".join(str(part) for part in detail["loc"]) or "settings"
    if detail["type"] == "missing":
        return f"{field}: required; give --{field.replace('_', '-')} or set {ENV_PREFIX}{field.upper()}"
    if detail["type"] == "extra_forbidden":
        return f"{field}: not an option of Interlock{nearest(field, Settings.model_fields)}"
    return f"{field}: {detail['msg'].removeprefix('Value error, ')}"
