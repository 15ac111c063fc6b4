"""What replaces a prefix, as vectors that can be carried from one model to another (arXiv 2503.04429, section 4).

A model that says a filler for each token of a prefix goes on as if it had said the prefix, provided that two things
are moved: where it reads a filler, the state after the first block to what it would be at the token of the prefix
(*entry*), and where it is about to say that token, the state after the last block to what it is where it says the
filler anyway (*exit*). At each place both are differences in means of states that occur by themselves, so a mapper
carries them as it carries any vector: ``mean f(h+) - mean f(h-)``. What is said elsewhere has to stay, so a gate is
fitted on states of the model that is edited: a residual mapper that moves those it is meant for and no others.

Offsets count from the last token of the prompt (0), at which the first token of the answer is predicted.

Shapes: N positions, D width of the model whose states they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from mappers.activations.pairs import Pairs
from mappers.distillation import Lesson
from mappers.errors import DataError
from mappers.exchanges import Exchange
from mappers.loading import LoadedModel
from mappers.modules import Mapper
from mappers.replies import at_loss_positions, read_replies
from mappers.sites import Site

Moves = dict[int, Tensor]
"""Offset -> vector ``v_D`` that is added there."""

_BATCH = 64


def answer_states(
    loaded: LoadedModel, exchanges: Sequence[Exchange], site: Site, below: Mapping[Site, Mapper] | None = None
) -> Tensor:
    """``h_ND`` (float32, CPU) at every loss position of the exchanges, one after the other.

    The mappers ``below`` act from the last token of the prompt on. Raises DataError without exchanges.
    """
    if not exchanges:
        raise DataError("there are no answers to read states from: give at least one exchange")
    sites, found = sorted({site, *(below or {})}), []
    with torch.no_grad():
        for start in range(0, len(exchanges), _BATCH):
            batch = exchanges[start : start + _BATCH]
            replies = read_replies(loaded, batch, sites, below, acting="answer")
            found.append(replies.hidden[site][at_loss_positions(batch)].float().cpu())
    return torch.cat(found)


def entry_moves(loaded: LoadedModel, site: Site, lessons: Sequence[Lesson], through: Mapper | None = None) -> Moves:
    """From the fillers read to the tokens of the prefix read, at offsets ``1 .. n``; seen ``through`` a mapper if any.

    Raises DataError for lessons without a filler.
    """
    length = _length(lessons)
    taught, asked = [lesson.taught for lesson in lessons], [lesson.asked for lesson in lessons]
    after = _means(taught, answer_states(loaded, taught, site), range(1, length + 1), through)
    before = _means(asked, answer_states(loaded, asked, site), range(1, length + 1), through)
    return {offset: after[offset] - before[offset] for offset in after}


def exit_moves(
    loaded: LoadedModel,
    site: Site,
    lessons: Sequence[Lesson],
    kept: Sequence[Exchange],
    through: Mapper | None = None,
) -> Moves:
    """From about to say the prefix to about to say the filler as in the answers ``kept``, at offsets ``0 .. n - 1``.

    Raises DataError for lessons without a filler, and where no answer kept has it.
    """
    length, filler = _length(lessons), lessons[0].asked.ids[lessons[0].asked.answer_start]
    said = [position for position, token in enumerate(_next_tokens(kept)) if token == filler]
    if not said:
        raise DataError("the filler is said in none of the answers kept: choose a token that the model says by itself")
    aim_D = _mapped(answer_states(loaded, kept, site)[said], through).mean(0)
    taught = [lesson.taught for lesson in lessons]
    before = _means(taught, answer_states(loaded, taught, site), range(length), through)
    return {offset: aim_D - before_D for offset, before_D in before.items()}


def gate_pairs(
    loaded: LoadedModel,
    site: Site,
    moves: Moves,
    lessons: Sequence[Lesson],
    kept: Sequence[Exchange],
    below: Mapping[Site, Mapper] | None = None,
) -> Pairs:
    """What a residual mapper at ``site`` has to learn: the moves on the lessons as asked, nothing on all other states.

    The mappers ``below`` are on, so that it reads what it will read when served.
    """
    asked = [lesson.asked for lesson in lessons]
    x_ND = answer_states(loaded, [*asked, *kept], site, below)
    y_ND = x_ND.clone()
    offsets_N = _offsets(asked)
    for offset, v_D in moves.items():
        y_ND[: len(offsets_N)][offsets_N == offset] += v_D
    return Pairs(x_ND, y_ND)


def _means(exchanges: Sequence[Exchange], h_ND: Tensor, offsets: range, through: Mapper | None) -> Moves:
    offsets_N = _offsets(exchanges)
    return {offset: _mapped(h_ND[offsets_N == offset], through).mean(0) for offset in offsets}


def _mapped(h_ND: Tensor, through: Mapper | None) -> Tensor:
    if through is None:
        return h_ND
    with torch.no_grad():
        mapped_ND: Tensor = through(h_ND)
    return mapped_ND


def _offsets(exchanges: Sequence[Exchange]) -> Tensor:
    return torch.cat([torch.arange(len(exchange.loss_positions)) for exchange in exchanges])


def _next_tokens(exchanges: Sequence[Exchange]) -> list[int]:
    return list(chain.from_iterable(exchange.ids[exchange.answer_start :] for exchange in exchanges))


def _length(lessons: Sequence[Lesson]) -> int:
    lengths = {lesson.dictated for lesson in lessons}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError("moves need lessons with one filler for each token of one prefix: give without_prefix a filler")
    return lengths.pop()
