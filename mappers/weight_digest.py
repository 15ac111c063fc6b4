"""Tells models of one configuration apart: a digest of the weights as the checkpoint holds them. No torch."""

from __future__ import annotations

import json
import mmap
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

_WHOLE = "model.safetensors"
_INDEX = f"{_WHOLE}.index.json"
_THREADS = 8


def weight_digest(folder: Path) -> str | None:
    """sha256 (hex) over name, dtype, shape and bytes of every tensor of the checkpoint in ``folder``.

    The same for one checkpoint however it is cut into files and whatever it is loaded as. None where there are no
    safetensors files of the usual names. Raises OSError or ValueError where they cannot be read.
    """
    if (folder / _INDEX).is_file():
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
    elif (folder / _WHOLE).is_file():
        names = [_WHOLE]
    else:
        return None
    # hashlib lets other threads run while it digests, so that reading a large model is bound by memory, not by a core
    with ThreadPoolExecutor(_THREADS) as pool:
        tensors = [tensor for name in names for tensor in _tensors(folder / name, pool)]
    return sha256(json.dumps(sorted(tensors), separators=(",", ":")).encode()).hexdigest()


def _tensors(path: Path, pool: ThreadPoolExecutor) -> list[tuple[str, str, list[int], str]]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = 8 + int.from_bytes(content[:8], "little")
        header: dict[str, Any] = json.loads(content[8:start])
        header.pop("__metadata__", None)

        def digest(entry: dict[str, Any]) -> str:
            begin, end = entry["data_offsets"]
            with memoryview(content)[start + begin : start + end] as part:
                return sha256(part).hexdigest()

        digests = pool.map(digest, header.values())
        return [
            (name, entry["dtype"], entry["shape"], found)
            for (name, entry), found in zip(header.items(), digests, strict=True)
        ]
