"""Datasets as prompts whose activations make a vector."""

from __future__ import annotations

from mappers.errors import DataError
from mappers.loading import LoadedModel
from mappers.rendering import render
from server.jobs.context import JobContext

Sequences = list[tuple[int, ...]]


def prompt_ids(job: JobContext, loaded: LoadedModel, reference: str, max_length: int) -> Sequences:
    """Token ids of the rows of a dataset as prompts ready for an answer (texts as they stand), answers left out.

    Rows over ``max_length`` tokens are left out whole: cut, their last token would be another. Raises DataError where
    none is left.
    """
    sequences = [render(loaded.tokenizer, row).ids for row in job.rows(reference)]
    fitting = [ids for ids in sequences if 0 < len(ids) <= max_length]
    if not fitting:
        raise DataError(f"no row of {reference!r} has 1 to {max_length} tokens: raise max_length or change the rows")
    return fitting
