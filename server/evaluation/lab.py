"""What an experiment works with: models by name, one loaded at a time for each role, and a way to say how far it is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from hashlib import file_digest, sha256
from pathlib import Path

import torch
from huggingface_hub import snapshot_download

from mappers.loading import LoadedModel, load_model
from mappers.memory import free_memory
from mappers.organisms.build import ensure_organism, ensure_variant, find_organism, variant_folder
from server.evaluation.answering import Answerer
from server.evaluation.scale import Scale

Report = Callable[[str, int, int | None], None]
"""``report(stage, step, total)``: called often; what it raises ends the evaluation, which can be taken up again."""

_KEPT_MODELS = 4
_MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja")


class Lab:
    """Loads models (float32 on a CPU, bfloat16 on a GPU) and answers prompts with them.

    ``places`` are folders or hub ids of models by name. Any other name is an organism's, or ``NAME@SEED``, which is
    another fine-tune of its parent (:func:`mappers.organisms.build.ensure_variant`); those that are not shipped are
    built into the folder ``cache`` when they are first asked for. Answers have at most ``max_tokens`` tokens.
    """

    def __init__(
        self,
        scale: Scale,
        cache: Path,
        device: torch.device,
        report: Report,
        *,
        places: Mapping[str, str] | None = None,
        max_tokens: int = 40,
    ) -> None:
        self.scale = scale
        self.device = device
        self.report = report
        self.max_tokens = max_tokens
        self.cache = cache
        self.places = dict(places or {})
        self._models: OrderedDict[str, LoadedModel] = OrderedDict()
        self._digests: dict[str, str] = {}

    def model(self, name: str) -> LoadedModel:
        """The model called ``name``, frozen and in eval mode.

        Those used least recently are let go to make room. Raises ModelLoadError, and MemoryError where there is none.
        """
        if name not in self._models:
            self._models[name] = self.fresh(name)
        self._models.move_to_end(name)
        return self._models[name]

    def fresh(self, name: str) -> LoadedModel:
        """The same, yet nobody else's: it may be changed."""
        self.report(f"loading {name}", 0, None)
        folder = self.place(name)
        dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        self._make_room(name, sum(file.stat().st_size for file in folder.glob("*.safetensors")))
        return load_model(str(folder), dtype=dtype, device=self.device)

    def _make_room(self, name: str, stored: int) -> None:
        """Weights may be twice as large as stored (float16, float32 once loaded), and work needs as much again."""
        while len(self._models) >= _KEPT_MODELS or (self._models and free_memory(self.device) < 4 * stored):
            self._models.popitem(last=False)
        if (free := free_memory(self.device)) < 2 * stored:
            raise MemoryError(
                f"{name} takes about {2 * stored / 2**30:.1f} GiB, {free / 2**30:.1f} are free: use a larger device"
            )

    def answering(self, loaded: LoadedModel, rows: int = 64) -> AbstractContextManager[Answerer]:
        """An engine over a model, which must not be used otherwise meanwhile."""
        return Answerer(loaded, rows=rows)

    def place(self, name: str) -> Path:
        """The folder of a model, fetched or built first where it is not there; ValueError for no such organism."""
        if (own := self.places.get(name)) is not None:
            return Path(own) if Path(own).is_dir() else Path(snapshot_download(own, allow_patterns=list(_MODEL_FILES)))
        organism, _, seed = name.partition("@")
        reports = ensure_variant(organism, self.cache, int(seed)) if seed else ensure_organism(name, self.cache)
        try:
            while True:
                built = next(reports)
                self.report(f"building {built.organism}: {built.stage}", built.step, built.steps)
        except StopIteration as end:
            folder: Path = end.value
            return folder

    def has(self, name: str) -> bool:
        """Whether a model is there, without fetching or building it; hub ids are taken to be."""
        if name in self.places:
            return True
        organism, _, seed = name.partition("@")
        if seed:
            return variant_folder(organism, self.cache, int(seed)).is_dir()
        return find_organism(organism, self.cache) is not None

    def digest(self, name: str) -> str:
        """The sha256 over a model's weights, for the key of a cell."""
        if name not in self._digests:
            total = sha256()
            for path in sorted(self.place(name).glob("*.safetensors")):
                with path.open("rb") as file:
                    total.update(file_digest(file, "sha256").digest())
            self._digests[name] = total.hexdigest()
        return self._digests[name]
