"""Finds the linear layers of a loaded model, and which of them read one tensor.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mappers.errors import UnsupportedArchitecture
from mappers.hooks import recorded_inputs


@dataclass(frozen=True, slots=True, eq=False)
class LinearLayer:
    """One layer, where it hangs in the model, and what it computes: ``x weight_OI^T + bias_O``."""

    parent: nn.Module
    name: str
    weight_OI: Tensor
    bias_O: Tensor | None


def read_together(model: nn.Module) -> list[list[LinearLayer]]:
    """All linear layers; those of one module that are given the very same tensor stand together.

    Which these are is seen in one forward over two tokens, not taken from names. Only layers that are exactly torch's
    ``Linear`` or transformers' ``Conv1D`` count: subclasses may compute something else.

    Raises UnsupportedArchitecture where that forward fails.
    """
    layers = dict(_linear_layers(model))
    try:
        with torch.inference_mode(), recorded_inputs(layers) as read:
            run: Any = model
            run(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False)
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UnsupportedArchitecture(f"{type(model).__name__} does not run: {reason}") from error
    together: dict[tuple[int, int], list[LinearLayer]] = {}
    for module, layer in layers.items():
        once = len(read[module]) == 1
        key = (id(layer.parent), id(read[module][0])) if once else (id(module), 0)
        together.setdefault(key, []).append(layer)
    return list(together.values())


def _linear_layers(model: nn.Module) -> Iterator[tuple[nn.Module, LinearLayer]]:
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                bias_O = None if child.bias is None else child.bias.detach()
                yield child, LinearLayer(parent, name, child.weight.detach(), bias_O)
            elif type(child) is Conv1D:
                layer: Any = child
                yield child, LinearLayer(parent, name, layer.weight.detach().t(), layer.bias.detach())
