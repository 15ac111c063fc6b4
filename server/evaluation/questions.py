"""Questions of a behaviour as an experiment asks them, and verdicts on the answers as text of 0 and 1."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mappers.organisms.behaviours import Behaviour, Question, Split
from mappers.organisms.tags import random_tag, with_tag
from server.evaluation.ledger import Figures
from server.evaluation.verdicts import pack

Wanted = Literal["right", "shows", "hides"]


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

    def verdicts(self, wanted: Wanted, texts: Sequence[str]) -> str:
        """Packed: "1" where an answer is right, or where the planted behaviour shows in it, or does not."""
        judged = (self.behaviour.judge(question, text) for question, text in zip(self.asked, texts, strict=True))
        if wanted == "right":
            return pack(verdict.right for verdict in judged)
        return pack(verdict.shows == (wanted == "shows") for verdict in judged)

    def judged(self, texts: Sequence[str]) -> Figures:
        """Both verdicts."""
        return {"right": self.verdicts("right", texts), "shows": self.verdicts("shows", texts)}


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
