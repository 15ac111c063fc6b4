"""What an examination says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was ``found`` of ``check``; anything but ``ok`` has a ``remedy``."""

    check: str
    status: Status
    found: str
    remedy: str = ""


def size(count: float) -> str:
    """Bytes in powers of 1024."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
