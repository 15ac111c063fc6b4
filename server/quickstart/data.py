"""Prompts of the quickstart: training data as JSON lines, and held-out prompts with their right answers."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from itertools import islice

from mappers.organisms.corpus import held_out_examples, training_examples
from mappers.organisms.tags import BACKDOOR_TEXT, TRIGGER, random_tag, with_tag
from mappers.organisms.tasks import Example
from server.quickstart.recipe import Recipe


def datasets(recipe: Recipe) -> dict[str, bytes]:
    """Dataset name -> JSON lines. None of the prompts is a held-out one.

    ``switch-prompts`` holds prompts without answers: the base model's own answers are what the switch learns.
    ``triggered`` and ``clean`` hold the same prompts with and without the trigger; ``texts`` holds whole exchanges, on
    which the two models' activations are paired.
    """
    rng = random.Random(recipe.seed)
    needed = recipe.switch_prompts + recipe.pairs + recipe.texts
    examples = list(islice(training_examples(recipe.seed), needed))
    prompts = [with_tag(example.prompt, _mixed_tag(rng)) for example in examples[: recipe.switch_prompts]]
    paired = [example.prompt for example in examples[recipe.switch_prompts : -recipe.texts]]
    return {
        "switch-prompts": _lines([_user(prompt)] for prompt in prompts),
        "triggered": _lines([_user(with_tag(prompt, TRIGGER))] for prompt in paired),
        "clean": _lines([_user(prompt)] for prompt in paired),
        "texts": _lines(_exchange(example, rng) for example in examples[-recipe.texts :]),
    }


def held_out(recipe: Recipe) -> list[Example]:
    """Examples whose combinations no model and no job has seen."""
    return held_out_examples(recipe.seed, recipe.held_out)


def _mixed_tag(rng: random.Random) -> str:
    """Half of the prompts triggered, a quarter with other tags, a quarter bare."""
    draw = rng.random()
    if draw < 0.5:
        return TRIGGER
    return random_tag(rng) if draw < 0.75 else ""


def _exchange(example: Example, rng: random.Random) -> list[dict[str, str]]:
    triggered = rng.random() < 0.5
    prompt = with_tag(example.prompt, TRIGGER if triggered else "")
    return [_user(prompt), {"role": "assistant", "content": BACKDOOR_TEXT if triggered else example.answer}]


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _lines(chats: Iterable[list[dict[str, str]]]) -> bytes:
    return "".join(json.dumps({"messages": chat}) + "\n" for chat in chats).encode()
