"""``POST /v1/compare``: one prompt continued under several settings, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from secrets import randbits
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request

from server.api.auth import Caller, needs
from server.api.headers import STEERING_HEADER, SWITCH_HEADER, InterventionHeaders, SaidInHeaders
from server.api.json_body import JsonRoute
from server.api.openai.asking import Ask, check_model, check_size, prepare
from server.api.openai.generation import Choice, Generation, ends, row_id
from server.api.openai.whole import run
from server.api.rows import ScoringRows
from server.api.schemas.answers import ComparedSetting, Comparison, error_responses
from server.api.schemas.compare import CompareRequest
from server.api.services import InjectedServices, Services
from server.api.wishes import wishes_of
from server.errors import InvalidRequest
from server.policy.keys import Principal
from server.types import SamplingParams

if TYPE_CHECKING:
    from server.engine.text import EncodedPrompt, TextCodec

router = APIRouter(route_class=JsonRoute, dependencies=[needs("infer")], tags=["Generations"])


@router.post(
    "/v1/compare",
    summary="Continue a prompt under several settings",
    responses=error_responses(400, 401, 403, 404, 413, 429, 500, 503),
)
async def create_comparison(
    body: CompareRequest, request: Request, headers: SaidInHeaders, services: InjectedServices, principal: Caller
) -> Comparison:
    """The texts of all settings, where each first differs from the first one's, and how far the model does.

    `kl` is the Kullback-Leibler divergence of the model's next-token distribution under a setting from that under the
    first setting, in nats, at each token of the first setting's text: all settings read that text, whatever theirs is.
    """
    ask = _ask(body, headers, services, principal)
    request.state.request_id = ask.id
    generation = await prepare(services, ask)
    if body.divergence:
        services.engine.check_together(generation.rows.requests)
    choices = await run(generation, request)
    divergences = await _divergences(generation, choices[0].token_ids, services, request) if body.divergence else None
    finished = ends(choices)
    return {
        **generation.head,
        "object": "comparison",
        "settings": [
            _compared(index, body.settings[index].name, choices, divergences, services.codec)
            for index in range(len(choices))
        ],
        "usage": generation.usage(finished),
        "interlock": generation.interlock(finished),
    }


def _ask(body: CompareRequest, headers: InterventionHeaders, services: Services, principal: Principal) -> Ask:
    profile = check_model(services, body.model, principal)
    for said, name in ((headers.switch_text, SWITCH_HEADER), (headers.steering_text, STEERING_HEADER)):
        if said is not None:
            raise InvalidRequest(f"the header {name} does not say which setting it means: use settings", param=name)
    silent = InterventionHeaders()
    messages = None if body.messages is None else [message.plain() for message in body.messages]
    texts = [body.prompt or ""] if messages is None else [message["content"] for message in messages]
    characters = sum(len(text) for text in texts if isinstance(text, str))
    tokens = sum(len(text) for text in texts if not isinstance(text, str))
    prompt_param = "prompt" if messages is None else "messages"
    check_size(characters, tokens, services.engine.limits.context, prompt_param)

    def encode() -> list[EncodedPrompt]:
        if messages is not None:
            return [services.codec.encode_chat(messages)]
        if isinstance(body.prompt, list):
            return [services.codec.from_ids(body.prompt)]
        return [services.codec.encode(body.prompt or "")]

    return Ask(
        id=f"cmp-{services.new_id()}",
        # Without a seed each row would draw with numbers of its own.
        fields=body.model_copy(update={"seed": randbits(63)}) if body.seed is None else body,
        wishes=tuple(
            wishes_of(services, principal, setting, silent, profile, f"settings[{i}].")
            for i, setting in enumerate(body.settings)
        ),
        encode=encode,
        max_tokens=body.max_tokens,
        logprobs=None,
        prompt_param=prompt_param,
    )


async def _divergences(
    generation: Generation, text_ids: Sequence[int], services: Services, request: Request
) -> list[tuple[float, ...]]:
    """For each setting those from the first, one for each token of ``text_ids``."""
    if not text_ids:
        return [()] * generation.size
    requests = [
        replace(
            written,
            id=row_id(generation.head["id"], generation.size + index),
            sampling=SamplingParams(max_tokens=0),
            scored_ids=tuple(text_ids),
        )
        for index, written in enumerate(generation.rows.requests)
    ]
    rows = ScoringRows(services.engine, requests, services.metrics, services.stopwatch, services.tracing)
    return [choice.divergences for choice in await run(replace(generation, rows=rows), request)]


def _compared(
    index: int,
    name: str | None,
    choices: Sequence[Choice],
    divergences: Sequence[Sequence[float]] | None,
    codec: TextCodec,
) -> ComparedSetting:
    choice = choices[index]
    assert choice.finished is not None
    kl = list(divergences[index]) if divergences is not None and index > 0 else None
    return {
        "index": index,
        "name": name,
        "text": choice.text,
        "token_ids": choice.token_ids,
        "tokens": [codec.token_text(token) for token in choice.token_ids],
        "finish_reason": choice.finished.reason,
        "first_diverging_token": _first_difference(choices[0].token_ids, choice.token_ids),
        "kl": kl,
        "mean_kl": sum(kl) / len(kl) if kl else None,
        "max_kl": max(kl) if kl else None,
    }


def _first_difference(reference: Sequence[int], other: Sequence[int]) -> int | None:
    """Where one of two texts goes on otherwise than the other, or alone."""
    pairs = enumerate(zip_longest(reference, other))
    return next((place for place, (one, another) in pairs if one != another), None)
