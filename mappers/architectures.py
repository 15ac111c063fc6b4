"""Finds the decoder blocks of any causal language model from its structure, and names its configuration."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from torch import nn

from mappers.errors import ArtifactMismatch, UnsupportedArchitecture
from mappers.sites import Site

_VOLATILE_KEYS = frozenset(
    {
        "_name_or_path",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_experts_implementation",
        "_output_attentions",
        "attn_implementation",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "transformers_weights",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
    }
)
"""Keys that change with the library, the precision or the way of running, but not with the function computed."""

_POSITIONWISE_ATTENTION = frozenset({"full_attention", "sliding_attention"})
"""Attention kinds whose state is keys and values a token; all others keep a running state or a chunk grid."""


@dataclass(frozen=True, slots=True)
class DecoderStack:
    """The decoder blocks in the order in which they run, and the width ``D`` of the residual stream between them."""

    blocks: tuple[nn.Module, ...]
    width: int

    @property
    def layers(self) -> int:
        """Number of decoder blocks; sites go from ``Site(0)`` to ``Site(layers - 1)``."""
        return len(self.blocks)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site of the model, from the lowest."""
        return tuple(Site(layer) for layer in range(self.layers))

    def site_module(self, site: Site) -> nn.Module:
        """The module whose output is ``site``; raises ArtifactMismatch where the model has no such layer."""
        if site.layer >= self.layers:
            raise ArtifactMismatch(f"layer {site.layer} does not exist: this model has layers 0 to {self.layers - 1}")
        return self.blocks[site.layer]


def discover(model: nn.Module) -> DecoderStack:
    """Finds the decoder stack of a transformers causal language model.

    The stack is the largest ``ModuleList`` with one entry a hidden layer; no list of known architectures is kept.
    Raises UnsupportedArchitecture, with the reason, for encoder-decoders, for recurrent or hybrid models (their state
    is not keys and values, so a row could not be moved or resumed exactly) and where no single stack is found.
    """
    config: Any = model.config
    refuse_inexact(config, model)
    text_config = config.get_text_config(decoder=True)
    layers = int(text_config.num_hidden_layers)
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == layers]
    lists = [m for m in lists if len({type(block) for block in m}) == 1 and _parameter_count(m) > 0]
    if not lists:
        raise UnsupportedArchitecture(
            f"{type(model).__name__}: found no list of {layers} equal decoder blocks; interventions need block outputs"
        )
    blocks = max(lists, key=_parameter_count)
    return DecoderStack(tuple(blocks), int(text_config.hidden_size))


def refuse_inexact(config: Any, model: nn.Module | None = None) -> None:
    """Raises UnsupportedArchitecture where the configuration alone shows that rows cannot be served exactly."""
    name = type(model).__name__ if model is not None else str(config.model_type)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedArchitecture(f"{name} is an encoder-decoder; only decoder-only models are served")
    text_config = config.get_text_config(decoder=True)
    kinds = set(getattr(text_config, "layer_types", None) or ())
    if odd := sorted(kinds - _POSITIONWISE_ATTENTION):
        raise UnsupportedArchitecture(
            f"{name} has layers of kind {', '.join(odd)}: their state is not one key and value per token, "
            "so mixed batches could not be served exactly"
        )
    if model is not None and getattr(model, "_is_stateful", False):
        raise UnsupportedArchitecture(f"{name} keeps a recurrent state; only attention models are served exactly")


def config_digest(config: Any) -> str:
    """sha256 (hex) over the configuration without keys that depend on library version, precision or local path."""
    plain = _without_volatile(json.loads(config.to_json_string(use_diff=False)))
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_volatile(v) for k, v in value.items() if k not in _VOLATILE_KEYS}
    if isinstance(value, list):
        return [_without_volatile(v) for v in value]
    return value


def _parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
