"""What is known about a stored artifact: the content of its ``manifest.json``. No tensors, no files, no torch."""

from __future__ import annotations

import json
from datetime import datetime
from hashlib import sha256
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, StringConstraints, model_validator

from mappers.mapper_config import MAX_WIDTH, MapperConfig
from mappers.sites import Site

ArtifactKind = Literal["switch", "mapper", "vector", "dataset", "report", "activations"]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
TENSOR_FILE = "tensors.safetensors"
ROWS_FILE = "rows.jsonl"
REPORT_FILE = "report.json"
MAX_FILES = 400
_MAX_JSON = 65_536

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
SiteText = Annotated[str, StringConstraints(pattern=r"^resid_post\.\d{1,4}$")]
Key = Annotated[str, StringConstraints(min_length=1, max_length=96)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Part):
    """One file beside the manifest: sha256 (hex) and size in bytes."""

    sha256: Digest
    size: int = Field(ge=0, le=2**40)


class ModelBinding(_Part):
    """The model an artifact's activations live in; ``config_digest`` is :func:`mappers.architectures.config_digest`."""

    model: str = Field(min_length=1, max_length=256)
    config_digest: Digest
    width: int = Field(ge=1, le=MAX_WIDTH)


class Parent(_Part):
    """An artifact this one was made from, and as what (``dataset``, ``vector``, ``mapper`` ...)."""

    role: Key
    id: Annotated[str, StringConstraints(pattern=r"^art_[0-9a-f]{24}$")]
    name: Name


class Manifest(_Part):
    """Everything about an artifact that is not a tensor or a row.

    ``sites`` are those of the target model (which for activations is the one that was read), ``source_sites`` those a
    mapper reads. ``norms`` holds the Euclidean norm of a vector per target site, ``site_norms`` the root mean square
    norm of the residual stream there on the vector's prompts; ``transfer`` says how a transferred vector came about.
    ``training`` describes the distribution a fit has seen (datasets with digests, tokens, losses, steps, seed),
    ``effect`` what was measured.

    Raises pydantic's ValidationError (a ValueError) where parts contradict each other.
    """

    format: Literal[1] = 1
    kind: ArtifactKind
    name: Name
    created_at: str = Field(max_length=40)
    files: dict[Name, FileEntry] = Field(default_factory=dict, max_length=MAX_FILES)
    target: ModelBinding | None = None
    source: ModelBinding | None = None
    sites: tuple[SiteText, ...] = Field(default=(), max_length=512)
    source_sites: tuple[SiteText, ...] = Field(default=(), max_length=512)
    mapper: MapperConfig | None = None
    dtype: Literal["float32", "float16"] | None = None
    training: dict[Key, JsonValue] = Field(default_factory=dict, max_length=64)
    effect: dict[Key, FiniteFloat] = Field(default_factory=dict, max_length=64)
    parents: tuple[Parent, ...] = Field(default=(), max_length=64)
    transfer: dict[Key, JsonValue] | None = Field(default=None, max_length=64)
    norms: dict[SiteText, FiniteFloat] = Field(default_factory=dict, max_length=512)
    site_norms: dict[SiteText, FiniteFloat] = Field(default_factory=dict, max_length=512)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if datetime.fromisoformat(self.created_at).tzinfo is None:
            raise ValueError(f"created_at needs a time zone, got {self.created_at!r}: add +00:00")
        if len(set(self.sites)) != len(self.sites):
            raise ValueError(f"sites names a site twice: {', '.join(self.sites)}")
        _check_kind(self)
        if len(canonical_json(self)) > _MAX_JSON:
            raise ValueError(f"the manifest is larger than {_MAX_JSON} bytes: shorten training or transfer")
        return self

    @property
    def target_sites(self) -> tuple[Site, ...]:
        """``sites`` parsed."""
        return tuple(Site.parse(site) for site in self.sites)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape of every float32 tensor that it has to hold; empty for what holds none, and shards."""
        if self.kind == "vector" and self.target is not None:
            return dict.fromkeys(self.sites, (self.target.width,))
        if self.mapper is None:
            return {}
        shapes = self.mapper.parameter_shapes()
        return {f"{site}.{parameter}": shape for site in self.sites for parameter, shape in shapes.items()}


def _check_kind(manifest: Manifest) -> None:
    """Each kind has the parts that :meth:`Manifest.tensor_shapes` and the catalogue rely on."""
    kind, target, mapper = manifest.kind, manifest.target, manifest.mapper
    if kind == "dataset":
        if target is not None or manifest.sites or mapper is not None:
            raise ValueError("target, sites and mapper are no part of a dataset")
        return
    if kind == "report":
        if mapper is not None or manifest.dtype is not None:
            raise ValueError("mapper and dtype are no part of a report, which holds no tensors")
        return
    if target is None or not manifest.sites or manifest.dtype is None:
        raise ValueError(f"a {kind} needs target, sites and dtype")
    if manifest.dtype != "float32" and kind != "activations":
        raise ValueError(f"a {kind} is float32")
    if (kind in ("vector", "activations")) != (mapper is None):
        raise ValueError(f"mapper is {'no part' if mapper else 'a needed part'} of a {kind}")
    if mapper is not None and mapper.d_target != target.width:
        raise ValueError(f"mapper.d_target is {mapper.d_target}, but the target's width is {target.width}")
    if kind == "switch" and mapper is not None and mapper.d_source != mapper.d_target:
        raise ValueError(f"a switch maps one model onto itself, got widths {mapper.d_source} and {mapper.d_target}")
    if kind == "mapper" and (manifest.source is None or len(manifest.sites) != 1 or len(manifest.source_sites) != 1):
        raise ValueError("a mapper needs source, one site and one source site")


def canonical_json(manifest: Manifest, *, with_files: bool = True) -> bytes:
    """The manifest as UTF-8 JSON with sorted keys and no white space: equal manifests give equal bytes.

    ``site_norms`` is left out where it is empty: artifacts made before there was such a field keep their ids.
    """
    content = manifest.model_dump(mode="json", exclude=None if with_files else {"files"})
    if not manifest.site_norms:
        del content["site_norms"]
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def artifact_id(manifest: Manifest) -> str:
    """``art_`` and 24 hexadecimal digits of the sha256 of the manifest, hence of every file it lists."""
    return f"art_{sha256(canonical_json(manifest)).hexdigest()[:24]}"
