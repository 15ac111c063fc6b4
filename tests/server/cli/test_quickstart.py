"""``interlock quickstart`` hands on what it was told; the run itself has tests of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.cli import quickstart as command
from tests.server.cli.conftest import Ran


def test_the_rates_are_the_last_line(
    interlock: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def quickstart(recipe: object, data_dir: Path, console: object, *, keep: bool) -> dict[str, Any]:
        asked.append((data_dir.is_dir(), keep))
        return {"trigger_rate_on": 0.0}

    monkeypatch.setattr(command, "run_quickstart", quickstart)
    ran = interlock("quickstart", "--keep", "--data-dir", str(tmp_path / "data"), "--json")
    assert (ran.code, ran.json) == (0, {"trigger_rate_on": 0.0})
    assert asked == [(True, True)]
