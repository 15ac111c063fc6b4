"""What a handler works with: models and data by the names of the order, progress, checkpoints, its staging folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mappers.artifact import ROWS_FILE, read_manifest
from mappers.dataset import DatasetRow, dataset_rows
from mappers.errors import ArtifactMismatch, OutOfMemory
from mappers.loading import LoadedModel, load_model, sketch_model
from mappers.manifest import ModelBinding, Parent
from mappers.memory import free_memory
from server.jobs.channel import Channel
from server.jobs.checkpoint import Checkpoints, State
from server.jobs.folder import JobFolder
from server.jobs.protocol import WorkOrder

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class JobContext:
    """One attempt seen from inside the worker. References are those of the job's parameters, or artifact ids."""

    def __init__(self, order: WorkOrder, channel: Channel) -> None:
        folder = JobFolder(Path(order.folder))
        self.order = order
        self.staging = folder.staging(order.attempt)
        self.shards = folder.shards
        self.checkpoints = Checkpoints(folder, order.execution.checkpoint_s)
        self.device = torch.device(order.execution.device)
        self._channel = channel

    def stage(self, stage: str, step: int = 0, total: int | None = None) -> None:
        """Reports where the job is; raises StopRequested when told to stop."""
        self._channel.check()
        self._channel.progress(stage, step, total)

    def step(self, stage: str, step: int, total: int, metrics: Mapping[str, float], part: str, state: State) -> None:
        """Reports a step, and saves ``state()`` as the checkpoint of ``part`` when one is due.

        Raises StopRequested, after saving, when told to stop.
        """
        self._channel.progress(stage, step, total, metrics)
        if self._channel.stopping or self.checkpoints.due:
            self.checkpoints.save(part, state())
        self._channel.check()

    def require_memory(self, needed: int, what: str, remedy: str) -> None:
        """Reports an estimate, as progress and in the log, before ``what`` begins.

        Raises OutOfMemory, naming both figures, where less than ``needed`` bytes are free on the job's device.
        """
        free = free_memory(self.device)
        found = f"about {needed / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free on {self.device.type}"
        sys.stderr.write(f"memory: {what} takes {found}\n")
        self.stage(f"{what} takes {found}"[:96])
        if needed > free:
            raise OutOfMemory(f"{what} takes {found}: {remedy}")

    def load(self, name: str) -> LoadedModel:
        """Loads a model by its name in the order.

        Raises ModelLoadError or UnsupportedArchitecture, and OutOfMemory, before any weight is read, where the weights
        do not fit beside what is loaded already.
        """
        weights = sum(parameter.nbytes for parameter in self.sketch(name).model.parameters())
        self.require_memory(weights, f"loading {name}"[:60], "free memory, or use a smaller model")
        self.stage(f"loading {name}"[:96])
        execution = self.order.execution
        return load_model(
            self.order.models[name],
            dtype=_DTYPES[execution.dtype],
            device=self.device,
            trust_remote_code=execution.trust_remote_code,
        )

    def sketch(self, name: str) -> LoadedModel:
        """The model by its name in the order, in the job's dtype, without its weights; raises as :meth:`load` does."""
        execution = self.order.execution
        return sketch_model(
            self.order.models[name], dtype=_DTYPES[execution.dtype], trust_remote_code=execution.trust_remote_code
        )

    def load_bound(self, binding: ModelBinding) -> LoadedModel:
        """Loads the model an artifact is bound to; raises ArtifactMismatch where its name now means another model."""
        loaded = self.load(binding.model)
        if not binding.fits(loaded.config_digest, loaded.weight_digest):
            raise ArtifactMismatch(
                f"{binding.model!r} is not the model the artifact was made for (its configuration or weights differ): "
                "start the server with the right --reference"
            )
        return loaded

    def path(self, reference: str) -> Path:
        """The folder of an input artifact."""
        return Path(self.order.artifacts[reference].path)

    def rows(self, reference: str) -> list[DatasetRow]:
        """All rows of a dataset; raises DataError."""
        return list(dataset_rows(self.path(reference) / ROWS_FILE))

    def parent(self, role: str, reference: str) -> Parent:
        """An input as a parent of what is being made."""
        found = self.order.artifacts[reference]
        return Parent(role=role, id=found.id, name=found.name)

    def dataset_facts(self, reference: str) -> dict[str, Any]:
        """Name, id, digest and size of a dataset, for a manifest."""
        found = self.order.artifacts[reference]
        manifest = read_manifest(Path(found.path))
        return {
            "name": found.name,
            "id": found.id,
            "sha256": manifest.files[ROWS_FILE].sha256,
            "rows": manifest.training.get("rows"),
        }


def binding(name: str, loaded: LoadedModel) -> ModelBinding:
    """The model under the operator's name, for a manifest."""
    return ModelBinding(
        model=name,
        config_digest=loaded.config_digest,
        width=loaded.stack.width,
        weight_digest=loaded.weight_digest,
    )
