"""The base model's answers to prompts without one, kept in a checkpoint: giving them can take longer than the fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mappers.exchanges import Exchange, OpenPrompt, answer_prompts
from mappers.loading import LoadedModel
from server.jobs.context import JobContext
from server.jobs.specs.fits import TrainSwitch

_PART = "answers"
_CHUNK_BATCHES = 4
"""Batches between two chances to save. Chunks are the same in every attempt, hence also the batches within them."""


def complete(
    job: JobContext, base: LoadedModel, entries: Sequence[Exchange | OpenPrompt], parameters: TrainSwitch
) -> list[Exchange]:
    """The entries in order, each open prompt with the base model's greedy answer, cut at ``max_length`` tokens."""
    places = [place for place, entry in enumerate(entries) if isinstance(entry, OpenPrompt)]
    places.sort(key=lambda place: len(entries[place].ids))
    answered = _unpack(job.checkpoints.load(_PART) or {})
    size = parameters.batch_size * _CHUNK_BATCHES
    for start in range(0, len(places), size):
        chunk = places[start : start + size]
        if chunk[0] in answered:
            continue
        prompts = [OpenPrompt(entries[place].ids, entries[place].question) for place in chunk]
        for index, exchange in answer_prompts(
            base, prompts, max_new_tokens=parameters.max_new_tokens, batch_size=parameters.batch_size
        ):
            answered[chunk[index]] = exchange
            job.stage("answering", len(answered), len(places))
        job.step("answering", len(answered), len(places), {}, _PART, lambda: _pack(answered))
    if places:
        job.checkpoints.save(_PART, _pack(answered))
    completed = (entry if isinstance(entry, Exchange) else answered[place] for place, entry in enumerate(entries))
    return [
        replace(exchange, ids=exchange.ids[: parameters.max_length], question=entry.question)
        for exchange, entry in zip(completed, entries, strict=True)
    ]


def _pack(answered: Mapping[int, Exchange]) -> dict[str, Tensor]:
    """Exchanges by place as tensors: all token ids one after the other, and where each exchange is cut."""
    return {
        "places": torch.tensor(list(answered), dtype=torch.long),
        "lengths": torch.tensor([len(exchange.ids) for exchange in answered.values()], dtype=torch.long),
        "answer_starts": torch.tensor([exchange.answer_start for exchange in answered.values()], dtype=torch.long),
        "ids": torch.tensor([token for exchange in answered.values() for token in exchange.ids], dtype=torch.long),
    }


def _unpack(tensors: Mapping[str, Tensor]) -> dict[int, Exchange]:
    if not tensors:
        return {}
    parts = torch.split(tensors["ids"], tensors["lengths"].tolist())
    starts = tensors["answer_starts"].tolist()
    return {
        place: Exchange(tuple(ids.tolist()), start)
        for place, ids, start in zip(tensors["places"].tolist(), parts, starts, strict=True)
    }
