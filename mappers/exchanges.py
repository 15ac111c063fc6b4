"""Prompts with their answers as token ids: what a switch is trained on.

Where a row leaves the answer open, the base model gives it greedily (self-distillation), so no labels are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from mappers.dataset import DatasetRow
from mappers.errors import DataError
from mappers.generation import continue_ids
from mappers.loading import LoadedModel, eos_token_ids
from mappers.offsets import Span
from mappers.rendering import Rendered, end_of_turn, render

NOWHERE: Final[Span] = (0, 0)


@dataclass(frozen=True, slots=True)
class Exchange:
    """Token ids of a prompt and its answer; the answer runs from ``answer_start`` (at least 1) to the end.

    Position ``i - 1`` predicts token ``i``, so the answer is predicted at positions ``answer_start - 1 .. len - 2``.
    ``question`` are the places of the tokens of the last message before the answer, without what a chat template puts
    around it (half-open; empty for a plain text); ``inserted`` those of tokens that were put among them and mean
    nothing (:mod:`mappers.augmentation`).
    """

    ids: tuple[int, ...]
    answer_start: int
    question: Span = NOWHERE
    inserted: Span = NOWHERE

    @property
    def loss_positions(self) -> range:
        """Positions whose next-token distribution is compared."""
        return range(self.answer_start - 1, len(self.ids) - 1)


@dataclass(frozen=True, slots=True)
class OpenPrompt:
    """A prompt whose answer the base model still has to give; ``question`` as in :class:`Exchange`."""

    ids: tuple[int, ...]
    question: Span = NOWHERE


def read_rows(loaded: LoadedModel, rows: Iterable[DatasetRow], *, max_length: int) -> Iterator[Exchange | OpenPrompt]:
    """Rows as token ids, in order. An answer ends with the token that closes a turn, and is cut at ``max_length``.

    A plain text is an answer from its second token on. Rows whose prompt leaves no room within ``max_length`` are left
    out. Raises DataError for rows the tokenizer cannot render.
    """
    end = end_of_turn(loaded.tokenizer, eos_token_ids(loaded.model))
    for row in rows:
        found = _read(loaded, row, end)
        if isinstance(found, OpenPrompt):
            if 0 < len(found.ids) < max_length:
                yield found
        elif 0 < found.answer_start < min(len(found.ids), max_length):
            yield replace(found, ids=found.ids[:max_length])


def answer_prompts(
    base: LoadedModel, prompts: Sequence[OpenPrompt], *, max_new_tokens: int, batch_size: int
) -> Iterator[tuple[int, Exchange]]:
    """The base model's greedy answers as ``(index in prompts, exchange)``, batch by batch, short prompts first.

    An answer includes its end token unless ``max_new_tokens`` cut it off.
    """
    ends = eos_token_ids(base.model)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        answers = continue_ids(base, [prompts[index].ids for index in chosen], ends=ends, max_new_tokens=max_new_tokens)
        for index, answer in zip(chosen, answers, strict=True):
            prompt = prompts[index]
            yield index, Exchange((*prompt.ids, *answer), len(prompt.ids), prompt.question)


def require_twins(tuned: LoadedModel, base: LoadedModel) -> None:
    """Raises DataError unless the two models read the same token ids and have residual streams of one shape."""
    if tuned.stack.width != base.stack.width or tuned.stack.layers != base.stack.layers:
        raise DataError(
            f"base has {base.stack.layers} layers of width {base.stack.width}, the served model has "
            f"{tuned.stack.layers} of width {tuned.stack.width}: a switch needs the model it was fine-tuned from"
        )
    if tuned.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise DataError("base and served model have different vocabularies: a switch needs one tokenizer for both")


def _read(loaded: LoadedModel, row: DatasetRow, end: int) -> Exchange | OpenPrompt:
    rendered = render(loaded.tokenizer, row, answer=row.answer)
    if row.text is not None:
        return Exchange(rendered.ids, 1)
    if rendered.answer_start is None:
        return OpenPrompt(rendered.ids, _tokens_of(rendered, rendered.content[-1]))
    return Exchange((*rendered.ids, end), rendered.answer_start, _tokens_of(rendered, rendered.content[-2]))


def _tokens_of(rendered: Rendered, characters: Span) -> Span:
    first, last = characters
    touched = [place for place, (start, stop) in enumerate(rendered.offsets) if start < last and first < stop]
    return (touched[0], touched[-1] + 1) if touched else NOWHERE
