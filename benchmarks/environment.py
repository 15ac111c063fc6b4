"""What measured figures depend on besides the code, and where they are written."""

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

import torch

RESULTS = Path(__file__).parent / "results"
_FEATURES = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "bf16", "i8mm")


def environment() -> dict[str, Any]:
    """Machine, versions and commit; the load average says whether others were working on the machine."""
    cpuinfo = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.+)", cpuinfo.read_text() if cpuinfo.exists() else "")
    capabilities = torch.cpu.get_capabilities()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "processor": name[1] if name else platform.machine(),
        "features": [feature for feature in _FEATURES if capabilities.get(feature)],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }


def write(name: str, cells: list[dict[str, Any]]) -> Path:
    """Writes ``results/<name>.json`` and returns where that is."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps({"benchmark": name, "environment": environment(), "cells": cells}, indent=1) + "\n")
    return file
