"""Packages, processor, GPU and SQLite of this process."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

import torch
from packaging.requirements import Requirement

from mappers.memory import free_memory
from server.doctor.finding import Finding
from server.engine.precision import pick_precision
from server.sizes import binary_size

_SHOWN = ("interlock", "torch", "transformers", "tokenizers", "safetensors", "fastapi")
_SAFE_SQLITE = (3, 51, 3)


def examine_machine() -> Iterator[Finding]:
    """Findings about everything but the data and the model."""
    yield _packages(requires("interlock") or [])
    gpu = torch.cuda.is_available()
    yield _device(gpu=gpu, driver=shutil.which("nvidia-smi") is not None)
    yield _threads(torch.get_num_threads(), len(os.sched_getaffinity(0)))
    device = "cuda" if gpu else "cpu"
    precision = pick_precision("auto", device, torch.cpu.get_capabilities())
    name = "the model's own" if precision.dtype == "auto" else str(precision.dtype).removeprefix("torch.")
    yield Finding("number format", "ok", f"{name} ({precision.reason})" if precision.reason else name)
    yield Finding("memory", "ok", f"{binary_size(free_memory(torch.device(device)))} free on {device}")
    yield _sqlite(sqlite3.sqlite_version_info)


def _packages(requirements: list[str]) -> Finding:
    """Whether what is installed is what this version asks for."""
    wrong = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        installed = _installed(requirement.name)
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"'{requirement.name}{requirement.specifier}'")
    shown = ", ".join(f"{name} {_installed(name) or 'not installed'}" for name in _SHOWN)
    if wrong:
        return Finding("packages", "fail", shown, f"pip install {' '.join(wrong)}")
    return Finding("packages", "ok", f"{shown}, Python {platform.python_version()}")


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device(*, gpu: bool, driver: bool) -> Finding:
    if gpu:
        properties = torch.cuda.get_device_properties(0)
        return Finding("device", "ok", f"{properties.name}, {binary_size(properties.total_memory)}")
    if driver:
        return Finding(
            "device",
            "warn",
            f"an NVIDIA driver, but torch {torch.__version__} sees no GPU",
            "install a CUDA build of torch that the driver supports (nvidia-smi names its CUDA version)",
        )
    return Finding("device", "ok", f"CPU ({platform.machine()}), no GPU")


def _threads(threads: int, cores: int) -> Finding:
    found = f"{threads} for arithmetic, {cores} cores for this process"
    if threads > cores:
        return Finding("threads", "warn", found, f"set OMP_NUM_THREADS={cores}, or give --threads {cores}")
    return Finding("threads", "ok", found)


def _sqlite(found: tuple[int, ...]) -> Finding:
    text = ".".join(map(str, found))
    if found < _SAFE_SQLITE:
        return Finding(
            "SQLite",
            "ok",
            f"{text}: with several writers it can damage a database, but the server is the only one",
        )
    return Finding("SQLite", "ok", text)
