"""``POST /tokenize`` and ``/detokenize``, shaped like vLLM's. Plain functions: FastAPI runs them off the event loop."""

from __future__ import annotations

from typing import NotRequired

from fastapi import APIRouter
from typing_extensions import TypedDict

from server.api.auth import Caller, needs
from server.api.json_body import JsonRoute
from server.api.openai.asking import check_model
from server.api.schemas.answers import error_responses
from server.api.schemas.completions import DetokenizeRequest, TokenizeRequest
from server.api.services import InjectedServices
from server.errors import InvalidRequest

router = APIRouter(route_class=JsonRoute, dependencies=[needs("infer")], tags=["Tokens"])


class Tokens(TypedDict):
    """Token ids of a text; ``token_strs`` only where asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: NotRequired[list[str]]


class Detokenized(TypedDict):
    """The text of token ids, special tokens included."""

    prompt: str


@router.post("/tokenize", summary="Text or messages to token ids", responses=error_responses(400, 401, 403, 404, 413))
def tokenize(body: TokenizeRequest, services: InjectedServices, principal: Caller) -> Tokens:
    """The ids a completion (`prompt`) or a chat (`messages`) with this text would be run on."""
    if body.model is not None:
        check_model(services, body.model, principal)
    codec = services.codec
    if body.messages is None:
        prompt = codec.encode(body.prompt or "", add_special_tokens=body.add_special_tokens)
    else:
        messages = [message.plain() for message in body.messages]
        prompt = codec.encode_chat(messages, add_generation_prompt=body.add_generation_prompt)
    tokens: Tokens = {
        "count": len(prompt.ids),
        "max_model_len": services.engine.limits.context,
        "tokens": list(prompt.ids),
    }
    return {**tokens, "token_strs": list(map(codec.token_text, prompt.ids))} if body.return_token_strs else tokens


@router.post("/detokenize", summary="Token ids to text", responses=error_responses(400, 401, 403, 404, 413))
def detokenize(body: DetokenizeRequest, services: InjectedServices, principal: Caller) -> Detokenized:
    """The text that these ids stand for."""
    if body.model is not None:
        check_model(services, body.model, principal)
    size = services.codec.vocab_size
    for position, token in enumerate(body.tokens):
        if token >= size:
            message = f"token id {token} is not in the vocabulary, which has {size} tokens"
            raise InvalidRequest(message, param=f"tokens[{position}]")
    return {"prompt": services.codec.decode(body.tokens, skip_special_tokens=False)}
