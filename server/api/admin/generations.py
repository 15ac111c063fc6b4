"""Running generations: list them, and change their interventions while they run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import APIRouter, Path
from typing_extensions import TypedDict

from server.api.auth import Acting, Caller, needs
from server.api.interventions import Resolver
from server.api.json_body import JsonRoute
from server.api.openai.generation import request_of
from server.api.schemas.answers import error_responses
from server.api.schemas.bounds import Id
from server.api.schemas.interventions import GenerationPatch
from server.api.services import InjectedServices, Services
from server.api.wishes import changes_of
from server.engine.request import InterventionUpdate
from server.errors import NotFound
from server.policy.keys import Principal
from server.types import GenerationInfo

if TYPE_CHECKING:
    from server.interventions.catalog import ResolvedIntervention

router = APIRouter(route_class=JsonRoute, dependencies=[needs("infer")], tags=["Generations"])

GenerationId = Annotated[
    Id, Path(description="Id of the answer; with n > 1 it stands for all choices, `<id>-1` for one")
]


class ActiveOut(TypedDict):
    """An intervention that acts now."""

    name: str
    strength: float


class GenerationOut(TypedDict):
    """One row of the engine: a choice of a request."""

    id: str
    object: Literal["generation"]
    state: Literal["waiting", "prefill", "decode", "score"]
    prompt_tokens: int
    completion_tokens: int
    interventions: list[ActiveOut]


class GenerationList(TypedDict):
    """Generations that run or wait."""

    object: Literal["list"]
    data: list[GenerationOut]


class GenerationChange(TypedDict):
    """Which rows were changed, and what was set: null for a part that was left as it is."""

    id: str
    object: Literal["generation.change"]
    generations: list[str]
    safety_switch: list[ActiveOut] | None
    steering: list[ActiveOut] | None


@router.get("/v1/generations", summary="List running generations", responses=error_responses(401, 403))
async def list_generations(services: InjectedServices, principal: Caller) -> GenerationList:
    """The caller's own; with the scope `admin` everybody's."""
    own = [info for info in services.engine.generations() if principal.may_see(info.owner)]
    return {"object": "list", "data": [_generation(info) for info in own]}


@router.patch(
    "/v1/generations/{generation_id}",
    summary="Change the interventions of a running generation",
    responses=error_responses(400, 401, 403, 404, 413),
)
def change_generation(
    generation_id: GenerationId,
    body: GenerationPatch,
    services: InjectedServices,
    principal: Caller,
    actor: Acting,
) -> GenerationChange:
    """Takes effect at the next token. A part that is not given (`safety_switch`, `steering`) stays as it is.

    The rules are those of a new request, and vectors that are on by default stay.

    The id is that of the answer: in `X-Request-Id` as soon as a stream begins, and in every chunk.
    """
    rows = _rows_of(services, principal, generation_id)
    wishes = changes_of(services, principal, body)
    resolver = Resolver(services, wishes)
    resolver.check()
    switch = [] if wishes.switch is None else [wishes.switch]
    update = InterventionUpdate(
        None if body.safety_switch is None else resolver.resolve(switch, None),
        None if body.steering is None else resolver.resolve(wishes.steering, None),
    )
    set_to = {"safety_switch": _active(update.switch), "steering": _active(update.steering)}
    detail = {"generation": generation_id, "weakened": resolver.weakens, **set_to}
    services.audit.record("generation.changed", actor, detail)
    return {
        "id": generation_id,
        "object": "generation.change",
        "generations": _apply(services, rows, update, generation_id),
        "safety_switch": _active(update.switch),
        "steering": _active(update.steering),
    }


def _rows_of(services: Services, principal: Principal, generation_id: str) -> list[str]:
    own = [info.id for info in services.engine.generations() if principal.may_see(info.owner)]
    rows = [row for row in own if generation_id in (row, request_of(row))]
    if not rows:
        raise _not_running(generation_id)
    return rows


def _apply(services: Services, rows: list[str], update: InterventionUpdate, generation_id: str) -> list[str]:
    """Ids of the rows that were still running."""
    changed = []
    for row in rows:
        try:
            services.engine.update(row, update)
        except NotFound:
            continue
        changed.append(row)
    if not changed:
        raise _not_running(generation_id)
    return changed


def _not_running(generation_id: str) -> NotFound:
    return NotFound(f"no generation {generation_id!r} is running: GET /v1/generations lists those that are", param="id")


def _generation(info: GenerationInfo) -> GenerationOut:
    return {
        "id": info.id,
        "object": "generation",
        "state": info.state,
        "prompt_tokens": info.prompt_tokens,
        "completion_tokens": info.completion_tokens,
        "interventions": [{"name": name, "strength": strength} for name, strength in info.interventions],
    }


def _active(resolved: tuple[ResolvedIntervention, ...] | None) -> list[ActiveOut] | None:
    if resolved is None:
        return None
    return [{"name": intervention.name, "strength": intervention.strength} for intervention in resolved]
