"""What is known about a stored artifact: the content of its ``manifest.json``. No tensors, no files, no torch."""

from __future__ import annotations

import json
from datetime import datetime
from hashlib import sha256
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, StringConstraints, model_validator

from mappers.mapper_config import MAX_WIDTH, MapperConfig
from mappers.sites import Site

ArtifactKind = Literal["switch", "mapper", "vector", "probe", "dataset", "report", "activations"]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
TENSOR_FILE = "tensors.safetensors"
ROWS_FILE = "rows.jsonl"
MAX_ROC_POINTS = 64
MAX_DRIFT_COMPONENTS = 64
REPORT_FILE = "report.json"
MAX_FILES = 400
_MAX_JSON = 65_536

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
SiteText = Annotated[str, StringConstraints(pattern=r"^resid_post\.\d{1,4}$")]
Key = Annotated[str, StringConstraints(min_length=1, max_length=96)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Part):
    """One file beside the manifest: sha256 (hex) and size in bytes."""

    sha256: Digest
    size: int = Field(ge=0, le=2**40)


class ModelBinding(_Part):
    """The model an artifact's activations live in; ``config_digest`` is :func:`mappers.architectures.config_digest`.

    ``weight_digest`` is :func:`mappers.weight_digest.weight_digest`; None where it was not known.
    """

    model: str = Field(min_length=1, max_length=256)
    config_digest: Digest
    width: int = Field(ge=1, le=MAX_WIDTH)
    weight_digest: Digest | None = None

    def fits(self, config_digest: str, weight_digest: str | None) -> bool:
        """Whether that is this model; weights are compared where both sides know theirs."""
        unknown = self.weight_digest is None or weight_digest is None
        return self.config_digest == config_digest and (unknown or self.weight_digest == weight_digest)


class Parent(_Part):
    """An artifact this one was made from, and as what (``dataset``, ``vector``, ``mapper`` ...)."""

    role: Key
    id: Annotated[str, StringConstraints(pattern=r"^art_[0-9a-f]{24}$")]
    name: Name


class RocPoint(_Part):
    """Shares of negative and of positive prompts in which some token scores above ``threshold``."""

    threshold: FiniteFloat
    false_positive_rate: Share
    true_positive_rate: Share


class ProbeFacts(_Part):
    """How a probe is read as a gate: it fires where the score is above ``on`` and lets go where it is below ``off``.

    ``choice`` is how ``on`` came about. ``auc`` and ``roc`` (from the highest threshold) are of prompts that neither
    fit nor choice has seen.
    """

    on: FiniteFloat
    off: FiniteFloat
    choice: Literal["youden", "false_positive_rate"]
    auc: Share
    roc: tuple[RocPoint, ...] = Field(min_length=1, max_length=MAX_ROC_POINTS)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.off > self.on:
            raise ValueError(f"off is {self.off}, above on ({self.on}): a gate would let go as soon as it fires")
        return self


class DriftFacts(_Part):
    """A monitor of ``components``, and the distances of ``tokens`` that it was not made from (of prompts)."""

    components: int = Field(ge=1, le=MAX_DRIFT_COMPONENTS)
    tokens: int = Field(ge=1)
    mean: FiniteFloat
    std: FiniteFloat
    p99: FiniteFloat

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape."""
        shapes = (width,), (self.components, width), (self.components + 1,)
        return dict(zip(("drift_mean", "drift_basis", "drift_variances"), shapes, strict=True))


class Manifest(_Part):
    """Everything about an artifact that is not a tensor or a row.

    ``sites`` are those of the target model (which for activations is the one that was read), ``source_sites`` those a
    mapper reads. ``norms`` holds the Euclidean norm of a vector per target site, ``site_norms`` the root mean square
    norm of the residual stream there on the vector's prompts; ``probe`` says how a probe is read, ``drift`` what a
    switch with monitors (``mappers.drift``) was trained on, ``transfer`` how a vector was transferred. ``training``
    describes the distribution a fit has seen (datasets with digests, tokens, losses, steps, seed), ``effect`` what was
    measured.

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
    probe: ProbeFacts | None = None
    drift: dict[SiteText, DriftFacts] = Field(default_factory=dict, max_length=512)
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
        if self.kind == "probe" and self.target is not None:
            return {f"{site}.{name}": shape for site in self.sites for name, shape in _probe_shapes(self.target.width)}
        if self.mapper is None:
            return {}
        shapes = self.mapper.parameter_shapes()
        found = {f"{site}.{parameter}": shape for site in self.sites for parameter, shape in shapes.items()}
        for site, facts in self.drift.items():
            found |= {f"{site}.{name}": shape for name, shape in facts.shapes(self.mapper.d_source).items()}
        return found


def _probe_shapes(width: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return ("weight", (width,)), ("bias", (1,))


def _check_kind(manifest: Manifest) -> None:
    """Each kind has the parts that :meth:`Manifest.tensor_shapes` and the catalogue rely on."""
    kind, target, mapper = manifest.kind, manifest.target, manifest.mapper
    if (kind == "probe") != (manifest.probe is not None) or (kind == "probe" and len(manifest.sites) != 1):
        raise ValueError("a probe, and nothing else, has the part probe, and it has one site")
    if manifest.drift and (kind != "switch" or not set(manifest.drift) <= set(manifest.sites)):
        raise ValueError("drift is measured at the sites of a switch only")
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
    if (kind in ("vector", "probe", "activations")) != (mapper is None):
        raise ValueError(f"mapper is {'no part' if mapper else 'a needed part'} of a {kind}")
    if mapper is not None and mapper.d_target != target.width:
        raise ValueError(f"mapper.d_target is {mapper.d_target}, but the target's width is {target.width}")
    if kind == "switch" and mapper is not None and mapper.d_source != mapper.d_target:
        raise ValueError(f"a switch maps one model onto itself, got widths {mapper.d_source} and {mapper.d_target}")
    if kind == "mapper" and (manifest.source is None or len(manifest.sites) != 1 or len(manifest.source_sites) != 1):
        raise ValueError("a mapper needs source, one site and one source site")


_LATER_PARTS = ("probe", "drift", "site_norms")


def canonical_json(manifest: Manifest, *, with_files: bool = True) -> bytes:
    """The manifest as UTF-8 JSON with sorted keys and no white space: equal manifests give equal bytes.

    Parts that came later are left out where they are empty: an artifact without them keeps the id it has always had.
    """
    content = manifest.model_dump(mode="json", exclude=None if with_files else {"files"})
    content = {name: part for name, part in content.items() if part or name not in _LATER_PARTS}
    for side in ("target", "source"):
        if content[side] is not None and content[side]["weight_digest"] is None:
            del content[side]["weight_digest"]
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def artifact_id(manifest: Manifest) -> str:
    """``art_`` and 24 hexadecimal digits of the sha256 of the manifest, hence of every file it lists."""
    return f"art_{sha256(canonical_json(manifest)).hexdigest()[:24]}"
