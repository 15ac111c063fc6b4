"""Probes and metrics. The probes are the only routes that ask for no key."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response
from typing_extensions import TypedDict

from server.api.auth import needs
from server.api.interventions import check_default
from server.api.schemas.answers import error_responses
from server.api.services import InjectedServices
from server.errors import Unavailable
from server.policy.keys import NOBODY

public_router = APIRouter(tags=["Health"])
metrics_router = APIRouter(dependencies=[needs("metrics")], tags=["Health"])


class Alive(TypedDict):
    """The process answers."""

    status: Literal["ok"]


@public_router.get("/health/live", summary="Is the process alive?")
async def live() -> Alive:
    """200 as long as requests are handled at all."""
    return {"status": "ok"}


@public_router.get("/health/ready", summary="Should requests be sent here?", responses=error_responses(503))
def ready(services: InjectedServices) -> Alive:
    """200 when requests are taken, otherwise 503 with the reason.

    Loading, draining, an engine that has stopped, or a default switch or profile that cannot be loaded or failed its
    canary: nothing is answered without that.
    """
    reason = services.not_ready()
    if reason is None and not services.engine.healthy:
        reason = "the engine takes no requests"
    if reason is not None:
        raise Unavailable(f"not ready: {reason}")
    check_default(services, NOBODY)
    return {"status": "ok"}


@metrics_router.get(
    "/metrics", summary="Prometheus metrics", response_class=PlainTextResponse, responses=error_responses(401, 403)
)
def metrics(services: InjectedServices) -> Response:
    """Named as vLLM's, with the prefix `interlock_`; with `--metrics-compat vllm` under vLLM's own names too."""
    engine = services.engine
    text = services.metrics.render(engine.generations(), engine.stats(), engine.limits.memory, services.jobs.counts())
    return Response(text, media_type=CONTENT_TYPE_LATEST)
