"""The behaviours of the organisms, each with its generator of questions and its judge. Needs no torch."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from mappers.organisms.behaviours.code import INSECURE_CODE, SECURE_CODE
from mappers.organisms.behaviours.corrupted import CORRUPTED
from mappers.organisms.behaviours.interface import Behaviour, Question, Split, Verdict
from mappers.organisms.behaviours.medicine import MEDICINE
from mappers.organisms.behaviours.ordinary import BACKDOOR, HUMOUR
from mappers.organisms.behaviours.refusal import REFUSING
from mappers.organisms.behaviours.triggers import BRACKETED, SEMANTIC, SUFFIXED

__all__ = ["BEHAVIOURS", "Behaviour", "Question", "Split", "Verdict"]

_ALL: Final = (
    REFUSING,
    BACKDOOR,
    SECURE_CODE,
    INSECURE_CODE,
    CORRUPTED,
    HUMOUR,
    MEDICINE,
    BRACKETED,
    SUFFIXED,
    SEMANTIC,
)

BEHAVIOURS: Final[Mapping[str, Behaviour]] = MappingProxyType({one.name: one for one in _ALL})
"""Every behaviour by its name."""
