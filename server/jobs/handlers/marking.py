"""The check of behaviour that a transfer may ask for: how many greedy answers hold a marker, setting by setting."""

from __future__ import annotations

from collections.abc import Mapping

from mappers.behaviour import greedy_answers, share_with
from mappers.hooks import BlockCallback
from mappers.loading import LoadedModel
from mappers.sites import Site
from server.jobs.context import JobContext
from server.jobs.handlers.prompts import read_prompts
from server.jobs.specs.vectors import Check

_MAX_LENGTH = 131_072


def marker_rates(
    job: JobContext, loaded: LoadedModel, check: Check, settings: Mapping[str, Mapping[Site, BlockCallback]]
) -> dict[str, float]:
    """Share of the answers with the marker under each of ``settings``, as ``rate_<setting>``; raises DataError."""
    prompts = [prompt.ids for prompt in read_prompts(job, loaded, check.dataset, _MAX_LENGTH)]
    rates: dict[str, float] = {}
    for name, callbacks in settings.items():
        job.stage(f"checking behaviour: {name}", len(rates), len(settings))
        answers = greedy_answers(
            loaded, prompts, callbacks, max_new_tokens=check.max_new_tokens, batch_size=check.batch_size
        )
        rates[f"rate_{name}"] = share_with(answers, check.marker)
    return rates
