"""Log-probabilities in the two formats of OpenAI's API."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from server.api.schemas.answers import ChatLogprob, ChatLogprobs, CompletionLogprobs, TopLogprob
from server.types import TokenLogprob

if TYPE_CHECKING:
    from server.engine.text import EncodedPrompt, TextCodec

_LEAST = -9999.0
"""Stands for minus infinity, which JSON cannot hold; the value OpenAI's API gives."""


def chat_logprobs(codec: TextCodec, logprobs: Iterable[TokenLogprob]) -> ChatLogprobs:
    """The format of chat completions."""
    return {"content": [_chat_logprob(codec, logprob) for logprob in logprobs], "refusal": None}


def completion_logprobs(codec: TextCodec, logprobs: Iterable[TokenLogprob], start: int) -> CompletionLogprobs:
    """The format of completions; ``start`` is the offset of the first token in the choice's text."""
    found = _empty()
    for logprob in logprobs:
        _append(found, codec, logprob, start)
        start += len(found["tokens"][-1])
    return found


def prompt_logprobs(codec: TextCodec, prompt: EncodedPrompt, scored: Iterable[TokenLogprob]) -> CompletionLogprobs:
    """As :func:`completion_logprobs` for an echoed prompt; its first token has no log-probability."""
    found = _empty()
    found["tokens"].append(codec.token_text(prompt.ids[0]))
    found["token_logprobs"].append(None)
    found["top_logprobs"].append(None)
    found["text_offset"].append(prompt.spans[0][0])
    for logprob, (start, _) in zip(scored, prompt.spans[1:], strict=True):
        _append(found, codec, logprob, start)
    return found


def joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    """The log-probabilities of a prompt followed by those of its continuation."""
    return {
        "tokens": first["tokens"] + second["tokens"],
        "token_logprobs": first["token_logprobs"] + second["token_logprobs"],
        "top_logprobs": first["top_logprobs"] + second["top_logprobs"],
        "text_offset": first["text_offset"] + second["text_offset"],
    }


def _chat_logprob(codec: TextCodec, logprob: TokenLogprob) -> ChatLogprob:
    chosen = _top(codec, logprob.token_id, logprob.logprob)
    return {**chosen, "top_logprobs": [_top(codec, token, value) for token, value in logprob.top]}


def _top(codec: TextCodec, token: int, logprob: float) -> TopLogprob:
    return {"token": codec.token_text(token), "logprob": max(logprob, _LEAST), "bytes": list(codec.token_bytes(token))}


def _empty() -> CompletionLogprobs:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _append(found: CompletionLogprobs, codec: TextCodec, logprob: TokenLogprob, offset: int) -> None:
    token = codec.token_text(logprob.token_id)
    best = {codec.token_text(other): max(value, _LEAST) for other, value in reversed(logprob.top)}
    found["tokens"].append(token)
    found["token_logprobs"].append(max(logprob.logprob, _LEAST))
    found["top_logprobs"].append({token: max(logprob.logprob, _LEAST)} | best)
    found["text_offset"].append(offset)
