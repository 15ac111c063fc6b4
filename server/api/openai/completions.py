"""``POST /v1/completions``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from server.api.auth import Caller, needs
from server.api.headers import SaidInHeaders
from server.api.json_body import JsonRoute
from server.api.logprobs import completion_logprobs, joined, prompt_logprobs
from server.api.openai.asking import Ask, check_model, check_size, prepare
from server.api.openai.generation import Choice, Generation, ends
from server.api.openai.whole import run
from server.api.schemas.answers import Completion, CompletionChoice, CompletionLogprobs, error_responses
from server.api.schemas.completions import DEFAULT_MAX_TOKENS, CompletionRequest
from server.api.services import InjectedServices, Services
from server.api.streaming import stream
from server.api.wishes import Wishes, wishes_of
from server.types import Finished, FinishReason, PromptScored, TokensGenerated

if TYPE_CHECKING:
    from server.engine.text import EncodedPrompt, TextCodec

router = APIRouter(route_class=JsonRoute, dependencies=[needs("infer")], tags=["OpenAI"])


@router.post(
    "/v1/completions",
    summary="Continue texts",
    response_model=Completion,
    responses=error_responses(400, 401, 403, 404, 413, 429, 500, 503),
)
async def create_completion(
    body: CompletionRequest, request: Request, headers: SaidInHeaders, services: InjectedServices, principal: Caller
) -> Response:
    """OpenAI's completions: a prompt or several, as text or token ids, with `safety_switch` and `steering`.

    Text is tokenised with the tokenizer's own special tokens; token ids are taken as they are.
    """
    profile = check_model(services, body.model, principal)
    ask = _ask(body, wishes_of(services, principal, body, headers, profile), services)
    request.state.request_id = ask.id
    generation = await prepare(services, ask)
    if body.stream:
        shape = _CompletionChunks(generation, services.codec, body)
        return stream(generation, shape, include_usage=body.include_usage)
    choices = await run(generation, request)
    return JSONResponse(_answer(generation, choices, services.codec, body))


def _ask(body: CompletionRequest, wishes: Wishes, services: Services) -> Ask:
    for prompt in body.prompts():
        by_text = isinstance(prompt, str)
        check_size(len(prompt) if by_text else 0, 0 if by_text else len(prompt), services.engine.limits.context)

    def encode() -> list[EncodedPrompt]:
        codec = services.codec
        return [codec.encode(item) if isinstance(item, str) else codec.from_ids(item) for item in body.prompts()]

    return Ask(
        id=f"cmpl-{services.new_id()}",
        fields=body,
        wishes=(wishes,),
        encode=encode,
        max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
        echo=bool(body.echo),
    )


def _answer(generation: Generation, choices: Sequence[Choice], codec: TextCodec, body: CompletionRequest) -> Completion:
    finished = ends(choices)
    return {
        **generation.head,
        "object": "text_completion",
        "choices": [_choice(generation, index, choice, codec, body) for index, choice in enumerate(choices)],
        "usage": generation.usage(finished),
        "interlock": generation.interlock(finished),
    }


def _choice(
    generation: Generation, index: int, choice: Choice, codec: TextCodec, body: CompletionRequest
) -> CompletionChoice:
    assert choice.finished is not None
    prompt = generation.prompt(index)
    echoed = prompt.text if body.echo else ""
    logprobs = None
    if body.logprobs is not None:
        logprobs = completion_logprobs(codec, choice.logprobs, len(echoed))
        if body.echo:
            logprobs = joined(prompt_logprobs(codec, prompt, choice.prompt_logprobs), logprobs)
    return _piece(index, echoed + choice.text, logprobs, choice.finished.reason)


def _piece(
    index: int, text: str, logprobs: CompletionLogprobs | None = None, finish_reason: FinishReason | None = None
) -> CompletionChoice:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


class _CompletionChunks:
    """Chunks of a streamed completion; an echoed prompt comes first, with its log-probabilities once they are known."""

    object = "text_completion"

    def __init__(self, generation: Generation, codec: TextCodec, body: CompletionRequest) -> None:
        self._generation = generation
        self._codec = codec
        self._body = body
        prompts = [generation.prompt(index) for index in range(generation.size)]
        self._offsets = [len(prompt.text) if body.echo else 0 for prompt in prompts]

    def opening(self, index: int) -> list[CompletionChoice]:
        if not self._body.echo or self._body.logprobs is not None:
            return []
        return [_piece(index, self._generation.prompt(index).text)]

    def scored(self, index: int, event: PromptScored) -> list[CompletionChoice]:
        prompt = self._generation.prompt(index)
        return [_piece(index, prompt.text, prompt_logprobs(self._codec, prompt, event.logprobs))]

    def piece(self, index: int, event: TokensGenerated) -> list[CompletionChoice]:
        logprobs = None
        if self._body.logprobs is not None and event.logprobs:
            logprobs = completion_logprobs(self._codec, event.logprobs, self._offsets[index])
            self._offsets[index] += sum(map(len, logprobs["tokens"]))
        return [_piece(index, event.text, logprobs)] if event.text or logprobs else []

    def closing(self, index: int, event: Finished) -> list[CompletionChoice]:
        return [_piece(index, "", finish_reason=event.reason)]
