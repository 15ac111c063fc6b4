"""From a request that was read and permitted to rows that are ready to start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from anyio import to_thread

from server.api.interventions import Resolver
from server.api.openai.generation import Generation, row_id
from server.api.openai.sealing import Seal
from server.api.rows import Rows
from server.api.schemas.answers import Answer
from server.api.schemas.sampling import SamplingFields
from server.api.services import Services
from server.api.wishes import Wishes
from server.engine.request import GenerationRequest
from server.errors import ContextLengthExceeded, NotFound
from server.policy.keys import Principal
from server.policy.profiles import Profile

if TYPE_CHECKING:
    from server.engine.text import EncodedPrompt

_CHARACTERS_PER_TOKEN = 256
"""More than any token of the tokenizers in use stands for on average."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, read and permitted, but not yet tokenised. ``max_tokens`` None is all that fit.

    ``wishes`` has an entry for each setting under which every prompt is continued.
    ``echo`` tells that the prompt is sent back as the beginning of the text.
    """

    id: str
    fields: SamplingFields
    wishes: tuple[Wishes, ...]
    encode: Callable[[], list[EncodedPrompt]]
    max_tokens: int | None
    logprobs: int | None
    prompt_logprobs: int | None = None
    prompt_param: str = "prompt"
    echo: bool = False


async def prepare(services: Services, ask: Ask) -> Generation:
    """Tokenises, finds positions and loads artifacts, off the event loop; nothing runs yet.

    Raises InvalidRequest, ContextLengthExceeded, NotFound or NotPermitted; Overloaded, before any work, where all
    places are taken; Unavailable where the default cannot be loaded, or a weakening of it not be written down.
    """
    services.engine.check_places()
    prompts, requests = await to_thread.run_sync(_requests, services, ask)
    info = services.engine.info
    head: Answer = {
        "id": ask.id,
        "created": int(services.wall_clock()),
        "model": ask.fields.model,
        "system_fingerprint": f"fp_{info.config_digest[:10]}",
    }
    rows = Rows(services.engine, requests, services.metrics, services.stopwatch, services.tracing)
    per_prompt = len(ask.wishes) * ask.fields.choices
    choices = [prompt for prompt in prompts for _ in range(per_prompt)]
    seal = None
    if ask.fields.sign_receipt:
        known = {"id": ask.id, "created": head["created"], "model": info.name, "config_digest": info.config_digest}
        seal = Seal(services.signer, known, [prompt.text if ask.echo else "" for prompt in choices])
    first = ask.wishes[0]
    return Generation(head, first.policy.name, first.profile, tuple(prompts), per_prompt, rows, seal)


def check_model(services: Services, name: str, principal: Principal) -> Profile | None:
    """The profile that the model id ``<model>:<profile>`` names, None for the model itself; raises NotFound."""
    served = services.engine.info.name
    if name == served:
        return None
    profile = services.profiles.find(name.removeprefix(f"{served}:")) if name.startswith(f"{served}:") else None
    if profile is None or not profile.may_be_used_by(principal):
        raise NotFound(
            f"the model {name!r} is not served here; the served model is {served!r}, or '{served}:PROFILE' with one of "
            "GET /v1/profiles",
            param="model",
            code="model_not_found",
        )
    return profile


def check_size(characters: int, tokens: int, context: int, param: str = "prompt") -> None:
    """Refuses, before any work is done on it, a prompt that cannot fit ``context`` tokens however it is tokenised."""
    if tokens > context or characters > context * _CHARACTERS_PER_TOKEN:
        raise ContextLengthExceeded(f"the prompt cannot fit the context of {context} tokens: shorten it", param=param)


def _requests(services: Services, ask: Ask) -> tuple[list[EncodedPrompt], list[GenerationRequest]]:
    resolvers = [Resolver(services, wishes) for wishes in ask.wishes]
    for resolver in resolvers:
        resolver.check()
    prompts = ask.encode()
    requests: list[GenerationRequest] = []
    for prompt in prompts:
        max_tokens = _max_tokens(ask, prompt, services.engine.limits.context)
        wanted = [r.resolve(wishes.all, prompt) for r, wishes in zip(resolvers, ask.wishes, strict=True)]
        for interventions, choice in product(wanted, range(ask.fields.choices)):
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
                    interventions=interventions,
                    owner=ask.wishes[0].principal.owner,
                )
            )
    for resolver in resolvers:
        resolver.record_weakening(ask.id)
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
