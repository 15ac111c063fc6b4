"""Cells of an evaluation kept on disk, so that one that was interrupted goes on where it stopped.

A cell is found again by its key alone: everything its figures depend on (experiment and its version, models by the
digest of their weights, seed, sizes) has to stand in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from pydantic import JsonValue

from mappers.artifact import staged_file

Key = Mapping[str, JsonValue]
Figures = dict[str, JsonValue]


class Ledger:
    """One JSON file a cell under ``folder``, each written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, key: Key) -> Figures | None:
        """What was measured for ``key``; None where it was not, or where the file was damaged."""
        try:
            entry = json.loads(self._path(key).read_bytes())
        except (OSError, ValueError):
            return None
        figures: Figures | None = entry.get("figures") if entry.get("key") == dict(key) else None
        return figures

    def keep(self, key: Key, figures: Figures) -> None:
        """Writes what was measured for ``key``."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged_file(path.parent, path.name) as temporary:
            temporary.write_bytes(json.dumps({"key": dict(key), "figures": figures}, allow_nan=False).encode())

    def _path(self, key: Key) -> Path:
        digest = sha256(json.dumps(dict(key), sort_keys=True, allow_nan=False).encode()).hexdigest()
        return self.folder / f"{key['experiment']}-{digest[:24]}.json"
