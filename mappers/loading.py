"""Loads a causal language model from a local folder or a hub id: safetensors only, no code from the repository."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.utils import cached_file

from mappers.architectures import DecoderStack, config_digest, discover, refuse_inexact
from mappers.errors import InterlockError
from mappers.weight_digest import weight_digest


class ModelLoadError(InterlockError):
    """The model cannot be loaded from where the operator said it is."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A frozen model in eval mode with its tokenizer; ``name`` is the last part of the location.

    ``weight_digest`` is :func:`mappers.weight_digest.weight_digest`, None for what came from no checkpoint.
    """

    model: nn.Module
    tokenizer: Any
    stack: DecoderStack
    name: str
    config_digest: str
    weight_digest: str | None = None


def load_model(
    location: str,
    *,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    device: str | torch.device = "cpu",
    quantization: Any | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Loads model and tokenizer; parameters do not require gradients. ``dtype`` "auto" keeps the checkpoint's.
    ``quantization`` is a configuration of transformers, which then quantises while it loads.

    Raises ModelLoadError where nothing usable is at ``location`` (a folder, or a hub id), and UnsupportedArchitecture
    before any weight is read where the configuration shows that the model cannot be served exactly.
    """
    try:
        _, tokenizer = _read_small_parts(location, trust_remote_code)
        placed = {} if quantization is None else {"quantization_config": quantization, "device_map": {"": device}}
        model = AutoModelForCausalLM.from_pretrained(
            location, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code, **placed
        )
        weights = weight_digest(_checkpoint_folder(location))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _not_loadable(location, error) from error
    model.requires_grad_(False)
    model.eval()
    if quantization is None:
        model.to(device)
    return LoadedModel(model, tokenizer, discover(model), _name(location), config_digest(model.config), weights)


def sketch_model(location: str, *, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False) -> LoadedModel:
    """The model without its weights: tokenizer and structure, all parameters on the device "meta". Takes no memory.

    Raises as :func:`load_model` does, except for weights that are missing or broken.
    """
    try:
        config, tokenizer = _read_small_parts(location, trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _not_loadable(location, error) from error
    return LoadedModel(model, tokenizer, discover(model), _name(location), config_digest(model.config))


def eos_token_ids(model: nn.Module) -> frozenset[int]:
    """Token ids that end a text: what the generation config says, else the model's config; never the tokenizer's."""
    for config in (getattr(model, "generation_config", None), model.config):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()


def _read_small_parts(location: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """Configuration and tokenizer."""
    if _looks_local(location) and not Path(location).expanduser().is_dir():
        raise ModelLoadError(f"cannot load a model from '{location}': there is no folder of that name")
    stored, _ = PreTrainedConfig.get_config_dict(location)
    if stored.get("auto_map") and not trust_remote_code:
        raise ValueError("its config asks to run code of its own (auto_map), which takes --trust-remote-code")
    config = AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code)
    refuse_inexact(config)
    return config, AutoTokenizer.from_pretrained(location, trust_remote_code=trust_remote_code)


def _not_loadable(location: str, error: Exception) -> ModelLoadError:
    return ModelLoadError(
        f"cannot load a model from '{location}': {_first_line(error)}. Give a folder with config.json, "
        "*.safetensors and tokenizer.json, or a hub id"
    )


def _name(location: str) -> str:
    return Path(location).resolve().name if Path(location).exists() else location.rsplit("/", 1)[-1]


def _checkpoint_folder(location: str) -> Path:
    """Where the files are that were just loaded: the folder itself, or the hub's snapshot in the cache."""
    folder = Path(location).expanduser()
    return folder if folder.is_dir() else Path(str(cached_file(location, "config.json"))).parent


def _looks_local(location: str) -> bool:
    """A hub id is a name, or an owner and a name; everything else can only be meant as a path."""
    return location.startswith(("/", "~", ".")) or location.count("/") > 1


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip(".")
