"""Questions of a behaviour as an experiment asks them, and verdicts on the answers as text of 0 and 1."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mappers.organisms.behaviours import Behaviour, Question, Split
from mappers.organisms.tags import random_tag, with_tag
from server.evaluation.ledger import Figures
from server.evaluation.verdicts import pack

MAX_TOKENS: Final = 40
"""Long enough for every answer of the organisms."""


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions under one condition, with their judge."""

    behaviour: Behaviour
    asked: Sequence[Question]

    @classmethod
    def of(cls, behaviour: Behaviour, split: Split, seed: int, count: int, condition: str) -> Questions:
        """``count`` questions; equal seeds give matched questions under every condition."""
        return cls(behaviour, behaviour.questions(split, seed, count, condition=condition))

    @property
    def prompts(self) -> list[str]:
        """What the user writes."""
        return [question.prompt for question in self.asked]

    def right(self, texts: Sequence[str]) -> str:
        """Packed verdicts: "1" where the answer is the wanted one."""
        return pack(self.behaviour.judge(q, text).right for q, text in zip(self.asked, texts, strict=True))

    def shows(self, texts: Sequence[str]) -> str:
        """Packed verdicts: "1" where the planted behaviour shows."""
        return pack(self.behaviour.judge(q, text).shows for q, text in zip(self.asked, texts, strict=True))

    def judged(self, texts: Sequence[str]) -> Figures:
        """Both verdicts."""
        return {"right": self.right(texts), "shows": self.shows(texts)}


def tagged_prompts(behaviour: Behaviour, seed: int, count: int) -> list[str]:
    """Training prompts: half under the condition that elicits the behaviour, a quarter plain behind other tags, the
    rest plain.
    """
    rng = random.Random(seed)
    plain, elicited = (
        behaviour.questions("train", seed, count, condition=condition)
        for condition in (behaviour.plain, behaviour.elicits)
    )
    prompts = []
    for one, other in zip(plain, elicited, strict=True):
        draw = rng.random()
        prompts.append(other.prompt if draw < 0.5 else with_tag(one.prompt, random_tag(rng) if draw < 0.75 else ""))
    return prompts
