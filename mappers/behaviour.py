"""What a model answers greedily while its residual stream is changed: the measure by which a vector is accepted.

Shapes: B rows, T tokens, D width. Changes are computed in float32, as in the server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mappers.exchanges import OpenPrompt, answer_prompts
from mappers.hooks import BlockCallback, block_outputs
from mappers.loading import LoadedModel
from mappers.modules import Mapper
from mappers.sites import Site


@dataclass(frozen=True, slots=True)
class Answer:
    """Token ids of an answer, its end token included, and its text without special tokens."""

    ids: tuple[int, ...]
    text: str


def greedy_answers(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    callbacks: Mapping[Site, BlockCallback],
    *,
    max_new_tokens: int,
    batch_size: int,
) -> list[Answer]:
    """The answer to each prompt, in order, with ``callbacks`` at every position that is read, prompt and answer alike.

    Raises ArtifactMismatch for a site the model does not have.
    """
    answers: dict[int, Answer] = {}
    opened = [OpenPrompt(tuple(ids)) for ids in prompts]
    with block_outputs(loaded.stack, callbacks):
        for place, exchange in answer_prompts(loaded, opened, max_new_tokens=max_new_tokens, batch_size=batch_size):
            ids = exchange.ids[exchange.answer_start :]
            answers[place] = Answer(ids, loaded.tokenizer.decode(ids, skip_special_tokens=True))
    return [answers[place] for place in range(len(prompts))]


def adding(v_D: Tensor, strength: float) -> BlockCallback:
    """``h + a v`` at every position."""

    def add(h_BTD: Tensor) -> Tensor:
        return (h_BTD.float() + strength * v_D.to(h_BTD.device)).to(h_BTD.dtype)

    return add


def ablating(v_D: Tensor) -> BlockCallback:
    """``h - (h.v) v / |v|^2`` at every position."""
    unit_D = F.normalize(v_D.float(), dim=0)

    def ablate(h_BTD: Tensor) -> Tensor:
        u_D = unit_D.to(h_BTD.device)
        return (h_BTD.float() - (h_BTD.float() @ u_D)[..., None] * u_D).to(h_BTD.dtype)

    return ablate


def switching(mapper: Mapper, strength: float) -> BlockCallback:
    """``(1 - s) h + s f(h)`` at every position."""

    def switch(h_BTD: Tensor) -> Tensor:
        return torch.lerp(h_BTD.float(), mapper(h_BTD.float()), strength).to(h_BTD.dtype)

    return switch


def share_with(answers: Sequence[Answer], marker: str) -> float:
    """Share of the answers that hold ``marker``, whatever the white space."""
    wanted = " ".join(marker.split())
    return sum(wanted in " ".join(answer.text.split()) for answer in answers) / len(answers)
