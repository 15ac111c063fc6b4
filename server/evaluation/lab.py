"""What an experiment works with: models by name, one loaded at a time for each role, and a way to say how far it is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from hashlib import file_digest
from pathlib import Path

import torch

from mappers.loading import LoadedModel, load_model
from mappers.organisms.build import ensure_organism
from server.evaluation.answering import Answerer
from server.evaluation.scale import Scale

Report = Callable[[str, int, int | None], None]
"""``report(stage, step, total)``: called often; what it raises ends the evaluation, which can be taken up again."""

_KEPT_MODELS = 4


class Lab:
    """Loads models (float32 on a CPU, bfloat16 on a GPU) and answers prompts with them.

    Organisms that are not shipped are built into the folder ``cache`` when they are first asked for.
    """

    def __init__(self, scale: Scale, cache: Path, device: torch.device, report: Report) -> None:
        self.scale = scale
        self._cache = cache
        self.device = device
        self.report = report
        self._models: OrderedDict[str, LoadedModel] = OrderedDict()

    def model(self, name: str) -> LoadedModel:
        """The model called ``name``, frozen and in eval mode; raises ModelLoadError."""
        if name not in self._models:
            self.report(f"loading {name}", 0, None)
            dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
            self._models[name] = load_model(str(self.place(name)), dtype=dtype, device=self.device)
            while len(self._models) > _KEPT_MODELS:
                self._models.popitem(last=False)
        self._models.move_to_end(name)
        return self._models[name]

    def answering(self, loaded: LoadedModel, rows: int = 64) -> AbstractContextManager[Answerer]:
        """An engine over a model, which must not be used otherwise meanwhile."""
        return Answerer(loaded, rows=rows)

    def place(self, name: str) -> Path:
        """The folder of a model, built first where it is an organism that is not there; ValueError for no such one."""
        reports = ensure_organism(name, self._cache)
        try:
            while True:
                built = next(reports)
                self.report(f"building {built.organism}: {built.stage}", built.step, built.steps)
        except StopIteration as end:
            folder: Path = end.value
            return folder

    def digest(self, names: Sequence[str]) -> list[str]:
        """The sha256 of each model's weights, for the key of a cell."""
        digests = []
        for name in names:
            with (self.place(name) / "model.safetensors").open("rb") as file:
                digests.append(file_digest(file, "sha256").hexdigest())
        return digests
