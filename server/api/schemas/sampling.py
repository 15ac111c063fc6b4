"""How tokens are drawn: the fields shared by chat and plain completions."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from server.api.schemas.bounds import (
    MAX_CHOICES,
    MAX_LOGIT_BIAS,
    MAX_SEED,
    MAX_STOPS,
    ModelName,
    StrictModel,
    TokenCount,
    misused,
)
from server.api.schemas.unsupported import EndUser, Only
from server.errors import InvalidRequest
from server.types import SamplingParams

Stop = Annotated[str, Field(min_length=1, max_length=128)]
BiasedToken = Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,9})$", max_length=10)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class StreamOptions(StrictModel):
    """``include_usage`` adds a last chunk with the token counts."""

    include_usage: bool = False
    include_obfuscation: Annotated[bool | None, Only(False)] = None


class SamplingFields(StrictModel):
    """Sampling fields of both endpoints, null meaning the default."""

    model: ModelName
    max_tokens: TokenCount | None = None
    temperature: Annotated[float, Field(ge=0, le=2, description="0 is greedy")] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1, description="0 considers every token")] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[BiasedToken, Bias], Field(max_length=MAX_LOGIT_BIAS)] | None = Field(
        default=None, description="Token id to an amount added to its logit"
    )
    seed: Annotated[int, Field(ge=0, le=MAX_SEED, description="Choice i of a prompt is drawn with seed + i")] | None = (
        None
    )
    stop: Stop | Annotated[list[Stop], Field(fail_fast=True, max_length=MAX_STOPS)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: EndUser = None
    sign_receipt: bool | None = Field(
        default=None, description="Sign what was done to the answer: `interlock.signature`, for /v1/receipts/verify"
    )

    @model_validator(mode="after")
    def _options_belong_to_streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise misused("stream_options", 'allowed only with "stream": true; leave it out')
        return self

    @property
    def choices(self) -> int:
        """Number of choices for each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def stops(self) -> tuple[str, ...]:
        """All stop strings."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def sampling(
        self, *, choice: int, max_tokens: int, vocab_size: int, logprobs: int | None, prompt_logprobs: int | None = None
    ) -> SamplingParams:
        """The engine's settings for one choice; raises InvalidRequest for a biased token outside the vocabulary."""
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=_or(self.temperature, 1.0),
            top_p=_or(self.top_p, 1.0),
            top_k=self.top_k or 0,
            min_p=_or(self.min_p, 0.0),
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            logit_bias=self._biases(vocab_size),
            seed=None if self.seed is None else (self.seed + choice) % (MAX_SEED + 1),
            stop=self.stops(),
            ignore_eos=bool(self.ignore_eos),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )

    def _biases(self, vocab_size: int) -> dict[int, float]:
        biases = {int(token): bias for token, bias in (self.logit_bias or {}).items()}
        for token in biases:
            if token >= vocab_size:
                raise InvalidRequest(
                    f"token id {token} is not in the vocabulary, which has {vocab_size} tokens",
                    param=f"logit_bias.{token}",
                )
        return biases


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
