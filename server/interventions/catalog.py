"""Turns what a request asks for into tensors on the device, or into an error; never into less than was asked.

Shapes: D width of the residual stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mappers.drift import DriftMonitor
from mappers.errors import ArtifactError
from mappers.sites import Site
from mappers.tensors import load_monitors, load_probe, load_switch, load_vector
from server.errors import InvalidRequest, RequestError
from server.interventions.gates import FOREVER, Gate, GateMark
from server.interventions.residency import Effects, Residency, ResidentArtifact
from server.types import Apply, GateSpec, InlineVector, InterventionSpec, ModelInfo, Operation

if TYPE_CHECKING:
    from server.registry.artifacts import ArtifactRecord


@dataclass(frozen=True, eq=False, slots=True)
class ResolvedIntervention:
    """An intervention with its tensors resident: ``effects`` holds a direction ``v_D`` or a mapper for each site.

    ``artifact`` is where they come from, held so that it counts as resident for as long as the intervention is used.
    """

    operation: Operation
    name: str
    digest: str
    sites: tuple[Site, ...]
    strength: float
    apply: Apply
    effects: Effects
    minimum: float = -math.inf
    maximum: float = math.inf
    artifact: ResidentArtifact | None = None
    gate: Gate | None = None

    @property
    def monitors(self) -> Mapping[Site, DriftMonitor]:
        """What tells how far activations lie from those it was trained on, at the sites that have that."""
        return {} if self.artifact is None else self.artifact.monitors

    @property
    def gate_mark(self) -> GateMark | None:
        """What decides when it acts; None where it always does."""
        return None if self.gate is None else self.gate.mark


class Catalog:
    """Artifacts resident on the device, looked up by name for each request; safe to call from several threads.

    ``locate`` finds an artifact by name or id (raises NotFound). Only copying to the device happens here, no
    computation, so callers need not be the engine's thread. Where artifacts need more than ``budget_bytes``, those
    least recently asked for leave the device, and are read and verified again when they are next asked for; what
    running requests use stays until they end.
    """

    def __init__(
        self,
        locate: Callable[[str], ArtifactRecord],
        model: ModelInfo,
        device: str | torch.device,
        max_strength: float,
        budget_bytes: int = 2**30,
    ) -> None:
        self._locate = locate
        self._model = model
        self._device = torch.device(device)
        self.max_strength = max_strength
        self._resident = Residency(budget_bytes)
        self._refused: Mapping[str, str] = {}

    @property
    def resident_bytes(self) -> int:
        """Bytes of the artifacts on the device now, inline vectors not counted."""
        return self._resident.nbytes

    @property
    def resident_ids(self) -> frozenset[str]:
        """Ids of the artifacts on the device now."""
        return self._resident.ids

    def resolve(self, spec: InterventionSpec) -> ResolvedIntervention:
        """Looks up, checks and loads what ``spec`` asks for.

        Raises NotFound for an unknown name and InvalidRequest (naming the field) for another kind, model, width or
        site, a strength out of bounds, and a direction that cannot be used.
        """
        self._check_numbers(spec)
        if isinstance(spec.source, InlineVector):
            name, artifact = "inline", self._inline(spec, spec.source)
            effects, sites = artifact.effects, tuple(artifact.effects)
        else:
            name, artifact = spec.source, self._load(spec, spec.source)
            effects, sites = _at_sites(artifact, spec, self._model.layers)
        if not sites:
            raise InvalidRequest(
                "name at least one site: without one nothing would be done", param=f"{spec.param}.sites"
            )
        return ResolvedIntervention(
            operation=spec.operation,
            name=name,
            digest=artifact.digest,
            sites=sites,
            strength=spec.strength,
            apply=spec.apply,
            effects=effects,
            minimum=-math.inf if spec.minimum is None else spec.minimum,
            maximum=math.inf if spec.maximum is None else spec.maximum,
            artifact=artifact,
            gate=None if spec.gate is None else self._gate(spec.gate, min(sites), f"{spec.param}.gate"),
        )

    def _gate(self, spec: GateSpec, lowest: Site, field: str) -> Gate:
        record = self._record(spec.probe, "probe", field)
        artifact = self._resident.get(record.id, lambda: self._read(record, field))
        ((site, probe),) = artifact.probes.items()
        if site > lowest:
            raise InvalidRequest(
                f"'{spec.probe}' reads {site}, and at {lowest} the intervention would have acted already: gate it by a "
                f"probe at {lowest} or below, or let it act at {site} or above",
                param=field,
                code="gate_too_late",
            )
        on = probe.on if spec.threshold is None else spec.threshold
        off = on - (probe.on - probe.off) if spec.release is None else spec.release
        if off > on:
            raise InvalidRequest(f"release must not be above the threshold {on:g}", param=f"{field}.release")
        hold = FOREVER
        if spec.hold is not None:
            off, hold = -math.inf, FOREVER if spec.hold == "forever" else spec.hold + 1
        return Gate(GateMark(site, artifact.digest, on, off, hold), probe)

    @property
    def refused(self) -> Mapping[str, str]:
        """Ids of artifacts that no request may use, and why."""
        return self._refused

    def refuse(self, artifact_id: str, reason: str) -> None:
        """Lets no request use an artifact until it is forgotten, or the server starts anew."""
        self._refused = {**self._refused, artifact_id: reason}

    def forget(self, artifact_id: str) -> None:
        """Drops a deleted artifact from the device; requests already running keep their tensors."""
        self._resident.forget(artifact_id)
        self._refused = {one: reason for one, reason in self._refused.items() if one != artifact_id}

    def _check_numbers(self, spec: InterventionSpec) -> None:
        if not math.isfinite(spec.strength) or abs(spec.strength) > self.max_strength:
            raise InvalidRequest(
                f"strength must be a finite number with |strength| <= {self.max_strength:g}, got {spec.strength}",
                param=f"{spec.param}.strength",
            )
        if spec.operation == "clamp":
            low = -math.inf if spec.minimum is None else spec.minimum
            high = math.inf if spec.maximum is None else spec.maximum
            if not low <= high or (math.isinf(low) and math.isinf(high)):
                raise InvalidRequest("clamp needs 'min', 'max' or both, with min <= max", param=f"{spec.param}.min")

    def _inline(self, spec: InterventionSpec, vector: InlineVector) -> ResidentArtifact:
        width = self._model.width
        if len(vector.data) != 4 * width:
            raise InvalidRequest(
                f"the vector must hold {width} little-endian float32 values ({4 * width} bytes, base64) for model "
                f"'{self._model.name}'; got {len(vector.data)} bytes",
                param=f"{spec.param}.vector.data",
                code="wrong_width",
            )
        v_D = torch.frombuffer(bytearray(vector.data), dtype=torch.float32).to(self._device)
        _check_direction(v_D, spec.operation, f"{spec.param}.vector.data")
        for site in vector.sites:
            _check_layer(site, self._model.layers, f"{spec.param}.vector.sites")
        return ResidentArtifact("vector", sha256(vector.data).hexdigest(), dict.fromkeys(vector.sites, v_D))

    def _load(self, spec: InterventionSpec, name: str) -> ResidentArtifact:
        field = spec.param if spec.operation == "switch" else f"{spec.param}.vector"
        wanted = "switch" if spec.operation == "switch" else "vector"
        record = self._record(name, wanted, field)
        resident = self._resident.get(record.id, lambda: self._read(record, field))
        if wanted == "vector":
            for v_D in resident.effects.values():
                _check_direction(v_D, spec.operation, field)
        return resident

    def _record(self, name: str, kind: str, field: str) -> ArtifactRecord:
        try:
            record = self._locate(name)
        except RequestError as error:
            error.param = error.param or field
            raise
        if record.kind != kind:
            raise InvalidRequest(
                f"'{name}' is a {record.kind}; {field} needs a {kind}", param=field, code="wrong_artifact_kind"
            )
        if (reason := self._refused.get(record.id)) is not None:
            raise InvalidRequest(
                f"'{name}' failed its canary when the server started: {reason}", param=field, code="artifact_unusable"
            )
        return record

    def _read(self, record: ArtifactRecord, field: str) -> ResidentArtifact:
        target, model = record.manifest.target, self._model
        fits = target is not None and target.fits(model.config_digest, model.weight_digest)
        if target is None or not fits or target.width != model.width:
            made_for = "no model" if target is None else f"'{target.model}' (width {target.width})"
            if target is not None and (target.model, target.width) == (model.name, model.width):
                other = "another configuration" if target.config_digest != model.config_digest else "other weights"
                made_for = f"{other} of {made_for}"
            raise InvalidRequest(
                f"'{record.name}' was made for {made_for}, not for '{self._model.name}' (width {self._model.width}): "
                "train or transfer it for this model",
                param=field,
                code="wrong_model",
            )
        try:
            resident = self._on_device(record)
        except ArtifactError as error:
            raise InvalidRequest(
                f"'{record.name}' cannot be used: {error.message}", param=field, code="artifact_unusable"
            ) from error
        for site in (*resident.effects, *resident.probes):
            _check_layer(site, self._model.layers, field)
        return resident

    def _on_device(self, record: ArtifactRecord) -> ResidentArtifact:
        if record.kind == "probe":
            probes = {
                site: replace(probe, weight_D=probe.weight_D.to(self._device))
                for site, probe in load_probe(record.path)[1].items()
            }
            return ResidentArtifact(record.kind, record.id, probes=probes)
        if record.kind == "switch":
            mappers = {site: f.to(self._device).eval() for site, f in load_switch(record.path)[1].items()}
            monitors = {
                site: DriftMonitor.of({name: tensor.to(self._device) for name, tensor in one.tensors().items()})
                for site, one in load_monitors(record.path).items()
            }
            return ResidentArtifact(record.kind, record.id, mappers, monitors=monitors)
        vectors = {site: v_D.float().to(self._device) for site, v_D in load_vector(record.path)[1].items()}
        return ResidentArtifact(record.kind, record.id, vectors)


def _at_sites(artifact: ResidentArtifact, spec: InterventionSpec, layers: int) -> tuple[Effects, tuple[Site, ...]]:
    own = tuple(sorted(artifact.effects))
    if spec.sites is None:
        return artifact.effects, own
    field = f"{spec.param}.sites"
    for site in spec.sites:
        _check_layer(site, layers, field)
    if missing := [site for site in spec.sites if site not in artifact.effects]:
        if artifact.kind == "switch" or len(own) > 1:
            raise InvalidRequest(
                f"it has nothing at {', '.join(map(str, missing))}; its sites are {', '.join(map(str, own))}",
                param=field,
                code="unknown_site",
            )
        # One direction may act anywhere in the stream: ablating a refusal direction at every layer needs just that.
        only = next(iter(artifact.effects.values()))
        return dict.fromkeys(spec.sites, only), tuple(sorted(set(spec.sites)))  # type: ignore[return-value]
    return artifact.effects, tuple(sorted(set(spec.sites)))


def _check_layer(site: Site, layers: int, field: str) -> None:
    if site.layer >= layers:
        raise InvalidRequest(
            f"layer {site.layer} does not exist: this model has layers 0 to {layers - 1}",
            param=field,
            code="unknown_site",
        )


def _check_direction(v_D: object, operation: Operation, field: str) -> None:
    assert isinstance(v_D, Tensor)
    if not bool(torch.isfinite(v_D).all()):
        raise InvalidRequest("the vector holds NaN or infinity; send finite values", param=field)
    # What divides by the squared length is exact only where that is an ordinary number: 1/inf would do nothing.
    squared = float(v_D.square().sum())
    if operation != "add" and not torch.finfo(torch.float32).tiny <= squared < math.inf:
        raise InvalidRequest(
            f"the vector's length must be between 1e-18 and 1e19, and '{operation}' uses its direction: scale it",
            param=field,
        )
