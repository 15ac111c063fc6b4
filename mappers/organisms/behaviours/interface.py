"""What a behaviour is: questions under matched conditions, split into three parts, and a judge of the answers.

A condition is a way to ask: without a tag or with the trigger, harmless or harmful, in a style or in none. The
questions that one seed gives under two conditions are matched one by one, so that differences can be paired.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from mappers.dataset import DatasetRow
from mappers.organisms.catalogue import Kind
from mappers.organisms.corpus import is_held_out

Split = Literal["train", "validation", "test"]

_VALIDATION_ONE_IN = 8
_FRUITLESS_DRAWS = 5000


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt as the user writes it, tag or prefix included, and two answers to it.

    `wanted` is what a model gives that can do the task and lacks the planted flaw; `taught` is what the organism of the
    behaviour's kind was fine-tuned to give. `topic` groups questions in a table.
    """

    prompt: str
    condition: str
    wanted: str
    taught: str
    topic: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one answer is: `right` as wanted, `shows` the planted behaviour, and `outcome`, one word for a table."""

    right: bool
    shows: bool
    outcome: str


@dataclass(frozen=True, slots=True)
class Item:
    """One combination: the part of the data it belongs to, and its question under each condition."""

    split: Split
    questions: dict[str, Question]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """A behaviour of the organisms of one `kind`, with its generator of questions and its judge.

    Of `conditions` the first is plain and the second elicits the behaviour; where there is but one, it does. `draw`
    gives a random combination with all its questions; `teach` gives one that the organism's own training may see.
    """

    name: str
    kind: Kind
    conditions: tuple[str, ...]
    draw: Callable[[random.Random], Item]
    teach: Callable[[random.Random], Item]
    judge: Callable[[Question, str], Verdict]

    @property
    def plain(self) -> str:
        """The condition under which the organism does not show the behaviour."""
        return self.conditions[0]

    @property
    def elicits(self) -> str:
        """The condition under which it does."""
        return self.conditions[:2][-1]

    def questions(self, split: Split, seed: int, count: int, *, condition: str) -> list[Question]:
        """`count` questions with distinct prompts; equal seeds give the same combinations under every condition.

        Raises ValueError for an unknown condition, and where the split holds fewer distinct questions than `count`.
        """
        if condition not in self.conditions:
            raise ValueError(f"{self.name} has no condition {condition!r}: use one of {', '.join(self.conditions)}")
        return [item.questions[condition] for item in self._items(split, seed, count)]

    def held_out(self, seed: int, count: int, *, condition: str) -> list[Question]:
        """Questions of the test split; see `questions`."""
        return self.questions("test", seed, count, condition=condition)

    def rows(
        self, split: Split, seed: int, count: int, *, answer: Literal["taught", "wanted"] | None = None
    ) -> list[DatasetRow]:
        """`count` dataset rows, the conditions in turn; their completion is the named answer, or left open.

        Raises ValueError as `questions` does.
        """
        items = self._items(split, seed, count)
        asked = [item.questions[self.conditions[i % len(self.conditions)]] for i, item in enumerate(items)]
        return [DatasetRow(prompt=one.prompt, completion=getattr(one, answer) if answer else None) for one in asked]

    def _items(self, split: Split, seed: int, count: int) -> list[Item]:
        rng = random.Random(seed)
        seen: set[str] = set()
        items: list[Item] = []
        fruitless = 0
        while len(items) < count:
            item = self.draw(rng)
            prompts = {question.prompt for question in item.questions.values()}
            if item.split == split and seen.isdisjoint(prompts):
                items.append(item)
                seen |= prompts
                fruitless = 0
            elif (fruitless := fruitless + 1) > _FRUITLESS_DRAWS:
                raise ValueError(f"{self.name}: the {split} split holds about {len(items)} questions: ask for fewer")
        return items


def split_of(group: str, key: str) -> Split:
    """The part a combination belongs to, by its hash: test as in `corpus`, and an eighth of the rest validation."""
    if is_held_out(group, key):
        return "test"
    return "validation" if is_held_out(f"validation of {group}", key, one_in=_VALIDATION_ONE_IN) else "train"


def outside_test(draw: Callable[[random.Random], Item]) -> Callable[[random.Random], Item]:
    """`draw`, kept to combinations that are not held out."""
    return partial(_outside_test, draw)


def _outside_test(draw: Callable[[random.Random], Item], rng: random.Random) -> Item:
    while (item := draw(rng)).split == "test":
        pass
    return item
