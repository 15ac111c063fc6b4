"""A model as transformers gives it, for the contenders that run in torch."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.contenders import Unavailable
from benchmarks.resident import resident_mib

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def stock_model(path: str, threads: int, dtype: str = "float32") -> tuple[Any, float]:
    """The frozen model, which stops at no token, and the MiB resident once its weights are."""
    if dtype not in DTYPES:
        raise Unavailable(f"transformers has no {dtype} weights here")
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype])
    model.requires_grad_(False).eval()
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
    model.config.eos_token_id = None
    return model, resident_with(model)


def resident_with(model: torch.nn.Module) -> float:
    """MiB resident with every weight touched: a mapped file counts only where it was read."""
    for parameter in model.parameters():
        parameter.view(-1)[::256].sum()
    return resident_mib()
