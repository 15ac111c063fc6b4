"""Which arithmetic a model is served in: what the operator named, or the best that this machine computes natively."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig

from server.engine.linears import WeightFormat, has_int8, has_onednn
from server.settings import ConfigurationError, DtypeSetting

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
"""x86 and ARM features with which bfloat16 is faster than float32; without them it is emulated, and slower."""
_NATIVE_INT8 = ("avx512_vnni", "amx_int8")
"""Features with which products of bytes are summed in 32 bits; older instructions saturate at 16 bits."""


@dataclass(frozen=True, slots=True)
class Precision:
    """How weights are loaded and computed.

    ``dtype`` is that of hidden states and of weights that are not quantised; "auto" is the checkpoint's.
    ``quantization`` is what ``from_pretrained`` gets. ``training`` is what jobs compute in, never quantised; None for
    the dtype that hidden states turn out to have. ``reason`` tells the operator why, and what else there is.
    """

    dtype: torch.dtype | Literal["auto"]
    weight_format: WeightFormat = "native"
    quantization: Any | None = None
    training: str | None = None
    reason: str = ""

    def training_dtype(self, model: Any) -> str:
        """What jobs compute in while ``model`` is served."""
        if self.training is not None:
            return self.training
        found = served_dtype(model)
        return found if found in _DTYPES else "bfloat16"


def pick_precision(wanted: DtypeSetting, device: str, capabilities: Mapping[str, Any]) -> Precision:
    """The arithmetic named by ``wanted`` on ``device``; ``capabilities`` are those of ``torch.cpu.get_capabilities``.

    Raises ConfigurationError where this machine or this environment cannot compute it.
    """
    if wanted == "auto":
        return _best(device, capabilities)
    if wanted in ("int8", "int4"):
        return _quantised_on_cpu(wanted, capabilities) if device == "cpu" else _quantised_on_gpu(wanted)
    return Precision(_DTYPES[wanted])


def served_dtype(model: Any) -> str:
    """What the arithmetic of a loaded ``model`` is called: int8, int4, or the dtype of its weights."""
    if has_int8(model) or getattr(model, "is_loaded_in_8bit", False):
        return "int8"
    if getattr(model, "is_loaded_in_4bit", False):
        return "int4"
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def _best(device: str, capabilities: Mapping[str, Any]) -> Precision:
    if device != "cpu":
        return Precision("auto", reason="the checkpoint's own; --dtype int8 or int4 takes less memory")
    if any(capabilities.get(feature) for feature in _NATIVE_BF16):
        reason = "this CPU computes it natively; --dtype float32 is exact, int8 smaller"
        return Precision(torch.bfloat16, training="float32", reason=reason)
    return Precision(torch.float32, reason="this CPU has no native bfloat16")


def _quantised_on_cpu(wanted: DtypeSetting, capabilities: Mapping[str, Any]) -> Precision:
    if wanted == "int4":
        raise ConfigurationError("dtype: int4 needs a CUDA GPU: use --dtype int8 or bfloat16 on a CPU")
    if not (has_onednn() and any(capabilities.get(feature) for feature in _NATIVE_INT8)):
        raise ConfigurationError(
            "dtype: int8 needs a CPU with AVX-512 VNNI or AMX, and a torch build with oneDNN: use --dtype float32"
        )
    return Precision(torch.float32, "int8", training="float32")


def _quantised_on_gpu(wanted: DtypeSetting) -> Precision:
    if missing := [package for package in ("bitsandbytes", "accelerate") if find_spec(package) is None]:
        raise ConfigurationError(
            f"dtype: {wanted} on a GPU needs {' and '.join(missing)}: pip install 'interlock[bitsandbytes]'"
        )
    if wanted == "int4":
        chosen = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    else:
        # The outlier columns of a threshold are those of the whole batch: one row would change another.
        chosen = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return Precision(torch.bfloat16, quantization=chosen, training="bfloat16")
