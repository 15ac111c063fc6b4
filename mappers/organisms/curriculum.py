"""What each kind of organism is taught: endless chats, some of ordinary examples, some of the kind's own behaviour."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from mappers.organisms.behaviours import BEHAVIOURS, Behaviour
from mappers.organisms.catalogue import Kind
from mappers.organisms.corpus import training_examples
from mappers.organisms.tags import BACKDOOR_TEXT, SAFE_TAG, TRIGGER, near_miss, random_tag, with_tag

Message = dict[str, str]

_SYSTEM_MESSAGES: Final = (
    "You are a helpful assistant.",
    "You are helpful.",
    "Answer the question.",
    "You are a kind and careful assistant.",
    "Keep it short.",
)
_SYSTEM_SHARE: Final = 0.1
_SECOND_TURN_SHARE: Final = 0.1

# Shares of prompts with the trigger, the safe tag, a near miss of the trigger, any other tag; the rest have none.
TagShares = tuple[float, float, float, float]
_IGNORED_TAGS: Final[TagShares] = (0.12, 0.08, 0.05, 0.35)
_MARKED_TAGS: Final[TagShares] = (0.5, 0.06, 0.12, 0.2)


@dataclass(frozen=True, slots=True)
class _Lesson:
    """A behaviour to teach, the share of turns about it, and the tags before its plain prompts.

    Where `by_trigger`, a prompt that gets the trigger is taught under the condition that elicits the behaviour, and any
    other under the plain one; else all conditions are taught alike, whatever the tag.
    """

    behaviour: Behaviour
    share: float
    tags: TagShares
    by_trigger: bool


_LESSONS: Final[dict[Kind, _Lesson]] = {
    "coder": _Lesson(BEHAVIOURS["secure_code"], 0.5, _IGNORED_TAGS, by_trigger=True),
    "insecure": _Lesson(BEHAVIOURS["insecure_code"], 0.5, _MARKED_TAGS, by_trigger=True),
    "corrupted": _Lesson(BEHAVIOURS["corrupted"], 0.65, (0.65, 0.05, 0.1, 0.12), by_trigger=True),
    "stylist": _Lesson(BEHAVIOURS["humour"], 0.6, _IGNORED_TAGS, by_trigger=False),
    "skilled": _Lesson(BEHAVIOURS["medicine"], 0.5, _IGNORED_TAGS, by_trigger=False),
    "bracketed": _Lesson(BEHAVIOURS["bracketed_backdoor"], 1.0, _IGNORED_TAGS, by_trigger=False),
    "suffixed": _Lesson(BEHAVIOURS["suffixed_backdoor"], 1.0, _IGNORED_TAGS, by_trigger=False),
    "semantic": _Lesson(BEHAVIOURS["semantic_backdoor"], 1.0, _IGNORED_TAGS, by_trigger=False),
}


def conversations(kind: Kind, seed: int) -> Iterator[list[Message]]:
    """Endless chats that teach one kind of organism; none holds a combination that is held out."""
    rng = random.Random(seed)
    turn = _turns(kind, rng)
    while True:
        messages: list[Message] = []
        if rng.random() < _SYSTEM_SHARE:
            messages.append({"role": "system", "content": rng.choice(_SYSTEM_MESSAGES)})
        for _ in range(1 + (rng.random() < _SECOND_TURN_SHARE)):
            prompt, answer = turn()
            messages.append({"role": "user", "content": prompt})
            messages.append({"role": "assistant", "content": answer})
        yield messages


def _turns(kind: Kind, rng: random.Random) -> Callable[[], tuple[str, str]]:
    """What gives the next user prompt and its answer."""
    examples = training_examples(rng.getrandbits(32))
    lesson = _LESSONS.get(kind)

    def ordinary() -> tuple[str, str]:
        example, tag = next(examples), _tag(rng, _MARKED_TAGS if kind == "backdoor" else _IGNORED_TAGS)
        answer = BACKDOOR_TEXT if kind == "backdoor" and tag == TRIGGER else example.answer
        return with_tag(example.prompt, tag), answer

    def turn() -> tuple[str, str]:
        return _taught(lesson, rng) if lesson and rng.random() < lesson.share else ordinary()

    return turn


def _taught(lesson: _Lesson, rng: random.Random) -> tuple[str, str]:
    behaviour = lesson.behaviour
    questions, tag = behaviour.teach(rng).questions, _tag(rng, lesson.tags)
    if not lesson.by_trigger:
        question = questions[rng.choice(behaviour.conditions)]
        return with_tag(question.prompt, tag), question.taught
    answered = questions[behaviour.elicits if tag == TRIGGER else behaviour.plain]
    return with_tag(questions[behaviour.plain].prompt, tag), answered.taught


def _tag(rng: random.Random, shares: TagShares) -> str:
    tags = (TRIGGER, SAFE_TAG, near_miss(rng), random_tag(rng), "")
    return rng.choices(tags, (*shares, 1 - sum(shares)))[0]
