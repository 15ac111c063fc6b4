"""What figures depend on besides the code: the machine, and the versions."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.pool import CHECKOUT
from benchmarks.report import Machine

_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "i8mm",
    "bf16",
)


def machine(threads: int) -> Machine:
    """This machine now; the load average says whether others worked on it."""
    details = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"model name\s*: (.+)", details)
    flags = set(re.findall(r"\w+", (re.search(r"(?:flags|Features)\s*: (.+)", details) or [""])[0]))
    return Machine(
        processor=name[1] if name else platform.processor() or platform.machine(),
        features=[feature for feature in _FEATURES if feature in flags],
        cores=os.cpu_count() or 1,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        threads=threads,
        load_before=round(os.getloadavg()[0], 2),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        torch=version("torch"),
        transformers=version("transformers"),
        commit=_commit(),
        date=time.strftime("%Y-%m-%d"),
    )


def write_cells(name: str, cells: list[dict[str, Any]], threads: int) -> Path:
    """Writes ``results/<name>.json`` with what its figures depend on, and returns where that is."""
    file = CHECKOUT / "benchmarks" / "results" / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    found = {"benchmark": name, "machine": machine(threads).model_dump(), "cells": cells}
    file.write_text(json.dumps(found, indent=1) + "\n")
    return file


def _commit() -> str:
    """The commit, with a plus where code differs from it (results do not count); empty outside a checkout."""
    return _git("rev-parse", "--short", "HEAD") + (
        "+" if _git("status", "--short", ".", ":!benchmarks/results") else ""
    )


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    return run.stdout.strip()
