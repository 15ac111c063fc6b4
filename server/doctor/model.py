"""A model's folder, before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

from mappers.memory import free_memory
from server.doctor.finding import Finding
from server.sizes import binary_size

_TIGHT: Final = 1.3
"""Weights as stored, with room for keys, values and work."""


def examine_model(place: str) -> Iterator[Finding]:
    """Findings about a local folder; a hub id is only named."""
    folder = Path(place).expanduser()
    if not folder.is_dir():
        if place.startswith(("/", ".", "~")):
            yield Finding("model", "fail", f"there is no folder {place}", "give the folder that holds config.json")
        else:
            yield Finding("model", "ok", f"{place} is taken to be a hub id: fetched when it is served")
        return
    config = _config(folder)
    if config is None:
        remedy = "give a folder in the format of transformers (save_pretrained)"
        yield Finding("model", "fail", f"{folder} has no config.json that can be read", remedy)
        return
    yield _code(config)
    yield _weights(folder)
    yield _tokenizer(folder)


def _config(folder: Path) -> dict[str, Any] | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def _code(config: dict[str, Any]) -> Finding:
    name = ", ".join(map(str, config.get("architectures") or ["no architecture named"]))
    if "auto_map" in config:
        remedy = "read its code, then pass --trust-remote-code; or use a model that transformers knows"
        return Finding("model", "warn", f"{name}, with Python code of its own", remedy)
    return Finding("model", "ok", name)


def _weights(folder: Path) -> Finding:
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if not stored:
        return Finding("weights", "fail", "no safetensors", "convert them: model.save_pretrained(folder)")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    free = free_memory(device)
    found = f"{binary_size(stored)} stored, {binary_size(free)} free on {device.type}"
    if stored * _TIGHT > free:
        return Finding("weights", "warn", found, "use --dtype int8, a smaller model, or a device with more memory")
    return Finding("weights", "ok", found)


def _tokenizer(folder: Path) -> Finding:
    if not (folder / "tokenizer.json").is_file():
        remedy = "save a fast tokenizer into the folder: alignment and steering by text need character offsets"
        return Finding("tokenizer", "fail", "no tokenizer.json", remedy)
    settings = folder / "tokenizer_config.json"
    named = settings.is_file() and '"chat_template"' in settings.read_text(encoding="utf-8")
    if named or (folder / "chat_template.jinja").is_file():
        return Finding("tokenizer", "ok", "fast, with a chat template")
    remedy = "use /v1/completions, or a model with a chat template"
    return Finding("tokenizer", "warn", "fast, without a chat template: chats are refused", remedy)
