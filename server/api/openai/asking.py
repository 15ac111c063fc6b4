"""From a request that was read and permitted to rows that are ready to start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from anyio import to_thread

from server.api.interventions import Wishes, check_visible, resolve
from server.api.openai.generation import Generation, row_id
from server.api.rows import Rows
from server.api.schemas.answers import Answer
from server.api.schemas.sampling import SamplingFields
from server.api.services import Services
from server.engine.request import GenerationRequest
from server.errors import ContextLengthExceeded, NotFound
from server.policy.keys import Principal
from server.types import InterventionSpec

if TYPE_CHECKING:
    from server.engine.text import EncodedPrompt
    from server.interventions.catalog import ResolvedIntervention

_CHARACTERS_PER_TOKEN = 256
"""More than any token of the tokenizers in use stands for on average."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, read and permitted, but not yet tokenised. ``max_tokens`` None is all that fit.

    ``wishes`` has an entry for each setting under which every prompt is continued.
    """

    id: str
    principal: Principal
    fields: SamplingFields
    wishes: tuple[Wishes, ...]
    encode: Callable[[], list[EncodedPrompt]]
    max_tokens: int | None
    logprobs: int | None
    prompt_logprobs: int | None = None
    prompt_param: str = "prompt"


async def prepare(services: Services, ask: Ask) -> Generation:
    """Tokenises, finds positions and loads artifacts, off the event loop; nothing runs yet.

    Raises InvalidRequest, ContextLengthExceeded or NotFound; Overloaded, before any work, where all places are taken.
    """
    services.engine.check_places()
    prompts, requests = await to_thread.run_sync(_requests, services, ask)
    info = services.engine.info
    head: Answer = {
        "id": ask.id,
        "created": int(services.wall_clock()),
        "model": info.name,
        "system_fingerprint": f"fp_{info.config_digest[:10]}",
    }
    rows = Rows(services.engine, requests, services.metrics, services.stopwatch)
    return Generation(head, services.policy.name, tuple(prompts), len(ask.wishes) * ask.fields.choices, rows)


def check_model(services: Services, name: str) -> None:
    """Raises NotFound unless ``name`` is the served model's."""
    served = services.engine.info.name
    if name != served:
        raise NotFound(
            f"the model {name!r} is not served here; the served model is {served!r}",
            param="model",
            code="model_not_found",
        )


def check_size(characters: int, tokens: int, context: int, param: str = "prompt") -> None:
    """Refuses, before any work is done on it, a prompt that cannot fit ``context`` tokens however it is tokenised."""
    if tokens > context or characters > context * _CHARACTERS_PER_TOKEN:
        raise ContextLengthExceeded(f"the prompt cannot fit the context of {context} tokens: shorten it", param=param)


def _requests(services: Services, ask: Ask) -> tuple[list[EncodedPrompt], list[GenerationRequest]]:
    for wishes in ask.wishes:
        check_visible(wishes, ask.principal, services.artifacts, services.policy)
    prompts = ask.encode()
    resolved: dict[InterventionSpec, ResolvedIntervention] = {}
    requests: list[GenerationRequest] = []
    for prompt in prompts:
        max_tokens = _max_tokens(ask, prompt, services.engine.limits.context)
        for wishes, choice in product(ask.wishes, range(ask.fields.choices)):
            specs = wishes.switch_spec(prompt) + wishes.steering_specs(prompt)
            fresh = [spec for spec in dict.fromkeys(specs) if spec not in resolved]
            resolved.update(zip(fresh, resolve(fresh, services.catalog), strict=True))
            requests.append(
                GenerationRequest(
                    id=row_id(ask.id, len(requests)),
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
            param="max_tokens" if wanted is not None and room > 0 else ask.prompt_param,
        )
    return room if wanted is None else wanted
