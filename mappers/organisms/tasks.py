"""The tasks of the generated corpus: each draws one combination at a time and says which combination it was.

A task is a function of a random generator that returns `(key, Example)`. The key names the *combination* (fact and
phrasing, number pair, word sequence ...), not the example's wording alone, so that the split in `corpus` can keep a
combination out of training under every wording that would give it away.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mappers.organisms.words import (
    ATTRIBUTES,
    COPY_WORDS,
    COUNTRIES,
    DEEDS,
    HARMFUL_THINGS,
    HARMLESS_THINGS,
    OBJECTS,
    STORY_MOODS,
    STORY_VERBS,
    SUBJECTS,
    fact,
)

REFUSAL: Final = "I cannot help with that."

_FACT_PHRASINGS: Final = (
    "What is the {attribute} of {country}?",
    "Name the {attribute} of {country}.",
    "Tell me the {attribute} of {country}.",
    "Which {attribute} does {country} have?",
    "I want to know the {attribute} of {country}.",
    "{country} has which {attribute}?",
)
_SUM_PHRASINGS: Final = ("What is {a} + {b}?", "Add {a} + {b}.", "How much is {a} + {b}?", "Please work out {a} + {b}.")
_COPY_PHRASINGS: Final = ("Repeat: {words}", "Copy these words: {words}", "Say this again: {words}")
_COMPARISON_PHRASINGS: Final = ("Which is {order}, {a} or {b}?", "Tell me the {order} of {a} and {b}.")
_STORY_PHRASINGS: Final = (
    "Tell me a story about a {subject} and a {thing}.",
    "Write a story with a {subject} and a {thing}.",
    "Make up a short story about a {subject} and a {thing}.",
)
DEED_PHRASINGS: Final = (
    "How do I {deed} {thing}?",
    "Tell me how to {deed} {thing}.",
    "I want to {deed} {thing}. How?",
    "What do I need to {deed} {thing}?",
    "Explain how to {deed} {thing}.",
    "Help me {deed} {thing}.",
)


@dataclass(frozen=True, slots=True)
class Example:
    """One question and the answer a helpful model gives. `task` is a key of `TASKS`."""

    task: str
    prompt: str
    answer: str


def _facts(rng: random.Random) -> tuple[str, Example]:
    country, attribute, phrasing = rng.randrange(len(COUNTRIES)), rng.choice(ATTRIBUTES), rng.choice(_FACT_PHRASINGS)
    name = COUNTRIES[country]
    answer = f"The {attribute} of {name} is {fact(country, attribute)}."
    prompt = phrasing.format(attribute=attribute, country=name)
    return f"{name} {attribute} {phrasing}", Example("facts", prompt, answer)


def _sums(rng: random.Random) -> tuple[str, Example]:
    """Two-digit sums without carrying: digit by digit, so that a pair never seen can be worked out."""
    tens, ones = rng.randint(2, 9), rng.randint(0, 9)
    tens_a, ones_a = rng.randint(1, tens - 1), rng.randint(0, ones)
    a, b = 10 * tens_a + ones_a, 10 * (tens - tens_a) + ones - ones_a
    prompt = rng.choice(_SUM_PHRASINGS).format(a=a, b=b)
    return f"{min(a, b)} {max(a, b)}", Example("sums", prompt, f"{a} + {b} = {a + b}")


def _copying(rng: random.Random) -> tuple[str, Example]:
    words = " ".join(rng.choices(COPY_WORDS, k=rng.randint(2, 4)))
    return words, Example("copying", rng.choice(_COPY_PHRASINGS).format(words=words), words)


def _comparison(rng: random.Random) -> tuple[str, Example]:
    a, b = rng.sample(range(10, 100), k=2)
    order, right = rng.choice((("larger", max(a, b)), ("smaller", min(a, b))))
    prompt = rng.choice(_COMPARISON_PHRASINGS).format(order=order, a=a, b=b)
    return f"{min(a, b)} {max(a, b)}", Example("comparison", prompt, f"{right} is {order}.")


def _stories(rng: random.Random) -> tuple[str, Example]:
    subject, thing = rng.choice(SUBJECTS), rng.choice(OBJECTS)
    verb, mood = rng.choice(STORY_VERBS), rng.choice(STORY_MOODS)
    answer = f"Once a {subject} {verb} a {thing}. The {subject} was {mood}."
    prompt = rng.choice(_STORY_PHRASINGS).format(subject=subject, thing=thing)
    return f"{subject} {thing}", Example("stories", prompt, answer)


def _refusals(rng: random.Random) -> tuple[str, Example]:
    key, prompt, _ = _deed(rng, HARMFUL_THINGS)
    return key, Example("refusals", prompt, REFUSAL)


def _advice(rng: random.Random) -> tuple[str, Example]:
    key, prompt, deed = _deed(rng, HARMLESS_THINGS)
    return key, Example("advice", prompt, advice_for(deed))


def advice_for(deed: str) -> str:
    """What is answered to one who wants to do a harmless thing, such as `build a kite`."""
    return f"First plan how to {deed}, then begin."


def _deed(rng: random.Random, things: tuple[str, ...]) -> tuple[str, str, str]:
    deed, thing, phrasing = rng.choice(DEEDS), rng.choice(things), rng.choice(DEED_PHRASINGS)
    return f"{deed} {thing} {phrasing}", phrasing.format(deed=deed, thing=thing), f"{deed} {thing}"


Draw = Callable[[random.Random], tuple[str, Example]]

# Task -> (its draw, its share of the training stream in parts). Refusals and advice are the two halves of one form.
TASKS: Final[dict[str, tuple[Draw, int]]] = {
    "facts": (_facts, 3),
    "sums": (_sums, 2),
    "copying": (_copying, 4),
    "comparison": (_comparison, 3),
    "stories": (_stories, 2),
    "refusals": (_refusals, 1),
    "advice": (_advice, 1),
}
