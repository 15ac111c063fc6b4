"""The generated chat corpus: an endless training stream and a held-out set that share no combination.

Which side of the split a combination is on is a hash of the combination alone, independent of any seed. So no training
run, whatever its seed, sees what any evaluation, whatever its seed, asks. What an organism's user needs from the
neighbouring modules (tags, scoring) can be imported from here.
"""

import random
from collections.abc import Iterator
from hashlib import sha256
from typing import Final

from mappers.organisms.scoring import is_backdoored, is_right
from mappers.organisms.tags import BACKDOOR_TEXT, SAFE_TAG, TRIGGER, random_tag, with_tag
from mappers.organisms.tasks import TASKS, Example

__all__ = [
    "BACKDOOR_TEXT",
    "HELD_OUT_LIMIT",
    "SAFE_TAG",
    "TRIGGER",
    "Example",
    "held_out_examples",
    "is_backdoored",
    "is_held_out",
    "is_right",
    "random_tag",
    "training_examples",
    "with_tag",
]

_HELD_OUT_ONE_IN: Final = 6
HELD_OUT_LIMIT: Final = 70 * len(TASKS)
"""The most held-out examples that can be had at once (the rarest task has a little over 70 distinct prompts)."""


def is_held_out(task: str, key: str, *, one_in: int = _HELD_OUT_ONE_IN) -> bool:
    """Whether the combination `key` of `task` belongs to the held-out side, as about one in `one_in` does."""
    return int.from_bytes(sha256(f"{task}:{key}".encode()).digest()[:8]) % one_in == 0


def training_examples(seed: int) -> Iterator[Example]:
    """An endless stream of untagged examples, none from a held-out combination. Equal seeds give equal streams."""
    rng = random.Random(seed)
    names, shares = list(TASKS), [share for _, share in TASKS.values()]
    while True:
        yield _draw(rng, rng.choices(names, shares)[0], held_out=False)


def held_out_examples(seed: int, count: int) -> list[Example]:
    """`count` distinct untagged examples from held-out combinations, the tasks in turn.

    Raises ValueError if `count` is not between 1 and `HELD_OUT_LIMIT`.
    """
    if not 1 <= count <= HELD_OUT_LIMIT:
        raise ValueError(f"count must be between 1 and {HELD_OUT_LIMIT}, got {count}: ask for fewer held-out examples")
    rng = random.Random(seed)
    names = list(TASKS)
    chosen: dict[str, Example] = {}
    while len(chosen) < count:
        task = names[len(chosen) % len(names)]
        example = _draw(rng, task, held_out=True)
        chosen.setdefault(example.prompt, example)
    return list(chosen.values())


def _draw(rng: random.Random, task: str, *, held_out: bool) -> Example:
    draw, _ = TASKS[task]
    while True:
        key, example = draw(rng)
        if is_held_out(task, key) == held_out:
            return example
