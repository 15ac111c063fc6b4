"""State to go on from after a crash: safetensors files in the job's folder, each replaced whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mappers.artifact import staged_file
from server.jobs.folder import JobFolder

State = Callable[[], Mapping[str, Tensor]]


class Checkpoints:
    """The checkpoints of one job by part; a new one is due every ``interval_s`` seconds."""

    def __init__(self, folder: JobFolder, interval_s: float) -> None:
        self._folder = folder
        self._interval_s = interval_s
        self._saved_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether so much time has passed that a crash would lose more than one interval of work."""
        return time.monotonic() - self._saved_at >= self._interval_s

    def save(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Replaces the checkpoint of ``part``."""
        path = self._folder.checkpoint(part)
        with staged_file(path.parent, path.name) as temporary:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)
        self._saved_at = time.monotonic()

    def load(self, part: str) -> dict[str, Tensor] | None:
        """The checkpoint of ``part`` on the CPU; None where there is none that can be read."""
        path = self._folder.checkpoint(part)
        if not path.exists():
            return None
        try:
            return dict(load_file(path))
        except SafetensorError:
            return None  # a damaged disk: the work is done again
