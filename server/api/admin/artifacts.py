"""Artifacts: switches, mappers, vectors, probes, datasets, reports, activations; uploads are raw bodies, counted."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

from anyio import open_file, to_thread
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import FileResponse, Response
from pydantic import Field
from typing_extensions import TypedDict

from mappers.manifest import REPORT_FILE, ArtifactKind, ModelBinding
from server.api.auth import Caller, needs
from server.api.json_body import bounded_stream
from server.api.schemas.answers import error_responses
from server.api.schemas.bounds import Name, QueryModel
from server.api.services import InjectedServices, Services
from server.errors import Conflict, InvalidRequest, NotFound
from server.policy.keys import Principal
from server.registry.exports import export_control_vector
from server.registry.imports import import_upload

if TYPE_CHECKING:
    from server.registry.artifacts import ArtifactRecord

router = APIRouter(dependencies=[needs("infer")], tags=["Artifacts"])

Uploadable = Literal["switch", "mapper", "vector", "probe", "dataset"]
"""A report says what this server measured, activations what it computed: nobody else can say it."""

ArtifactName = Annotated[Name, Path(description="Name or id")]

_MEDIA_TYPES = {".jsonl": "application/jsonl", ".json": "application/json", ".png": "image/png"}


Expected = Annotated[
    Name | None,
    Field(description="Only if the name leads to this id until now (`none`: to nothing), else 409"),
]


class ArtifactFilter(QueryModel):
    """Which artifacts to list."""

    kind: ArtifactKind | None = None


class Download(QueryModel):
    """Which file of an artifact to download, and in which format."""

    file: Annotated[Name | None, Field(description="A file that the manifest lists; default: the artifact's own")] = (
        None
    )
    format: Annotated[
        Literal["native", "gguf"],
        Field(description="gguf: a control vector, for vectors alone; no manifest goes with it"),
    ] = "native"


class Upload(QueryModel):
    """What an uploaded file is to become."""

    name: Annotated[Name, Field(description="Name it is found by; moves there if the caller has one of that name")]
    kind: Annotated[Uploadable | None, Field(description="Refuse the file if it holds anything else")] = None
    expected: Expected = None


class ArtifactOut(TypedDict):
    """A stored artifact; ``created_at`` in seconds since the epoch, ``size`` in bytes. Lists leave out the manifest."""

    id: str
    object: Literal["artifact"]
    name: str
    kind: ArtifactKind
    created_at: float
    size: int
    sites: list[str]
    manifest: NotRequired[dict[str, Any]]


class ArtifactList(TypedDict):
    """Artifacts, newest first."""

    object: Literal["list"]
    data: list[ArtifactOut]


@router.get("/v1/artifacts", summary="List artifacts", responses=error_responses(400, 401, 403))
def list_artifacts(
    services: InjectedServices, principal: Caller, wanted: Annotated[ArtifactFilter, Query()]
) -> ArtifactList:
    """The caller's own and those of nobody; with the scope `admin` everybody's."""
    records = services.artifacts.list(wanted.kind, owner=owner_filter(principal))
    return {"object": "list", "data": [artifact_out(record) for record in records]}


@router.get("/v1/artifacts/{artifact}", summary="Show an artifact", responses=error_responses(400, 401, 403, 404))
def show_artifact(artifact: ArtifactName, services: InjectedServices, principal: Caller) -> ArtifactOut:
    """With its manifest: the model it is for, sites, digests, how it was trained, what it was made from."""
    record = visible_artifact(services, principal, artifact)
    return {**artifact_out(record), "manifest": record.manifest.model_dump(mode="json")}


@router.get(
    "/v1/artifacts/{artifact}/download",
    summary="Download a file of an artifact",
    response_class=FileResponse,
    responses=error_responses(400, 401, 403, 404),
)
def download_artifact(
    artifact: ArtifactName, services: InjectedServices, principal: Caller, wanted: Annotated[Download, Query()]
) -> Response:
    """safetensors with the manifest in its header, or JSON lines for a dataset; can be uploaded again as it is.

    A report is JSON, with pictures as further files; activations are shards, of which the first comes by default.
    """
    record = visible_artifact(services, principal, artifact)
    if wanted.format == "gguf":
        return _control_vector(record, wanted)
    files = record.manifest.files
    own = REPORT_FILE if record.kind == "report" else next(iter(files))
    file = wanted.file or own
    if file not in files:
        raise NotFound(f"{record.name!r} has no file {file!r}; its files are {', '.join(files)}", param="file")
    path = FilePath(file)
    return FileResponse(
        record.path / file,
        media_type=_MEDIA_TYPES.get(path.suffix, "application/octet-stream"),
        filename=record.name + path.suffix if file == own else f"{record.name}-{file}",
        headers={"Content-Security-Policy": "default-src 'none'; sandbox"},
    )


@router.post(
    "/v1/artifacts",
    summary="Upload an artifact",
    status_code=201,
    dependencies=[needs("train")],
    responses=error_responses(400, 401, 403, 409, 413),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                "text/plain": {"schema": {"type": "string"}},
            },
        }
    },
)
async def upload_artifact(
    request: Request, services: InjectedServices, principal: Caller, wanted: Annotated[Upload, Query()]
) -> ArtifactOut:
    """The body is the file itself; what it is, is read from its content, unless it is sent as `text/plain`.

    safetensors as `GET .../download` gives them; safetensors or GGUF with one vector for each layer (`direction.N`),
    for the served model; JSON lines of `{"messages": [...]}`, `{"prompt", "completion"}` or `{"text"}` as a dataset;
    plain text (`Content-Type: text/plain`, UTF-8), cut into passages, as a dataset of `{"text"}`.
    """
    services.policy.check_publish(principal, wanted.name)
    async with _staging(services) as folder:
        source = folder / "upload"
        async with await open_file(source, "wb") as file:
            async for chunk in bounded_stream(request, services.upload_bytes):
                await file.write(chunk)
        text = request.headers.get("content-type", "").partition(";")[0].strip().lower() == "text/plain"
        record = await to_thread.run_sync(_import, services, source, wanted, principal, text)
    return {**artifact_out(record), "manifest": record.manifest.model_dump(mode="json")}


@router.delete(
    "/v1/artifacts/{artifact}",
    summary="Delete an artifact",
    status_code=204,
    dependencies=[needs("train")],
    responses=error_responses(400, 401, 403, 404, 409),
)
def delete_artifact(artifact: ArtifactName, services: InjectedServices, principal: Caller) -> None:
    """The caller's own; others' and nobody's take the scope `admin`.

    Refused while another was made from it or a profile is bound to it, and for the default switch, without which no
    request could be answered.
    """
    record = visible_artifact(services, principal, artifact)
    require_owner(principal, record)
    _check_unused(services, record)
    services.artifacts.delete(record.id, by=principal.owner)
    services.catalog.forget(record.id)


def _control_vector(record: ArtifactRecord, wanted: Download) -> Response:
    if wanted.file is not None:
        raise InvalidRequest("a control vector is made of the whole artifact: leave file out", param="file")
    if record.kind != "vector":
        raise InvalidRequest(f"{record.name!r} is a {record.kind}: only vectors can be GGUF files", param="format")
    headers = {"Content-Disposition": f'attachment; filename="{record.name}.gguf"'}
    return Response(export_control_vector(record.path), media_type="application/octet-stream", headers=headers)


def _check_unused(services: Services, record: ArtifactRecord) -> None:
    policy = services.policy
    default = policy.default_switch
    if default is not None and record.id == (policy.switch_artifact or services.artifacts.get(default).id):
        raise Conflict(f"{default!r} is this server's default switch: start it with another --switch first")
    if profiles := services.profiles.bound_to(record.id):
        raise Conflict(f"{record.name!r} is part of the profiles {', '.join(profiles)}: write them without it first")


@asynccontextmanager
async def _staging(services: Services) -> AsyncIterator[FilePath]:
    folder = await to_thread.run_sync(services.artifacts.new_staging)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _import(services: Services, source: FilePath, wanted: Upload, principal: Principal, text: bool) -> ArtifactRecord:
    if source.stat().st_size == 0:
        raise InvalidRequest("the body is empty: send the file as the body")
    info = services.engine.info
    target = ModelBinding(
        model=info.name, config_digest=info.config_digest, width=info.width, weight_digest=info.weight_digest
    )
    now = datetime.fromtimestamp(services.wall_clock(), UTC).isoformat()
    folder = services.artifacts.new_staging()
    try:
        made = import_upload(source, folder, name=wanted.name, created_at=now, target=target, text=text)
        if wanted.kind not in (None, made.kind):
            raise InvalidRequest(f"the file holds a {made.kind}, not a {wanted.kind}", param="kind")
        return services.artifacts.register(folder, name=wanted.name, owner=principal.owner, expected=wanted.expected)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def visible_artifact(services: Services, principal: Principal, artifact: str) -> ArtifactRecord:
    """The artifact with that name or id; raises NotFound, for another owner's too."""
    return services.artifacts.get(artifact, owner=owner_filter(principal), param="artifact")


def require_owner(principal: Principal, record: ArtifactRecord) -> None:
    """Raises NotPermitted for others' and nobody's, unless the caller has the scope ``admin``."""
    if record.owner != principal.owner:
        principal.require("admin")


def owner_filter(principal: Principal) -> str | None:
    """Whose artifacts this principal sees beside nobody's; None: everybody's."""
    return None if "admin" in principal.scopes else principal.owner


def artifact_out(record: ArtifactRecord) -> ArtifactOut:
    """Without the manifest."""
    return {
        "id": record.id,
        "object": "artifact",
        "name": record.name,
        "kind": record.manifest.kind,
        "created_at": record.created_at,
        "size": record.size,
        "sites": list(record.manifest.sites),
    }
