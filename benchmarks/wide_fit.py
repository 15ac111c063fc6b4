"""``python -m benchmarks.wide_fit KIND WIDTH THREADS``: one fit in closed form on random activations.

Prints JSON: ``growth_mib``, the peak of the resident set over what it was before, and ``seconds``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch

from mappers.pair_sums import PairSums

BATCHES, TOKENS = 4, 512

KINDS: dict[str, Callable[[PairSums], object]] = {
    "ridge": lambda sums: sums.ridge(ridge=1e-2),
    "procrustes": lambda sums: sums.procrustes(),
    "low_rank": lambda sums: sums.low_rank(rank=32, ridge=1e-2),
}


def main() -> None:
    """A small fit comes first, so that libraries are loaded before memory is counted."""
    kind, (width, threads) = sys.argv[1], map(int, sys.argv[2:])
    torch.set_num_threads(threads)
    fit(kind, 64)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_mib("VmRSS")
    began = perf_counter()
    fit(kind, width)
    print(json.dumps({"growth_mib": _status_mib("VmHWM") - before, "seconds": perf_counter() - began}))


def fit(kind: str, width: int) -> None:
    """Fewer tokens than dimensions: the memory is the same for any number, and the penalty makes the sums regular."""
    generator = torch.Generator().manual_seed(0)
    sums = PairSums(width, width)
    for _ in range(BATCHES):
        sums.add(*(torch.randn(TOKENS, width, generator=generator) for _ in range(2)))
    KINDS[kind](sums)


def _status_mib(field: str) -> float:
    """A size that Linux keeps about this process; the peak (VmHWM) counts from the last 5 written to clear_refs."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
