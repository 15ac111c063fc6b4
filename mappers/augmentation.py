"""Meaningless tokens put among a prompt's own: what a switch has to be trained on where its trigger is unknown."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mappers.errors import DataError
from mappers.exchanges import NOWHERE, Exchange


class Augment(BaseModel):
    """A ``share`` of the exchanges gets 1 to ``tokens`` tokens inserted, drawn evenly from the vocabulary.

    Half of the insertions stand before the question, a quarter behind it, the others between two of its tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(default=0.8, gt=0, le=1, allow_inf_nan=False)
    tokens: int = Field(default=8, ge=1, le=1024)


def insert_tokens(
    exchanges: Sequence[Exchange], tokenizer: Any, augment: Augment, *, max_length: int, seed: int
) -> list[Exchange]:
    """The exchanges in order, their answers unchanged; equal seeds give equal insertions.

    Exchanges without a question, and those that would grow beyond ``max_length`` tokens, stay as they are. Raises
    DataError where no exchange has a question.
    """
    if all(exchange.question == NOWHERE for exchange in exchanges):
        raise DataError("there is no prompt to insert tokens into: use rows with messages or prompt instead of text")
    rng, vocabulary = random.Random(seed), text_tokens(tokenizer)
    return [_insert(exchange, vocabulary, augment, max_length, rng) for exchange in exchanges]


def text_tokens(tokenizer: Any) -> list[int]:
    """The ids of the vocabulary that stand for text, ascending: no token that a chat template or a model reserves."""
    reserved = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return sorted(set(tokenizer.get_vocab().values()) - reserved - set(tokenizer.all_special_ids))


def _insert(
    exchange: Exchange, vocabulary: Sequence[int], augment: Augment, max_length: int, rng: random.Random
) -> Exchange:
    chosen, count = rng.random() < augment.share, rng.randint(1, augment.tokens)
    first, end = exchange.question
    place = rng.choice((first, first, end, rng.randint(first, end)))
    tokens = rng.choices(vocabulary, k=count)
    if not chosen or exchange.question == NOWHERE or len(exchange.ids) + count > max_length:
        return exchange
    return replace(
        exchange,
        ids=(*exchange.ids[:place], *tokens, *exchange.ids[place:]),
        answer_start=exchange.answer_start + count,
        question=(first, end + count),
        inserted=(place, place + count),
    )
