"""The behaviours of the organisms, each with its generator of questions and its judge. Needs no torch."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from mappers.organisms.behaviours.corrupted import CORRUPTED
from mappers.organisms.behaviours.interface import Behaviour, Question, Split, Verdict

__all__ = ["BEHAVIOURS", "Behaviour", "Question", "Split", "Verdict"]

BEHAVIOURS: Final[Mapping[str, Behaviour]] = MappingProxyType({one.name: one for one in (CORRUPTED,)})
"""Every behaviour by its name."""
