"""Requests of ``POST /v1/completions``, ``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

from typing import Annotated, Any, Self, cast

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from server.api.schemas.bounds import (
    MAX_ROWS,
    MAX_TOKENS,
    MAX_TOP_LOGPROBS,
    ModelName,
    StrictModel,
    Text,
    TokenIds,
    misused,
)
from server.api.schemas.chat import Messages
from server.api.schemas.interventions import InterventionFields
from server.api.schemas.sampling import SamplingFields
from server.api.schemas.unsupported import UnsupportedCompletionFields

DEFAULT_MAX_TOKENS = 16


def _kind_of_prompt(value: Any) -> str:
    """Which form of prompt is meant, so that errors are about that form only."""
    if not isinstance(value, list):
        return "text"
    first = value[0] if value else None
    return "texts" if isinstance(first, str) else "id_lists" if isinstance(first, list) else "ids"


Prompt = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[Text], Field(min_length=1, fail_fast=True, max_length=MAX_ROWS), Tag("texts")]
    | Annotated[TokenIds, Tag("ids")]
    | Annotated[list[TokenIds], Field(min_length=1, fail_fast=True, max_length=MAX_ROWS), Tag("id_lists")],
    Discriminator(_kind_of_prompt),
]


class CompletionRequest(UnsupportedCompletionFields, InterventionFields, SamplingFields):
    """One prompt or several, each a text or token ids; ``choices[p * n + i]`` is choice i of prompt p."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "stories", "prompt": "Once upon a time", "max_tokens": 64, "temperature": 0},
                {"model": "stories", "prompt": [1], "max_tokens": 64, "steering": []},
            ]
        }
    )

    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS, description="0 takes echo: score the prompt only")] | None = (
        None
    )
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise misused("max_tokens", 'may be 0 only with "echo": true')
        if len(self.prompts()) * self.choices > MAX_ROWS:
            raise misused("prompt", f"prompts times n must not exceed {MAX_ROWS}; send several requests")
        return self

    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return cast(list[str | list[int]], self.prompt)


class TokenizeRequest(StrictModel):
    """Either ``prompt`` or ``messages``."""

    model: ModelName | None = None
    prompt: Text | None = None
    messages: Messages | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise misused("prompt", "give either prompt or messages")
        return self


class DetokenizeRequest(StrictModel):
    """Token ids to be turned into text."""

    model: ModelName | None = None
    tokens: TokenIds
