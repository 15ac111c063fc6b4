"""How large an evaluation is: seeds, prompts a cell, length of the fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes that every experiment takes its own from.

    ``held_out`` prompts make the rates of a cell; ``validation`` prompts (another split) pick sites, strengths and
    mappers; ``switch_prompts`` and ``texts`` are what switches and mappers are trained on. Quick runs leave out what
    ``thorough`` asks for: comparisons beyond the demands.
    """

    name: str
    seeds: tuple[int, ...]
    held_out: int
    validation: int
    switch_prompts: int
    texts: int
    thorough: bool


FULL: Final = Scale("full", (0, 1, 2), held_out=210, validation=84, switch_prompts=1200, texts=800, thorough=True)
QUICK: Final = Scale("quick", (0,), held_out=210, validation=56, switch_prompts=900, texts=400, thorough=False)
