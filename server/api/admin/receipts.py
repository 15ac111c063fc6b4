"""``POST /v1/receipts/verify``: was this receipt signed here?"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from typing_extensions import TypedDict

from server.api.auth import needs
from server.api.json_body import JsonRoute
from server.api.schemas.answers import error_responses
from server.api.schemas.bounds import BODY_BYTES, StrictModel
from server.api.services import InjectedServices
from server.policy.receipts import ALGORITHM, Signature

router = APIRouter(route_class=JsonRoute, dependencies=[needs("infer")], tags=["Generations"])


class SignatureIn(StrictModel):
    """`interlock.signature` of an answer, as it is."""

    algorithm: Literal["HMAC-SHA256"] = ALGORITHM
    key_id: Annotated[str, Field(max_length=64)]
    payload: Annotated[str, Field(max_length=BODY_BYTES)]
    value: Annotated[str, Field(max_length=128)]


class ReceiptCheck(TypedDict):
    """``receipt`` is what was signed, null where the signature does not hold."""

    object: Literal["receipt.verification"]
    valid: bool
    problem: str | None
    receipt: dict[str, Any] | None


@router.post("/v1/receipts/verify", summary="Verify a signed receipt", responses=error_responses(400, 401, 403, 413))
async def verify_receipt(body: SignatureIn, services: InjectedServices) -> ReceiptCheck:
    """Tells whether this server signed exactly this payload. Compare its `text_sha256` with the text you have."""
    problem = services.signer.problem(Signature(body.key_id, body.payload, body.value))
    return {
        "object": "receipt.verification",
        "valid": problem is None,
        "problem": problem,
        "receipt": json.loads(body.payload) if problem is None else None,
    }
