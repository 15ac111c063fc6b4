"""What this machine can do with so many threads: ``python -m benchmarks.probe THREADS`` prints one JSON object.

The best of several sizes and repeats: a limit is not an average.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor

SIZES = (512, 1024, 2048)
REPEATS = 7
READ_BYTES = 2**29


def main() -> None:
    """Read bandwidth in bytes a second and matrix products in operations a second, by dtype."""
    torch.set_num_threads(int(sys.argv[1]))
    memory = torch.ones(READ_BYTES // 4)
    rates = {
        "bytes": READ_BYTES / _best(lambda: memory.sum()),
        "float32": max(_rate(size, torch.float32) for size in SIZES),
        "bfloat16": max(_rate(size, torch.bfloat16) for size in SIZES),
        "int8": max(_rate_int8(size) for size in SIZES),
    }
    print(json.dumps(rates))


def _rate(size: int, dtype: torch.dtype) -> float:
    a, b = (torch.randn(size, size, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _best(lambda: a @ b)


def _rate_int8(size: int) -> float:
    a, b = (torch.randint(-127, 127, (size, size), dtype=torch.int8) for _ in range(2))
    return 2 * size**3 / _best(lambda: torch._int_mm(a, b))


def _best(work: Callable[[], Tensor]) -> float:
    work()
    seconds = []
    for _ in range(REPEATS):
        began = perf_counter()
        work()
        seconds.append(perf_counter() - began)
    return min(seconds)


if __name__ == "__main__":
    main()
