"""Shapes of answers to generation requests, as OpenAI's clients expect them, with ``interlock`` added.

Typed dicts: they are built once per token and go straight to JSON.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from server.types import FinishReason


class ReceiptOut(TypedDict):
    """What one intervention really did to one choice.

    ``gate`` is the digest of the probe it waited for, ``gate_hits`` the tokens at which that let it act; null without.
    ``drift`` is how far the prompt lies from what a switch was trained on (1: as its training prompts); null without.
    """

    choice: int
    kind: str
    name: str
    digest: str
    sites: list[str]
    strength: float
    prompt_tokens: int
    generated_tokens: int
    mean_relative_change: float
    gate: str | None
    gate_hits: int | None
    drift: float | None


class SignatureOut(TypedDict):
    """A signed receipt. ``payload`` is the text that was signed: keep it as it is."""

    algorithm: Literal["HMAC-SHA256"]
    key_id: str
    payload: str
    value: str


class InterlockOut(TypedDict):
    """Receipts of all choices, in the order of the choices, and the profile and policy they were made under."""

    interventions: list[ReceiptOut]
    profile: str | None
    policy: str
    signature: NotRequired[SignatureOut]


class PromptTokensDetails(TypedDict):
    """Prompt tokens that were reused from earlier requests instead of computed."""

    cached_tokens: int


class Usage(TypedDict):
    """Token counts; a prompt with several choices is counted once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(TypedDict):
    """A token that could have been drawn. ``bytes`` is its text in UTF-8."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    """A token that was drawn, with the most probable ones in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """Log-probabilities of a chat choice."""

    content: list[ChatLogprob]
    refusal: None


class CompletionLogprobs(TypedDict):
    """Log-probabilities of a completion, one entry a token; null for the first token of an echoed prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class AssistantMessage(TypedDict):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    """One answer to the chat."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class Delta(TypedDict):
    """What a chunk adds to the message."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]


class ChatChunkChoice(TypedDict):
    """A piece of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class CompletionChoice(TypedDict):
    """One continuation; in a stream a piece of it, with ``finish_reason`` null until the last."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Answer(TypedDict):
    """What all answers and chunks share."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatCompletion(Answer):
    """Answer of ``POST /v1/chat/completions``."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    interlock: InterlockOut


class Completion(Answer):
    """Answer of ``POST /v1/completions``."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage
    interlock: InterlockOut


class ComparedSetting(TypedDict):
    """What came of one setting.

    ``first_diverging_token`` counts generated tokens from 0; null where the text is the reference's. ``kl`` are nats,
    one for each token of the reference's text; null for the reference itself, and where none were asked for.
    ``mean_kl`` and ``max_kl`` are null where there is no token.
    """

    index: int
    name: str | None
    text: str
    token_ids: list[int]
    tokens: list[str]
    finish_reason: FinishReason
    first_diverging_token: int | None
    kl: list[float] | None
    mean_kl: float | None
    max_kl: float | None


class Comparison(Answer):
    """Answer of ``POST /v1/compare``. ``choice`` of a receipt is the index of the setting it belongs to."""

    object: Literal["comparison"]
    settings: list[ComparedSetting]
    usage: Usage
    interlock: InterlockOut


class ChatCompletionChunk(Answer):
    """One event of a streamed chat. ``interlock`` comes with the last; ``usage`` where it was asked for."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]
    interlock: NotRequired[InterlockOut]


class CompletionChunk(Answer):
    """One event of a streamed completion, as :class:`ChatCompletionChunk`."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]
    interlock: NotRequired[InterlockOut]


class ErrorDetail(TypedDict):
    """``param`` is the offending field; ``code`` is stable for programs."""

    message: str
    type: str
    param: str | None
    code: str | None
    request_id: str


class ErrorOut(TypedDict):
    """Every error."""

    error: ErrorDetail


_ERRORS = {
    400: "A field is wrong: `param` names it",
    401: "No API key, or one that is not known",
    403: "The API key lacks a scope",
    404: "No such thing, or it belongs to somebody else",
    409: "The state does not allow it now",
    413: "The body is too large",
    429: "All places are taken: try again after `Retry-After` seconds",
    500: "The generation failed",
    503: "Starting, shutting down or out of memory: try again after `Retry-After` seconds",
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documentation of the errors a route may answer with; all have one body, JSON whatever else the route answers."""
    json_body = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorOut"}}}
    return {status: {"description": _ERRORS[status], "content": json_body} for status in statuses} | {
        "default": {"model": ErrorOut, "description": "Every error"}
    }
