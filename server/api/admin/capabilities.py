"""``GET /v1/capabilities``: what this server is and what may be asked of it."""

from __future__ import annotations

from typing import Literal, get_args

from fastapi import APIRouter
from typing_extensions import TypedDict

from server.api.auth import Caller, needs
from server.api.schemas import bounds
from server.api.schemas.answers import error_responses
from server.api.services import InjectedServices, Services
from server.api.wishes import default_bundle
from server.policy.keys import Principal, Scope
from server.types import Operation

router = APIRouter(dependencies=[needs("infer")], tags=["Server"])


class ModelFacts(TypedDict):
    """The served model. ``config_digest`` binds artifacts to it.

    ``dtype`` is that of the weights; ``dtype_reason`` says why the server picked it, empty where the operator did.
    """

    name: str
    architecture: str
    layers: int
    width: int
    vocab_size: int
    context: int
    dtype: str
    dtype_reason: str
    device: str
    config_digest: str
    chat_template: bool


class SiteOut(TypedDict):
    """A place where interventions can act: the output of decoder block ``layer``."""

    layer: int
    point: Literal["resid_post"]


class LimitsOut(TypedDict):
    """Bounds of one request (strengths, counts, bytes) and of the engine (rows, tokens)."""

    context: int
    max_batch: int
    max_waiting: int
    prefill_tokens: int
    max_strength: float
    vectors: int
    n: int
    prompts: int
    stop: int
    top_logprobs: int
    logit_bias: int
    body_bytes: int
    upload_bytes: int
    kv_bytes: int
    prefix_bytes: int


class Capabilities(TypedDict):
    """Everything a client needs to know before it asks for an intervention.

    ``default_profile`` and ``default_switch`` are what applies to this caller's requests that say nothing else.
    """

    model: ModelFacts
    engine: str
    sites: list[SiteOut]
    operations: list[Operation]
    default_profile: str | None
    default_switch: str | None
    inline_vectors: bool
    scopes: list[Scope]
    policy: str
    limits: LimitsOut


@router.get("/v1/capabilities", summary="What this server can do", responses=error_responses(401, 403, 503))
async def capabilities(services: InjectedServices, principal: Caller) -> Capabilities:
    """Model, sites, operations and limits, as they are for this API key."""
    layers = services.engine.info.layers
    policy = services.policy
    default = default_bundle(services, policy, principal)
    return {
        "model": _model(services),
        "engine": services.engine_name,
        "sites": [{"layer": layer, "point": "resid_post"} for layer in range(layers)],
        "operations": list(get_args(Operation)),
        "default_profile": default.profile,
        "default_switch": None if default.switch is None else default.switch.name,
        "inline_vectors": policy.document.inline_allowed,
        "scopes": sorted(principal.scopes),
        "policy": policy.name,
        "limits": _limits(services, principal),
    }


def _model(services: Services) -> ModelFacts:
    info = services.engine.info
    return {
        "name": info.name,
        "architecture": info.architecture,
        "layers": info.layers,
        "width": info.width,
        "vocab_size": info.vocab_size,
        "context": info.context,
        "dtype": info.dtype,
        "dtype_reason": info.dtype_reason,
        "device": info.device,
        "config_digest": info.config_digest,
        "chat_template": services.codec.has_chat_template,
    }


def _limits(services: Services, principal: Principal) -> LimitsOut:
    limits = services.engine.limits
    policy = services.policy
    strengths = (policy.max_strength, policy.document.limits.max_strength, principal.limits.max_strength)
    return {
        "context": limits.context,
        "max_batch": limits.max_batch,
        "max_waiting": limits.max_waiting,
        "prefill_tokens": limits.prefill_tokens,
        "max_strength": min(bound for bound in strengths if bound is not None),
        "vectors": bounds.MAX_VECTORS,
        "n": bounds.MAX_CHOICES,
        "prompts": bounds.MAX_ROWS,
        "stop": bounds.MAX_STOPS,
        "top_logprobs": bounds.MAX_TOP_LOGPROBS,
        "logit_bias": bounds.MAX_LOGIT_BIAS,
        "body_bytes": bounds.BODY_BYTES,
        "upload_bytes": services.upload_bytes,
        "kv_bytes": limits.memory.kv,
        "prefix_bytes": limits.memory.prefixes,
    }
