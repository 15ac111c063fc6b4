"""What chat and plain completions share: prompts to rows, and rows to an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from anyio import to_thread

from server.api.interventions import Wishes, check_visible, resolve
from server.api.rows import Rows
from server.api.schemas.answers import Answer, InterlockOut, ReceiptOut, Usage
from server.api.schemas.sampling import SamplingFields
from server.api.services import Services
from server.errors import ContextLengthExceeded, NotFound
from server.policy.keys import Principal
from server.types import (
    Event,
    Finished,
    GenerationRequest,
    InterventionSpec,
    PromptScored,
    Receipt,
    TokenLogprob,
    TokensGenerated,
)

if TYPE_CHECKING:
    from server.engine.text import EncodedPrompt
    from server.interventions.catalog import ResolvedIntervention

_CHARACTERS_PER_TOKEN = 256
"""More than any token of the tokenizers in use stands for on average."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, read and permitted, but not yet tokenised. ``max_tokens`` None is all that fit."""

    id: str
    principal: Principal
    fields: SamplingFields
    wishes: Wishes
    encode: Callable[[], list[EncodedPrompt]]
    max_tokens: int | None
    logprobs: int | None
    prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """A request whose rows are ready to start. Row ``p * per_prompt + i`` is choice i of prompt p."""

    head: Answer
    policy: str
    prompts: tuple[EncodedPrompt, ...]
    per_prompt: int
    rows: Rows

    @property
    def size(self) -> int:
        """Number of choices."""
        return len(self.prompts) * self.per_prompt

    def prompt(self, index: int) -> EncodedPrompt:
        """The prompt of choice ``index``."""
        return self.prompts[index // self.per_prompt]

    def usage(self, finished: Mapping[int, Finished]) -> Usage:
        """Token counts of all choices, once all have finished."""
        prompts = sum(finished[index].prompt_tokens for index in range(0, self.size, self.per_prompt))
        completions = sum(end.completion_tokens for end in finished.values())
        return {
            "prompt_tokens": prompts,
            "completion_tokens": completions,
            "total_tokens": prompts + completions,
        }

    def interlock(self, finished: Mapping[int, Finished]) -> InterlockOut:
        """What was done to each choice, once all have finished."""
        receipts = [_receipt(choice, receipt) for choice in sorted(finished) for receipt in finished[choice].receipts]
        return {"interventions": receipts, "policy": self.policy}


@dataclass(slots=True)
class Choice:
    """Everything one row gave."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finished: Finished | None = None

    def add(self, event: Event) -> None:
        """Takes the row's next event."""
        match event:
            case TokensGenerated():
                self.text += event.text
                self.logprobs += event.logprobs
            case PromptScored():
                self.prompt_logprobs = event.logprobs
            case Finished():
                self.finished = event
            case _:
                raise AssertionError("failures are raised by Rows.events")


async def prepare(services: Services, ask: Ask) -> Generation:
    """Tokenises, finds positions and loads artifacts, off the event loop; nothing runs yet.

    Raises InvalidRequest, ContextLengthExceeded or NotFound.
    """
    prompts, requests = await to_thread.run_sync(_requests, services, ask)
    info = services.engine.info
    head: Answer = {
        "id": ask.id,
        "created": int(services.wall_clock()),
        "model": info.name,
        "system_fingerprint": f"fp_{info.config_digest[:10]}",
    }
    rows = Rows(services.engine, requests, services.metrics, services.stopwatch)
    return Generation(head, services.policy.name, tuple(prompts), ask.fields.choices, rows)


async def collect(generation: Generation) -> list[Choice]:
    """Runs all rows to their end; raises GenerationFailed when one fails."""
    choices = [Choice() for _ in range(generation.size)]
    async for index, event in generation.rows.events():
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


def check_model(services: Services, name: str) -> None:
    """Raises NotFound unless ``name`` is the served model's."""
    served = services.engine.info.name
    if name != served:
        raise NotFound(
            f"the model {name!r} is not served here; the served model is {served!r}",
            param="model",
            code="model_not_found",
        )


def check_size(characters: int, tokens: int, context: int) -> None:
    """Refuses, before any work is done on it, a prompt that cannot fit ``context`` tokens however it is tokenised."""
    if tokens > context or characters > context * _CHARACTERS_PER_TOKEN:
        raise ContextLengthExceeded(
            f"the prompt cannot fit the context of {context} tokens: shorten it", param="prompt"
        )


def _requests(services: Services, ask: Ask) -> tuple[list[EncodedPrompt], list[GenerationRequest]]:
    check_visible(ask.wishes, ask.principal, services.artifacts, services.policy)
    prompts = ask.encode()
    resolved: dict[InterventionSpec, ResolvedIntervention] = {}
    requests: list[GenerationRequest] = []
    for prompt in prompts:
        max_tokens = _max_tokens(ask, prompt, services.engine.limits.context)
        specs = ask.wishes.switch_spec(prompt) + ask.wishes.steering_specs(prompt)
        fresh = [spec for spec in dict.fromkeys(specs) if spec not in resolved]
        resolved.update(zip(fresh, resolve(fresh, services.catalog), strict=True))
        for choice in range(ask.fields.choices):
            index = len(requests)
            requests.append(
                GenerationRequest(
                    id=row_id(ask.id, index),
                    prompt_ids=prompt.ids,
                    sampling=ask.fields.sampling(
                        choice=choice,
                        max_tokens=max_tokens,
                        vocab_size=services.codec.vocab_size,
                        logprobs=ask.logprobs,
                        prompt_logprobs=ask.prompt_logprobs,
                    ),
                    interventions=tuple(resolved[spec] for spec in specs),
                    owner=ask.principal.owner,
                )
            )
    return prompts, requests


def _max_tokens(ask: Ask, prompt: EncodedPrompt, context: int) -> int:
    room = context - len(prompt.ids)
    wanted = ask.max_tokens
    if room < (1 if wanted is None else wanted):
        asked = "" if wanted is None else f" and max_tokens {wanted}"
        raise ContextLengthExceeded(
            f"the prompt has {len(prompt.ids)} tokens; with it{asked} the context of {context} tokens is exceeded: "
            "shorten the prompt or lower max_tokens",
            param="max_tokens" if wanted is not None and room > 0 else "prompt",
        )
    return room if wanted is None else wanted


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
        "gate_hits": receipt.gate_hits,
    }
