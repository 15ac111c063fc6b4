"""``GET /v1/models``: the served model, by itself and with each profile."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path
from typing_extensions import TypedDict

from server.api.auth import Caller, needs
from server.api.openai.asking import check_model
from server.api.schemas.answers import error_responses
from server.api.services import InjectedServices, Services

router = APIRouter(dependencies=[needs("infer")], tags=["OpenAI"])


class ModelOut(TypedDict):
    """A served model; ``max_model_len`` is its context in tokens."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(TypedDict):
    """All served models."""

    object: Literal["list"]
    data: list[ModelOut]


@router.get("/v1/models", summary="List the served models", responses=error_responses(401, 403))
async def list_models(services: InjectedServices, principal: Caller) -> ModelList:
    """What requests may name in `model`: the model, and `<model>:<profile>` for every profile the caller may use."""
    name = services.engine.info.name
    ids = [name, *(f"{name}:{profile.name}" for profile in services.profiles.visible(principal))]
    return {"object": "list", "data": [_model(services, one) for one in ids]}


@router.get("/v1/models/{model_id:path}", summary="Show one model", responses=error_responses(400, 401, 403, 404))
async def show_model(
    model_id: Annotated[str, Path(max_length=256)], services: InjectedServices, principal: Caller
) -> ModelOut:
    """The served model, by its name or with a profile."""
    check_model(services, model_id, principal)
    return _model(services, model_id)


def _model(services: Services, model_id: str) -> ModelOut:
    return {
        "id": model_id,
        "object": "model",
        "created": int(services.started_at),
        "owned_by": "interlock",
        "max_model_len": services.engine.limits.context,
    }
