"""Everything about a new job that can be refused without loading a model.

Each check returns the artifacts the job will read, by reference and by id: from then on the job is bound to these ids.
"""

from __future__ import annotations

from contextlib import suppress

from mappers.manifest import Manifest
from server.errors import InvalidRequest, RequestError
from server.jobs.directory import ModelDirectory
from server.jobs.specs import JobSpec
from server.jobs.specs.activations import CollectActivations, CollectActivationsJob
from server.jobs.specs.data import GenerateDatasetJob
from server.jobs.specs.evaluations import Evaluate, EvaluateJob
from server.jobs.specs.fields import SiteIn
from server.jobs.specs.fits import TrainMapper, TrainMapperJob, TrainSwitch, TrainSwitchJob
from server.jobs.specs.probes import TrainProbe, TrainProbeJob
from server.jobs.specs.sweeps import Contrast, MappedVector, RidgeSwitch, StoredVector, SweepSites, SweepSitesJob
from server.jobs.specs.vectors import (
    DATASET_ROLES,
    PROMPTS_ROLE,
    ExtractRefusalDirection,
    ExtractRefusalDirectionJob,
    ExtractVector,
    ExtractVectorJob,
    RescaleToRms,
    TransferSwitch,
    TransferSwitchJob,
    TransferVector,
    TransferVectorJob,
    dataset_parents,
)
from server.registry.artifacts import ArtifactRecord, ArtifactStore


