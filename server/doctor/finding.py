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
