"""Activation patching: at which site the activations of another prompt change what a model is about to say.

Meng et al. 2022 (arXiv 2202.05262) and Wang et al. 2022 (arXiv 2211.00593) patch single activations into another run;
Zhang and Nanda 2023 (arXiv 2309.16042) compare the variants. Here a triggered prompt gets its clean counterpart's.

Shapes: B pairs of a batch, T tokens, D width, V vocabulary, K patched tokens, M tokens of the marker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mappers.activations.collect import keep_output, pad_batch
from mappers.errors import DataError
from mappers.hooks import BlockCallback, block_outputs
from mappers.loading import LoadedModel
from mappers.sites import Site

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PromptPair:
    """Token ids of a prompt with the trigger and of the same prompt without it."""

    triggered: Ids
    clean: Ids


@dataclass(frozen=True, slots=True)
class Patched:
    """Mean log-probability (nats) of the marker after triggered prompts patched at ``site``.

    ``last``: at the last prompt token alone. ``every``: at all tokens that both prompts have, counted from the end.
    ``last_share`` and ``every_share`` are ``(patched - triggered) / (clean - triggered)``: 0 is no effect, 1 is all of
    it; they are NaN where the two prompts do not differ.
    """

    site: Site
    last: float
    every: float
    last_share: float
    every_share: float


@torch.no_grad()
def patch_sites(
    loaded: LoadedModel, sites: Sequence[Site], pairs: Sequence[PromptPair], marker: Ids, *, batch_size: int
) -> list[Patched]:
    """Patches each site alone; ``marker`` is scored as the beginning of the answer.

    Takes ``2 + 2 len(sites)`` forwards a batch. Raises DataError without pairs or for an empty marker or prompt.
    """
    if not pairs or not marker or not all(pair.triggered and pair.clean for pair in pairs):
        raise DataError("patching needs a marker and pairs of prompts of at least one token each")
    sums = dict.fromkeys(["triggered", "clean", *((site, how) for site in sites for how in ("last", "every"))], 0.0)
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        clean: dict[Site, Tensor] = {}
        keep: dict[Site, BlockCallback] = {site: keep_output(clean, site) for site in sites}
        sums["clean"] += _marker_logprob(loaded, [pair.clean for pair in batch], marker, keep)
        triggered = [pair.triggered for pair in batch]
        sums["triggered"] += _marker_logprob(loaded, triggered, marker, {})
        for site in sites:
            for how, shared in (("last", False), ("every", True)):
                patch = _patch(clean[site], batch, shared)
                sums[site, how] += _marker_logprob(loaded, triggered, marker, {site: patch})
    means = {name: total / len(pairs) for name, total in sums.items()}
    return [_patched(site, means) for site in sites]


def _patched(site: Site, means: dict[Any, float]) -> Patched:
    whole = means["clean"] - means["triggered"]
    last, every = means[site, "last"], means[site, "every"]
    shares = [(value - means["triggered"]) / whole if whole else float("nan") for value in (last, every)]
    return Patched(site, last, every, *shares)


def _patch(clean_BTD: Tensor, pairs: Sequence[PromptPair], shared: bool) -> BlockCallback:
    """Puts the clean prompts' activations in the place of the last (or all shared) tokens of the triggered ones."""
    rows, into, out_of = [], [], []
    for row, pair in enumerate(pairs):
        for back in range(1, (min(len(pair.triggered), len(pair.clean)) if shared else 1) + 1):
            rows.append(row)
            into.append(len(pair.triggered) - back)
            out_of.append(len(pair.clean) - back)

    def patch(h_BTD: Tensor) -> Tensor:
        changed_BTD = h_BTD.clone()
        changed_BTD[rows, into] = clean_BTD[rows, out_of]
        return changed_BTD

    return patch


def _marker_logprob(
    loaded: LoadedModel, prompts: Sequence[Ids], marker: Ids, callbacks: dict[Site, BlockCallback]
) -> float:
    """Sum over the prompts of ``log p(marker | prompt)``."""
    device = next(loaded.model.parameters()).device
    batch = pad_batch([(*prompt, *marker[:-1]) for prompt in prompts], range(len(prompts)), device)
    model: Any = loaded.model
    with block_outputs(loaded.stack, callbacks):
        logits_BTV = model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT.long(), use_cache=False).logits
    rows_BM = torch.arange(len(prompts))[:, None]
    places_BM = torch.tensor([[len(prompt) - 1 + i for i in range(len(marker))] for prompt in prompts])
    log_BMV = logits_BTV[rows_BM, places_BM].float().log_softmax(-1)
    return float(log_BMV[:, torch.arange(len(marker)), torch.tensor(marker)].sum())
