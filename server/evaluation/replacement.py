"""Full replacement: a model that goes on from another model's activations instead of its own (arXiv 2503.04429, 4.2).

It asks how much of what a site carries a mapper carries over. It is a diagnostic, never a way to serve: out of
distribution it ruins the model (section 6 there).

Shapes: B texts, T tokens of the longest, N replaced tokens, S source width, D target width, V vocabulary.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mappers.activations.collect import collect, pad_batch
from mappers.alignment import token_ends
from mappers.dataset import DatasetRow
from mappers.hooks import block_outputs
from mappers.loading import LoadedModel, eos_token_ids
from mappers.losses import next_token_kl
from mappers.rendering import Rendered, render
from mappers.sites import Site

Carry = Callable[[Tensor], Tensor]
"""Source activations ``x_NS`` to target activations ``y_ND``; the control gives the target's mean for all of them."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """``target`` with its activations at ``target_site`` replaced by ``carry`` of the source's at ``source_site``.

    Each target token of a message's content, and the one that ends the prompt, gets what the source had read when it
    had read as much of the text and no more; tokens of chat templates keep their own. ``carry`` None replaces nothing.
    """

    source: LoadedModel
    target: LoadedModel
    source_site: Site
    target_site: Site
    carry: Carry | None

    @torch.no_grad()
    def complete(self, prompts: Sequence[str], max_tokens: int) -> list[str]:
        """Greedy completions; every step reads the whole text again with both models, since all of it is replaced.

        Both read it as text: a tokenizer may cut the same text into other tokens than were drawn.
        """
        ends = eos_token_ids(self.target.model)
        made: list[list[int]] = [[] for _ in prompts]
        running = list(range(len(prompts)))
        for _ in range(max_tokens):
            texts = [self._decode(made[row]) for row in running]
            rendered = [
                self._rendered(self.target, prompts[row], text) for row, text in zip(running, texts, strict=True)
            ]
            ids = [one.ids for one in rendered]
            logits_BTV = self._logits([prompts[row] for row in running], texts, ids)
            last = [len(one) - 1 for one in ids]
            drawn = logits_BTV[torch.arange(len(running)), last].argmax(-1).tolist()
            for row, token in zip(running, drawn, strict=True):
                made[row].append(token)
            running = [row for row in running if made[row][-1] not in ends]
            if not running:
                break
        return [self._decode([token for token in tokens if token not in ends]) for tokens in made]

    @torch.no_grad()
    def divergence(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """For each text the mean ``KL(own || replaced)`` over the tokens of its answer, in nats."""
        rendered = [self._rendered(self.target, p, a) for p, a in zip(prompts, answers, strict=True)]
        ids = [one.ids for one in rendered]
        replaced_BTV = self._logits(prompts, answers, ids)
        own = Replacement(self.source, self.target, self.source_site, self.target_site, None)
        own_BTV = own._logits(prompts, answers, ids)
        found = []
        for row, one in enumerate(rendered):
            places = slice(one.prompt_end, len(one.ids) - 1)
            found.append(float(next_token_kl(own_BTV[row, places], replaced_BTV[row, places])))
        return found

    def _logits(self, prompts: Sequence[str], answers: Sequence[str], ids: Sequence[Sequence[int]]) -> Tensor:
        device = next(self.target.model.parameters()).device
        batch = pad_batch(ids, range(len(ids)), device)
        callbacks = {}
        if self.carry is not None:
            rows, places, y_ND = self._carried(prompts, answers, self.carry)

            def replace(h_BTD: Tensor) -> Tensor:
                replaced_BTD = h_BTD.clone()
                replaced_BTD[rows, places] = y_ND.to(h_BTD)
                return replaced_BTD

            callbacks = {self.target_site: replace}
        model: Any = self.target.model
        with block_outputs(self.target.stack, callbacks):
            logits: Tensor = model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT.long(), use_cache=False).logits
        return logits

    def _carried(
        self, prompts: Sequence[str], answers: Sequence[str], carry: Carry
    ) -> tuple[list[int], list[int], Tensor]:
        """Row and position of each replaced token, and what replaces it."""
        ours = [self._rendered(self.source, p, a) for p, a in zip(prompts, answers, strict=True)]
        theirs = [self._rendered(self.target, p, a) for p, a in zip(prompts, answers, strict=True)]
        (found,) = collect(self.source, [self.source_site], [one.ids for one in ours], batch_size=len(ours))
        at = {row: place for place, row in enumerate(found.rows)}
        rows, places, x = [], [], []
        for row, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            for target_place, source_place in _read_as_far(one, other):
                rows.append(row)
                places.append(target_place)
                x.append(found.hidden[self.source_site][at[row], source_place])
        return rows, places, carry(torch.stack(x))

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self.target.tokenizer.decode(tokens, skip_special_tokens=True))

    @staticmethod
    def _rendered(loaded: LoadedModel, prompt: str, answer: str) -> Rendered:
        return render(loaded.tokenizer, DatasetRow(prompt=prompt), answer=answer)


def _read_as_far(source: Rendered, target: Rendered) -> list[tuple[int, int]]:
    """``(target token, the last source token that has read no more of the same content)``."""
    ends = token_ends(source)
    keys = sorted(ends)
    pairs = {target.prompt_end: source.prompt_end}
    for key, place in token_ends(target).items():
        found = bisect_right(keys, key) - 1
        if found >= 0 and keys[found][0] == key[0]:
            pairs[place] = ends[keys[found]]
    return sorted(pairs.items())
