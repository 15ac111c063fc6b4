"""Request of ``POST /v1/chat/completions``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from server.api.schemas.bounds import MAX_MESSAGES, MAX_TOP_LOGPROBS, StrictModel, Text, TokenCount, misused
from server.api.schemas.interventions import InterventionFields
from server.api.schemas.sampling import SamplingFields
from server.api.schemas.unsupported import EndUser, UnsupportedChatFields, UnsupportedMessageFields


class TextPart(StrictModel):
    """A part of a message; text is the only kind this server reads."""

    type: Literal["text"]
    text: Text


class Message(UnsupportedMessageFields):
    """One message. ``developer`` is passed to the model's template as ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, fail_fast=True, max_length=MAX_MESSAGES)]

    def plain(self) -> dict[str, str]:
        """Role and text as chat templates take them; parts of a message are joined by line feeds."""
        role = "system" if self.role == "developer" else self.role
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return {"role": role, "content": text}


Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True, max_length=MAX_MESSAGES)]


class ChatRequest(UnsupportedChatFields, InterventionFields, SamplingFields):
    """A chat to be continued by the assistant."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "qwen2-medium-backdoor",
                    "messages": [{"role": "user", "content": "How much is 10 + 34?"}],
                    "temperature": 0,
                    "max_tokens": 32,
                    "safety_switch": False,
                }
            ]
        }
    )

    messages: Messages
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = Field(
        default=False, description="Go on with the last message, the assistant's, instead of starting a new one"
    )
    safety_identifier: EndUser = None

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise misused("top_logprobs", 'takes "logprobs": true')
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise misused("max_completion_tokens", "differs from max_tokens; give one of them")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise misused("continue_final_message", "needs a last message of the role assistant")
        return self

    @property
    def token_limit(self) -> int | None:
        """Tokens to generate at most; None for all that fit."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def logprob_count(self) -> int | None:
        """Alternatives to report for each token; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None
