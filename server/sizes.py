"""Amounts of memory as operators read them."""

from __future__ import annotations


def binary_size(count: float) -> str:
    """Bytes in powers of 1024: ``1.5 GiB``, ``20 MiB``."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
