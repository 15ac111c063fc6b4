"""Datasets as prompts of one model, or as texts that two models read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mappers.dataset import DatasetRow
from mappers.errors import DataError
from mappers.loading import LoadedModel
from mappers.rendering import Rendered, render
from server.jobs.context import JobContext

Texts = tuple[Rendered, Rendered]
"""One row, answer included, as the source and as the target model read it."""


def read_prompts(
    job: JobContext, loaded: LoadedModel, reference: str, max_length: int, *, answers: bool = False
) -> list[Rendered]:
    """The rows of a dataset as prompts ready for an answer (texts as they stand), with their ``answers`` or without.

    Rows over ``max_length`` tokens are left out whole: cut, their last token would be another. Raises DataError where
    none is left.
    """
    found = [prompt for prompt in rendered(loaded, job.rows(reference), answers=answers) if fits(prompt, max_length)]
    if not found:
        raise DataError(f"no row of {reference!r} has 1 to {max_length} tokens: raise max_length or change the rows")
    return found


def rendered(loaded: LoadedModel, rows: Iterable[DatasetRow], *, answers: bool = False) -> list[Rendered]:
    """Each row as the model reads it before it answers, or with its answer; raises DataError."""
    return [render(loaded.tokenizer, row, answer=row.answer if answers else None) for row in rows]


def fits(prompt: Rendered, max_length: int) -> bool:
    """Whether a prompt is read at all."""
    return 0 < len(prompt.ids) <= max_length


def texts_of_both(source: LoadedModel, target: LoadedModel, rows: Sequence[DatasetRow], max_length: int) -> list[Texts]:
    """The rows that neither model reads as more than ``max_length`` tokens."""
    texts = [tuple(render(side.tokenizer, row, answer=row.answer) for side in (source, target)) for row in rows]
    return [(ours, theirs) for ours, theirs in texts if max(len(ours.ids), len(theirs.ids)) <= max_length]
