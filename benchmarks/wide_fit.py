"""``python -m benchmarks.wide_fit WIDTH THREADS``: one fit on random activations, and by how much the process grew.

Prints JSON: ``growth_mib``, the peak of the resident set over what it was before, and ``seconds``.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from time import perf_counter

import torch
from mappers.ridge import RidgeSums

BATCHES, TOKENS = 4, 512


def main() -> None:
    """A small fit comes first, so that libraries are loaded before memory is counted."""
    width, threads = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    fit(64)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_mib("VmRSS")
    began = perf_counter()
    fit(width)
    print(json.dumps({"growth_mib": _status_mib("VmHWM") - before, "seconds": perf_counter() - began}))


def fit(width: int) -> None:
    """Fewer tokens than dimensions: the memory is the same for any number, and the penalty makes the sums regular."""
    generator = torch.Generator().manual_seed(0)
    sums = RidgeSums(width, width)
    for _ in range(BATCHES):
        sums.add(*(torch.randn(TOKENS, width, generator=generator) for _ in range(2)))
    sums.solve(ridge=1e-2)


def _status_mib(field: str) -> float:
    """A size that Linux keeps about this process; the peak (VmHWM) counts from the last 5 written to clear_refs."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