class Checker:
    """Checks jobs against the artifacts that ``owner`` may see and the models of the server."""

    def __init__(self, artifacts: ArtifactStore, models: ModelDirectory, owner: str | None) -> None:
        self._artifacts = artifacts
        self._models = models
        self._owner = owner
        self._inputs: dict[str, str] = {}

    def inputs_of(self, spec: JobSpec) -> dict[str, str]:
        """The inputs of the job; raises InvalidRequest or NotFound naming the field and what exists."""
        self._artifacts.check_name(spec.name, self._owner)
        match spec:
            case TrainSwitchJob(parameters=parameters):
                self._train_switch(parameters)
            case TrainMapperJob(parameters=parameters):
                self._train_mapper(parameters)
            case CollectActivationsJob(parameters=parameters):
                self._collect_activations(parameters)
            case ExtractVectorJob(parameters=parameters):
                self._extract_vector(parameters)
            case ExtractRefusalDirectionJob(parameters=parameters):
                self._extract_refusal_direction(parameters)
            case TransferVectorJob(parameters=parameters):
                self._transfer_vector(parameters)
            case TrainProbeJob(parameters=parameters):
                self._train_probe(parameters)
            case TransferSwitchJob(parameters=parameters):
                self._transfer_switch(parameters)
            case SweepSitesJob(parameters=parameters):
                self._sweep_sites(parameters)
            case EvaluateJob(parameters=parameters):
                self._evaluate(parameters)
            case GenerateDatasetJob(parameters=parameters):
                self._models.require(parameters.model or self._models.served.name, "parameters.model")
        return dict(self._inputs)

    def _train_switch(self, parameters: TrainSwitch) -> None:
        self._models.require(parameters.base, "parameters.base", reference=True)
        self._served_sites(parameters.sites, "parameters.sites")
        self._artifact(parameters.dataset, "dataset", "parameters.dataset")

    def _train_mapper(self, parameters: TrainMapper) -> None:
        self._models.require(parameters.source, "parameters.source", reference=True)
        self._served_sites((parameters.target_site,), "parameters.target_site")
        self._artifact(parameters.dataset, "dataset", "parameters.dataset")

    def _collect_activations(self, parameters: CollectActivations) -> None:
        self._read_sites(parameters.model, parameters.sites)
        self._artifact(parameters.dataset, "dataset", "parameters.dataset")

    def _extract_vector(self, parameters: ExtractVector) -> None:
        self._read_sites(parameters.model, parameters.sites)
        for role, reference in parameters.datasets.items():
            self._artifact(reference, "dataset", f"parameters.{role}")

    def _extract_refusal_direction(self, parameters: ExtractRefusalDirection) -> None:
        self._models.require(parameters.model or self._models.served.name, "parameters.model")
        for role in ("harmful", "harmless"):
            self._artifact(getattr(parameters, role), "dataset", f"parameters.{role}")

    def _transfer_vector(self, parameters: TransferVector) -> None:
        vector = self._artifact(parameters.vector, "vector", "parameters.vector").manifest
        mapper = self._artifact(parameters.mapper, "mapper", "parameters.mapper").manifest
        _check_vector_fits_mapper(vector, mapper)
        if parameters.rule == "linear" and mapper.mapper is not None and mapper.mapper.kind == "autoencoder":
            raise InvalidRequest(
                "rule 'linear' needs an affine mapper: use rule 'pairs' or 'jacobian' for an autoencoder",
                param="parameters.rule",
            )
        if parameters.rule in ("pairs", "jacobian"):
            self._model_of(mapper, "source")
            self._datasets_of(vector, "parameters.vector")
        if parameters.compared is not None:
            field = "parameters.native" if parameters.native is not None else "parameters.rescale.vector"
            _check_native_fits_mapper(self._artifact(parameters.compared, "vector", field).manifest, mapper, field)
        if isinstance(parameters.rescale, RescaleToRms):
            self._model_of(mapper, "target")
            self._datasets_of(vector, "parameters.rescale")
        elif parameters.rule == "linear":
            with suppress(RequestError):  # they give the norm of the target site, and the vector can do without
                self._datasets_of(vector, "parameters.vector")
        if parameters.check is not None:
            self._model_of(mapper, "target")
            self._artifact(parameters.check.dataset, "dataset", "parameters.check.dataset")

    def _transfer_switch(self, parameters: TransferSwitch) -> None:
        switch = self._artifact(parameters.switch, "switch", "parameters.switch").manifest
        if switch.target is not None:
            self._models.require(switch.target.model, "parameters.switch", reference=True)
        if missing := sorted({str(pair.source.site()) for pair in parameters.sites} - set(switch.sites)):
            raise InvalidRequest(
                f"switch {switch.name!r} has nothing at {', '.join(missing)}; its sites are {', '.join(switch.sites)}",
                param="parameters.sites",
            )
        self._served_sites(tuple(pair.target for pair in parameters.sites), "parameters.sites")
        self._artifact(parameters.dataset, "dataset", "parameters.dataset")
        if parameters.check is not None:
            self._artifact(parameters.check.dataset, "dataset", "parameters.check.dataset")

    def _train_probe(self, parameters: TrainProbe) -> None:
        self._served_sites(parameters.sites, "parameters.sites")
        for role in DATASET_ROLES:
            self._artifact(getattr(parameters, role), "dataset", f"parameters.{role}")

    def _sweep_sites(self, parameters: SweepSites) -> None:
        served = self._models.served.name
        self._models.require(parameters.model or served, "parameters.model")
        if parameters.model in (None, served) and parameters.sites is not None:
            self._served_sites(parameters.sites, "parameters.sites")
        self._artifact(parameters.prompts, "dataset", "parameters.prompts")
        edit = parameters.edit
        if isinstance(edit, StoredVector):
            vector = self._artifact(edit.vector, "vector", "parameters.edit.vector").manifest
            if parameters.model in (None, served):
                self._served_artifact(vector, "parameters.edit.vector")
        if isinstance(edit, RidgeSwitch):
            self._models.require(edit.base, "parameters.edit.base")
            self._artifact(edit.dataset, "dataset", "parameters.edit.dataset")
        if isinstance(edit, Contrast):
            for role in DATASET_ROLES:
                self._artifact(getattr(edit, role), "dataset", f"parameters.edit.{role}")
        if isinstance(edit, MappedVector):
            self._models.require(edit.source, "parameters.edit.source")
            self._artifact(edit.texts, "dataset", "parameters.edit.texts")
        if parameters.patching is not None:
            for role in ("triggered", "clean"):
                self._artifact(getattr(parameters.patching, role), "dataset", f"parameters.patching.{role}")

    def _evaluate(self, parameters: Evaluate) -> None:
        self._artifact(parameters.prompts, "dataset", "parameters.prompts")
        if parameters.base is not None:
            self._models.require(parameters.base, "parameters.base", reference=True)
        if parameters.switch is not None:
            switch = self._artifact(parameters.switch.switch, "switch", "parameters.switch.switch").manifest
            self._served_artifact(switch, "parameters.switch.switch")
        for place, used in enumerate(parameters.vectors):
            field = f"parameters.vectors[{place}].vector"
            self._served_artifact(self._artifact(used.vector, "vector", field).manifest, field)

    def _artifact(self, reference: str, kind: str, param: str) -> ArtifactRecord:
        record = self._artifacts.get(reference, kind=kind, owner=self._owner, param=param)
        self._inputs |= {reference: record.id, record.id: record.id}
        return record

    def _datasets_of(self, vector: Manifest, param: str) -> None:
        """The prompts a vector was made from have to be known and still be there."""
        parents = dataset_parents(vector)
        if set(parents) not in (set(DATASET_ROLES), {PROMPTS_ROLE}):
            raise InvalidRequest(
                f"the manifest of {vector.name!r} does not name the datasets it was made from, so its activations "
                "cannot be taken again: use rule 'linear' and rescale to a native vector",
                param=param,
            )
        for reference in parents.values():
            self._artifact(reference, "dataset", param)

    def _model_of(self, mapper: Manifest, side: str) -> None:
        binding = mapper.source if side == "source" else mapper.target
        if binding is not None:
            self._models.require(binding.model, "parameters.mapper")

    def _served_artifact(self, found: Manifest, param: str) -> None:
        served = self._models.served
        if found.target is None or not found.target.fits(served.config_digest, served.weight_digest):
            raise InvalidRequest(
                f"{found.name!r} is no {found.kind} of {served.name!r}: transfer it first", param=param
            )

    def _read_sites(self, model: str | None, sites: tuple[SiteIn, ...]) -> None:
        """Sites of a model by name, None being the served one; those of references are checked once they are loaded."""
        served = self._models.served.name
        self._models.require(model or served, "parameters.model")
        if model in (None, served):
            self._served_sites(sites, "parameters.sites")

    def _served_sites(self, sites: tuple[SiteIn, ...], param: str) -> None:
        served = self._models.served
        if (highest := max(site.layer for site in sites)) >= served.layers:
            raise InvalidRequest(
                f"{param} names layer {highest}, but {served.name!r} has layers 0 to {served.layers - 1}", param=param
            )


