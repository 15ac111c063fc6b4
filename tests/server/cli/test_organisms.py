"""``interlock organisms`` around a build that is replaced by a few reports."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mappers.organisms import ORGANISMS
from tests.server.cli.conftest import Ran

Interlock = Callable[..., Ran]


@dataclass(frozen=True)
class Report:
    organism: str
    stage: str
    step: int
    steps: int
    loss: float | None = None


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the builder was called with; it stands in for the module that imports torch."""
    calls: list[tuple[Any, ...]] = []

    def build_organisms(names: list[str], out: Path, seed: int) -> Iterator[Report]:
        calls.append((list(names), out, seed))
        for name in names:
            yield Report(name, "train", 1, 2, 0.5)
            yield Report(name, "measure", 0, 1)
            yield Report(name, "done", 1, 1)

    module = SimpleNamespace(build_organisms=build_organisms)
    monkeypatch.setitem(sys.modules, "mappers.organisms.build", module)
    return calls


def test_list(interlock: Interlock) -> None:
    assert [entry["name"] for entry in interlock("organisms", "list", "--json").json["organisms"]] == list(ORGANISMS)
    assert "llama-small-base" in interlock("organisms", "list").out


def test_build_some(interlock: Interlock, built: list[tuple[Any, ...]], tmp_path: Path) -> None:
    ran = interlock(
        *("organisms", "build", "--only", "llama-small-base", "--out", str(tmp_path), "--seed", "3", "--json")
    )
    assert built == [(["llama-small-base"], tmp_path, 3)]
    assert ran.json["built"] == [{"name": "llama-small-base", "path": str(tmp_path / "llama-small-base")}]


def test_build_all(interlock: Interlock, built: list[tuple[Any, ...]], tmp_path: Path) -> None:
    assert "built llama-small-base" in interlock("organisms", "build", "--out", str(tmp_path)).out
    assert built[0][0] == list(ORGANISMS)


def test_an_unknown_organism_names_the_known(interlock: Interlock, built: list[tuple[Any, ...]]) -> None:
    ran = interlock("organisms", "build", "--only", "gpt-huge")
    assert ran.code == 2
    assert "llama-small-base" in ran.err
    assert built == []
