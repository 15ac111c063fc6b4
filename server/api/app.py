"""Puts the HTTP layer together: middleware, error handlers, routers."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Security
from fastapi_offline import FastAPIOffline
from starlette.middleware import Middleware

from server.api import compare, errors
from server.api.admin import (
    artifacts,
    audit,
    capabilities,
    generations,
    health,
    jobs,
    keys,
    policy,
    profiles,
    receipts,
    registry,
)
from server.api.auth import authenticate
from server.api.middleware import OneMeaning, RequestId, SameOrigin
from server.api.openai import chat, completions, models, tokenization
from server.api.services import Services

_DESCRIPTION = """
An LLM inference server in which every request can switch learned interventions on its own activations on or off.

The routes under *OpenAI* take what OpenAI's clients send, plus `safety_switch` and `steering`. A field that is not
supported is refused with its name. Every answer says in `interlock` what was really done.
"""


def create_app(services: Services) -> FastAPI:
    """The application. Every route but the health probes asks for a key, where the server has keys."""
    # The docs page brings its own scripts: one from a foreign host would see the key that is typed into it.
    app: FastAPI = FastAPIOffline(
        redoc_url=None,
        title="Interlock",
        description=_DESCRIPTION,
        # A redirect would be built from the client's Host header.
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        middleware=[
            Middleware(RequestId, new_id=services.new_id),
            Middleware(OneMeaning),
            *([] if services.tracing is None else [Middleware(services.tracing.http)]),
            Middleware(SameOrigin, is_open=lambda: app.state.services.keys.open),
        ],
    )
    app.state.services = services
    errors.install(app)
    app.include_router(health.public_router)
    app.include_router(_guarded())
    return app


def _guarded() -> APIRouter:
    guarded = APIRouter(dependencies=[Security(authenticate)])
    inference = (chat, completions, compare, models, tokenization, generations, receipts, capabilities)
    for module in (*inference, artifacts, registry, jobs, profiles, policy, keys, audit):
        guarded.include_router(module.router)
    guarded.include_router(health.metrics_router)
    return guarded
