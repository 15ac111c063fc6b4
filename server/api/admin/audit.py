"""The audit log: read it, and have its chain recomputed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Query
from pydantic import Field
from typing_extensions import TypedDict

from server.api.auth import needs
from server.api.schemas.answers import error_responses
from server.api.schemas.bounds import QueryModel
from server.api.services import InjectedServices
from server.errors import InvalidRequest
from server.policy.audit import Action, Filter, Head, VerificationOut

router = APIRouter(dependencies=[needs("admin")], tags=["Access"])

Sequence = Annotated[int, Field(ge=1, le=2**53)]


class AuditFilter(QueryModel):
    """Which entries to list. For the next page send ``next`` as ``before``."""

    action: Action | None = None
    actor: Annotated[str, Field(max_length=128)] | None = None
    request_id: Annotated[str, Field(max_length=128)] | None = None
    before: Sequence | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class KeptHead(QueryModel):
    """The end of the log as it was at an earlier verification; give both or neither."""

    sequence: Sequence | None = None
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$", max_length=64)] | None = None


class EntryOut(TypedDict):
    """One entry; ``at`` in seconds since the epoch. ``actor`` is the id of a key."""

    sequence: int
    at: float
    action: str
    actor: str
    request_id: str | None
    detail: Mapping[str, Any]
    previous: str
    digest: str


class EntryList(TypedDict):
    """Entries, newest first; ``next`` is null on the last page."""

    object: Literal["list"]
    data: list[EntryOut]
    next: int | None


@router.get("/v1/audit", summary="List the audit log", responses=error_responses(400, 401, 403))
def list_audit(services: InjectedServices, wanted: Annotated[AuditFilter, Query()]) -> EntryList:
    """Who lowered, changed or was refused what, newest first. Never holds text of a prompt or an answer."""
    found = services.audit.list(Filter(**wanted.model_dump()))
    entries = cast(list[EntryOut], [asdict(entry) for entry in found])
    more = len(found) == wanted.limit and found[-1].sequence > 1
    return {"object": "list", "data": entries, "next": found[-1].sequence if more else None}


@router.get("/v1/audit/verify", summary="Verify the audit log", responses=error_responses(400, 401, 403))
def verify_audit(services: InjectedServices, kept: Annotated[KeptHead, Query()]) -> VerificationOut:
    """Recomputes every digest. With an earlier `head` it also finds entries that were cut off or written anew."""
    if (kept.sequence is None) != (kept.digest is None):
        raise InvalidRequest("give both sequence and digest of an earlier head, or neither", param="sequence")
    head = None if kept.sequence is None or kept.digest is None else Head(kept.sequence, kept.digest)
    return services.audit.verify(head).report()