def _check_vector_fits_mapper(vector: Manifest, mapper: Manifest) -> None:
    """A mapper reads activations of one model at one site; the vector must be a direction there."""
    if vector.target is None or mapper.source is None:
        raise InvalidRequest(
            "vector or mapper is bound to no model: import or make it again", param="parameters.vector"
        )
    source = mapper.source
    if not vector.target.fits(source.config_digest, source.weight_digest) or vector.target.width != source.width:
        raise InvalidRequest(
            f"vector {vector.name!r} belongs to {vector.target.model!r} (width {vector.target.width}), but "
            f"mapper {mapper.name!r} reads {mapper.source.model!r} (width {mapper.source.width}): "
            "use a mapper from that model",
            param="parameters.mapper",
        )
    if mapper.source_sites[0] not in vector.sites:
        raise InvalidRequest(
            f"mapper {mapper.name!r} reads {mapper.source_sites[0]}, vector {vector.name!r} has "
            f"{', '.join(vector.sites)}: extract the vector at the mapper's site",
            param="parameters.vector",
        )


def _check_native_fits_mapper(native: Manifest, mapper: Manifest, param: str) -> None:
    target = mapper.target
    if native.target is None or target is None or not native.target.fits(target.config_digest, target.weight_digest):
        raise InvalidRequest(
            f"{native.name!r} is no vector of the model that mapper {mapper.name!r} maps to",
            param=param,
        )
    if mapper.sites[0] not in native.sites:
        raise InvalidRequest(
            f"{native.name!r} has no vector at {mapper.sites[0]}, where mapper {mapper.name!r} maps to",
            param=param,
        )
