"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from server.api.auth import Caller, needs
from server.api.headers import SaidInHeaders
from server.api.json_body import JsonRoute
from server.api.logprobs import chat_logprobs
from server.api.openai.asking import Ask, check_model, check_size, prepare
from server.api.openai.generation import Choice, Generation, ends
from server.api.openai.whole import run
from server.api.schemas.answers import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    error_responses,
)
from server.api.schemas.chat import ChatRequest
from server.api.services import InjectedServices, Services
from server.api.streaming import stream
from server.api.wishes import Wishes, wishes_of
from server.types import Finished, PromptScored, TokenLogprob, TokensGenerated

if TYPE_CHECKING:
    from server.engine.text import EncodedPrompt, TextCodec

router = APIRouter(route_class=JsonRoute, dependencies=[needs("infer")], tags=["OpenAI"])


@router.post(
    "/v1/chat/completions",
    summary="Continue a chat",
    response_model=ChatCompletion,
    responses=error_responses(400, 401, 403, 404, 413, 429, 500, 503),
)
async def create_chat_completion(
    body: ChatRequest, request: Request, headers: SaidInHeaders, services: InjectedServices, principal: Caller
) -> Response:
    """OpenAI's chat completions, with `safety_switch` and `steering`.

    Every answer carries `interlock`: what was really done to the model's activations; in a stream the last chunk does.
    A field that is not supported is refused, never ignored.
    """
    profile = check_model(services, body.model, principal)
    ask = _ask(body, wishes_of(services, principal, body, headers, profile), services)
    request.state.request_id = ask.id
    generation = await prepare(services, ask)
    if body.stream:
        shape = _ChatChunks(services.codec, body.logprob_count is not None)
        return stream(generation, shape, include_usage=body.include_usage)
    choices = await run(generation, request)
    return JSONResponse(_answer(generation, choices, services.codec, body))


def _ask(body: ChatRequest, wishes: Wishes, services: Services) -> Ask:
    messages = [message.plain() for message in body.messages]
    characters = sum(len(message["content"]) for message in messages)
    check_size(characters, 0, services.engine.limits.context, "messages")

    def encode() -> list[EncodedPrompt]:
        prompt = services.codec.encode_chat(
            messages,
            add_generation_prompt=body.add_generation_prompt and not body.continue_final_message,
            continue_final_message=body.continue_final_message,
        )
        return [prompt]

    return Ask(
        id=f"chatcmpl-{services.new_id()}",
        fields=body,
        wishes=(wishes,),
        encode=encode,
        max_tokens=body.token_limit,
        logprobs=body.logprob_count,
        prompt_param="messages",
    )


def _answer(generation: Generation, choices: Sequence[Choice], codec: TextCodec, body: ChatRequest) -> ChatCompletion:
    finished = ends(choices)
    return {
        **generation.head,
        "object": "chat.completion",
        "choices": [_choice(index, choice, codec, body) for index, choice in enumerate(choices)],
        "usage": generation.usage(finished),
        "interlock": generation.interlock(finished),
    }


def _choice(index: int, choice: Choice, codec: TextCodec, body: ChatRequest) -> ChatChoice:
    assert choice.finished is not None
    logprobs = chat_logprobs(codec, choice.logprobs) if body.logprobs else None
    return {
        "index": index,
        "message": {"role": "assistant", "content": choice.text, "refusal": None},
        "logprobs": logprobs,
        "finish_reason": choice.finished.reason,
    }


class _ChatChunks:
    """Chunks of a streamed chat."""

    object = "chat.completion.chunk"

    def __init__(self, codec: TextCodec, with_logprobs: bool) -> None:
        self._codec = codec
        self._with_logprobs = with_logprobs

    def opening(self, index: int) -> list[ChatChunkChoice]:
        delta: ChatChunkChoice = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        return [delta]

    def scored(self, index: int, event: PromptScored) -> list[ChatChunkChoice]:  # noqa: ARG002 (ChunkShape's)
        return []

    def piece(self, index: int, event: TokensGenerated) -> list[ChatChunkChoice]:
        logprobs = self._logprobs(event.logprobs)
        if not event.text and logprobs is None:
            return []
        delta: ChatChunkChoice = {
            "index": index,
            "delta": {"content": event.text},
            "logprobs": logprobs,
            "finish_reason": None,
        }
        return [delta]

    def closing(self, index: int, event: Finished) -> list[ChatChunkChoice]:
        return [{"index": index, "delta": {}, "logprobs": None, "finish_reason": event.reason}]

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> ChatLogprobs | None:
        return chat_logprobs(self._codec, logprobs) if self._with_logprobs and logprobs else None
