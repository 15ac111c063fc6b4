"""The registry around artifacts: names that move, what was made from what, and the removal of what nobody needs."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from pydantic import Field
from typing_extensions import TypedDict

from mappers.manifest import ArtifactKind
from server.api.admin.artifacts import (
    ArtifactName,
    ArtifactOut,
    Expected,
    artifact_out,
    owner_filter,
    require_owner,
    visible_artifact,
)
from server.api.auth import Caller, needs
from server.api.schemas.answers import error_responses
from server.api.schemas.bounds import Name, QueryModel
from server.api.services import InjectedServices, Services
from server.registry.lineage import Ancestor

router = APIRouter(dependencies=[needs("infer")], tags=["Artifacts"])

Alias = Annotated[Name, Path(description="A name that leads to an artifact")]


class Move(QueryModel):
    """Under which condition a name moves."""

    expected: Expected = None


class Collection(QueryModel):
    """What a collection may take."""

    dry_run: Annotated[bool, Field(description="Only say what would be removed")] = False
    older_than_s: Annotated[
        float, Field(ge=0, le=1e9, allow_inf_nan=False, description="Spare what was made less than so long ago")
    ] = 3600.0


class ParentOut(TypedDict):
    """What an artifact was made from, and as what."""

    role: str
    id: str
    name: str


class ModelOut(TypedDict):
    """A model that an artifact is bound to; ``role`` is ``target`` or, for what a mapper reads, ``source``."""

    role: str
    model: str
    config_digest: str
    weight_digest: str | None
    width: int


class AncestorOut(TypedDict):
    """One artifact of a lineage; ``kind`` is null where it is gone or not the caller's."""

    id: str
    name: str
    kind: str | None
    models: list[ModelOut]
    parents: list[ParentOut]


class LineageOut(TypedDict):
    """Each ancestor once, the artifact itself first; ``complete`` is false where there are too many to list."""

    object: Literal["artifact.lineage"]
    id: str
    artifacts: list[AncestorOut]
    children: list[AncestorOut]
    complete: bool


class RemovedOut(TypedDict):
    """An artifact that nothing referred to; ``size`` in bytes."""

    id: str
    name: str
    kind: ArtifactKind
    size: int


class CollectionOut(TypedDict):
    """What was removed, or would have been."""

    object: Literal["artifact.collection"]
    dry_run: bool
    removed: list[RemovedOut]


@router.put(
    "/v1/artifacts/{artifact}/names/{alias}",
    summary="Point a name at an artifact",
    dependencies=[needs("train")],
    responses=error_responses(400, 401, 403, 404, 409),
)
def point_name(
    artifact: ArtifactName,
    alias: Alias,
    services: InjectedServices,
    principal: Caller,
    wanted: Annotated[Move, Query()],
) -> ArtifactOut:
    """New, or moved from another artifact; holds from the next request on.

    Running generations, jobs and profiles keep what the name led to when they looked it up.
    """
    record = visible_artifact(services, principal, artifact)
    services.policy.check_publish(principal, alias)
    moved = services.artifacts.point(
        alias,
        record.id,
        by=principal.owner,
        everybody="admin" in principal.scopes,
        expected=wanted.expected,
    )
    return artifact_out(moved)


@router.delete(
    "/v1/artifacts/{artifact}/names/{alias}",
    summary="Take a name from an artifact",
    status_code=204,
    dependencies=[needs("train")],
    responses=error_responses(400, 401, 403, 404, 409),
)
def take_name(artifact: ArtifactName, alias: Alias, services: InjectedServices, principal: Caller) -> None:
    """The artifact stays, by its id, until a collection takes it. 404 where the name leads elsewhere by now."""
    record = visible_artifact(services, principal, artifact)
    require_owner(principal, record)
    services.policy.check_publish(principal, alias)
    services.artifacts.unname(alias, record.id, by=principal.owner, everybody="admin" in principal.scopes)


@router.get(
    "/v1/artifacts/{artifact}/lineage",
    summary="Show what an artifact was made from",
    responses=error_responses(400, 401, 403, 404),
)
def show_lineage(artifact: ArtifactName, services: InjectedServices, principal: Caller) -> LineageOut:
    """Down to datasets and models, and what was made from it in turn.

    What is deleted, or another key's, is listed by id and name without its kind or its own parents.
    """
    record = visible_artifact(services, principal, artifact)
    found = services.artifacts.lineage(record.id, owner=owner_filter(principal))
    return {
        "object": "artifact.lineage",
        "id": record.id,
        "artifacts": [_ancestor(one) for one in found.ancestors],
        "children": [_ancestor(one) for one in found.children],
        "complete": found.complete,
    }


@router.post(
    "/v1/artifacts/gc",
    summary="Remove artifacts that nothing refers to",
    dependencies=[needs("admin")],
    responses=error_responses(400, 401, 403),
)
def collect_garbage(
    services: InjectedServices, principal: Caller, wanted: Annotated[Collection, Query()]
) -> CollectionOut:
    """Whatever no name, profile, policy, key, unfinished job or loaded intervention leads to, descendants included."""
    removed = services.artifacts.collect(
        _in_use(services), older_than_s=wanted.older_than_s, by=principal.owner, dry_run=wanted.dry_run
    )
    for one in () if wanted.dry_run else removed:
        services.catalog.forget(one.id)
    return {
        "object": "artifact.collection",
        "dry_run": wanted.dry_run,
        "removed": [{"id": one.id, "name": one.name, "kind": one.manifest.kind, "size": one.size} for one in removed],
    }


def _in_use(services: Services) -> frozenset[str]:
    """The default switch too: it is bound to the artifact that its name led to at the start."""
    switch = services.policy.switch_artifact
    return services.catalog.resident_ids | ({switch} if switch is not None else frozenset())


def _ancestor(one: Ancestor) -> AncestorOut:
    return {
        "id": one.id,
        "name": one.name,
        "kind": one.kind,
        "models": [
            {
                "role": role,
                "model": binding.model,
                "config_digest": binding.config_digest,
                "weight_digest": binding.weight_digest,
                "width": binding.width,
            }
            for role, binding in one.models
        ],
        "parents": [{"role": parent.role, "id": parent.id, "name": parent.name} for parent in one.parents],
    }
