"""``GET /v1/models``: the one model this server serves."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path
from typing_extensions import TypedDict

from server.api.auth import needs
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
async def list_models(services: InjectedServices) -> ModelList:
    """The model that requests name in `model`."""
    return {"object": "list", "data": [_model(services)]}


@router.get("/v1/models/{model_id:path}", summary="Show one model", responses=error_responses(401, 403, 404))
async def show_model(model_id: Annotated[str, Path(max_length=256)], services: InjectedServices) -> ModelOut:
    """The served model, by its name."""
    check_model(services, model_id)
    return _model(services)


def _model(services: Services) -> ModelOut:
    return {
        "id": services.engine.info.name,
        "object": "model",
        "created": int(services.started_at),
        "owned_by": "interlock",
        "max_model_len": services.engine.limits.context,
    }
