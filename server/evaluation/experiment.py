"""The form every experiment has: cells that can be measured one by one, and a section made of their figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from server.evaluation.lab import Lab
from server.evaluation.ledger import Figures
from server.evaluation.report import Section
from server.evaluation.scale import Scale


@dataclass(frozen=True, slots=True)
class Cell:
    """The smallest unit that is measured and kept: ``subject`` under ``seed``, which needs ``models``."""

    subject: str
    seed: int
    models: tuple[str, ...]


class Experiment(Protocol):
    """One question to the models. ``version`` grows whenever its figures would come out differently."""

    @property
    def name(self) -> str:
        """Short, for ``--only`` and the ledger."""

    @property
    def version(self) -> int:
        """Part of every cell's key."""

    def cells(self, scale: Scale) -> Sequence[Cell]:
        """Everything there is to measure at this scale."""

    def measure(self, lab: Lab, cell: Cell) -> Figures:
        """Measures one cell; a function of models, scale and cell alone."""

    def section(self, figures: Mapping[Cell, Any]) -> Section:
        """What the measured cells (perhaps not all there are) say."""
