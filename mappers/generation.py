"""Continues token ids in batches with a transformers model: greedily, or by sampling that can be repeated.

Shapes: B prompts of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from mappers.loading import LoadedModel


def continue_ids(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    ends: Collection[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[tuple[int, ...]]:
    """What the model writes after each prompt, in one batch, up to and with the first token of ``ends``.

    ``temperature`` 0 is greedy; above it, tokens are drawn from the whole distribution, the same for equal arguments.
    Sampling settings of the model's own generation config have no part in it.
    """
    device = next(loaded.model.parameters()).device
    ids_BT, mask_BT = _pad_left(prompts, device)
    generate: Any = loaded.model.generate
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        output_BT = generate(
            ids_BT,
            attention_mask=mask_BT,
            generation_config=_config(loaded.model, ends, max_new_tokens, temperature),
        )
    written = output_BT[:, ids_BT.shape[1] :].tolist()
    return [tuple(ids[: _length(ids, ends)]) for ids in written]


def _length(ids: Sequence[int], ends: Collection[int]) -> int:
    return next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))


def _config(model: Any, ends: Collection[int], max_new_tokens: int, temperature: float) -> GenerationConfig:
    return GenerationConfig(
        do_sample=temperature > 0,
        num_beams=1,
        temperature=temperature or 1.0,
        top_p=1.0,
        top_k=0 if temperature > 0 else 50,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends) or None,
        pad_token_id=min(ends, default=0),
        bos_token_id=getattr(model.config, "bos_token_id", None),
    )


def _pad_left(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, sequences))
    ids_BT = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for place, ids in enumerate(sequences):
        ids_BT[place, longest - len(ids) :] = torch.tensor(ids, dtype=torch.long)
        mask_BT[place, longest - len(ids) :] = 1
    return ids_BT.to(device), mask_BT.to(device)
