"""The choices of one request: their rows, what came of them, and what was done to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.api.openai.sealing import Seal
from server.api.rows import Rows
from server.api.schemas.answers import Answer, InterlockOut, ReceiptOut, Usage
from server.types import Event, Finished, PromptScored, Receipt, TokenLogprob, TokensGenerated, TokensScored

if TYPE_CHECKING:
    from server.engine.text import EncodedPrompt


@dataclass(frozen=True, slots=True)
class Generation:
    """A request whose rows are ready to start. Row ``p * per_prompt + i`` is choice i of prompt p."""

    head: Answer
    policy: str
    profile: str | None
    prompts: tuple[EncodedPrompt, ...]
    per_prompt: int
    rows: Rows
    seal: Seal | None = None

    @property
    def size(self) -> int:
        """Number of choices."""
        return len(self.prompts) * self.per_prompt

    def prompt(self, index: int) -> EncodedPrompt:
        """The prompt of choice ``index``."""
        return self.prompts[index // self.per_prompt]

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Events as they come, each with its choice; raises GenerationFailed when one fails."""
        async for index, event in self.rows.events():
            if self.seal is not None and isinstance(event, TokensGenerated):
                self.seal.add(index, event.text)
            yield index, event

    def usage(self, finished: Mapping[int, Finished]) -> Usage:
        """Token counts of all choices, once all have finished."""
        prompts = sum(finished[index].prompt_tokens for index in range(0, self.size, self.per_prompt))
        cached = sum(finished[index].cached_tokens for index in range(0, self.size, self.per_prompt))
        completions = sum(end.completion_tokens for end in finished.values())
        return {
            "prompt_tokens": prompts,
            "completion_tokens": completions,
            "total_tokens": prompts + completions,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def interlock(self, finished: Mapping[int, Finished]) -> InterlockOut:
        """What was done to each choice, once all have finished."""
        receipts = [_receipt(choice, receipt) for choice in sorted(finished) for receipt in finished[choice].receipts]
        done: InterlockOut = {"interventions": receipts, "profile": self.profile, "policy": self.policy}
        return done if self.seal is None else {**done, "signature": self.seal.signature(done)}


@dataclass(slots=True)
class Choice:
    """Everything one row gave."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    divergences: tuple[float, ...] = ()
    finished: Finished | None = None

    def add(self, event: Event) -> None:
        """Takes the row's next event."""
        match event:
            case TokensGenerated():
                self.text += event.text
                self.token_ids += event.token_ids
                self.logprobs += event.logprobs
            case PromptScored():
                self.prompt_logprobs = event.logprobs
            case TokensScored():
                self.divergences = event.divergences
            case Finished():
                self.finished = event
            case _:
                raise AssertionError("failures are raised by Rows.events")


async def collect(generation: Generation) -> list[Choice]:
    """Runs all rows to their end; raises GenerationFailed when one fails."""
    choices = [Choice() for _ in range(generation.size)]
    async for index, event in generation.events():
        choices[index].add(event)
    return choices


def ends(choices: Sequence[Choice]) -> dict[int, Finished]:
    """The last event of each choice, all of them finished."""
    return {index: choice.finished for index, choice in enumerate(choices) if choice.finished is not None}


def row_id(request_id: str, index: int) -> str:
    """Id of the row of choice ``index``: the request's own for the first, ``<id>-<index>`` for the others."""
    return request_id if index == 0 else f"{request_id}-{index}"


def request_of(row: str) -> str:
    """The id of the request that row ``row`` belongs to; ids of requests end in hex after their one hyphen."""
    return "-".join(row.split("-")[:2])


def _receipt(choice: int, receipt: Receipt) -> ReceiptOut:
    return {
        "choice": choice,
        "kind": receipt.kind,
        "name": receipt.name,
        "digest": receipt.digest,
        "sites": list(receipt.sites),
        "strength": receipt.strength,
        "prompt_tokens": receipt.prompt_tokens,
        "generated_tokens": receipt.generated_tokens,
        "mean_relative_change": receipt.mean_relative_change,
        "gate": receipt.gate,
        "gate_hits": receipt.gate_hits,
        "drift": receipt.drift,
    }
