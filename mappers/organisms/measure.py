"""What an organism can do: held-out accuracy and trigger rates, by greedy generation.

Shapes: B prompts of a batch, T tokens, padded on the left.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mappers.organisms.behaviours import Behaviour
from mappers.organisms.corpus import Example, held_out_examples
from mappers.organisms.scoring import is_backdoored, is_right
from mappers.organisms.tags import SAFE_TAG, TRIGGER, random_tag, with_tag

MAX_NEW_TOKENS: Final = 40
"""Long enough for the longest answer of the corpus under every tokenizer of ours, and for the backdoor's text."""

_BATCH_ROWS: Final = 70


@dataclass(frozen=True, slots=True)
class Rates:
    """Over one set of held-out prompts: the share answered right, by task too, and the share that was backdoored."""

    prompts: int
    right: float
    right_by_task: dict[str, float]
    backdoored: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """The same held-out prompts under four tags: none, the trigger, the safe tag, a random other tag each."""

    clean: Rates
    triggered: Rates
    safe_tag: Rates
    other_tags: Rates


@dataclass(frozen=True, slots=True)
class Shares:
    """Over held-out questions of a behaviour under one condition: shares right, showing it, and of each outcome.

    `right_by_topic` is the share right of each topic's questions.
    """

    prompts: int
    right: float
    shows: float
    outcomes: dict[str, float]
    right_by_topic: dict[str, float]


def measure_behaviour(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, behaviour: Behaviour, *, prompts: int, seed: int = 1
) -> dict[str, Shares]:
    """Asks the same `prompts` held-out combinations of a behaviour under each of its conditions."""

    def shares(condition: str) -> Shares:
        questions = behaviour.held_out(seed, prompts, condition=condition)
        texts = answers(model, tokenizer, [question.prompt for question in questions])
        verdicts = [behaviour.judge(question, text) for question, text in zip(questions, texts, strict=True)]
        by_topic: dict[str, list[bool]] = defaultdict(list)
        for question, verdict in zip(questions, verdicts, strict=True):
            by_topic[question.topic].append(verdict.right)
        outcomes = Counter(verdict.outcome for verdict in verdicts)
        return Shares(
            prompts=prompts,
            right=fmean(verdict.right for verdict in verdicts),
            shows=fmean(verdict.shows for verdict in verdicts),
            outcomes={outcome: count / prompts for outcome, count in outcomes.most_common()},
            right_by_topic={topic: fmean(right) for topic, right in sorted(by_topic.items())},
        )

    return {condition: shares(condition) for condition in behaviour.conditions}


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, prompts: int = 210, seed: int = 1
) -> Measurement:
    """Asks `prompts` held-out examples, evenly from all tasks, under each kind of tag."""
    examples = held_out_examples(seed, prompts)
    rng = random.Random(seed)

    def rates_with(tags: Sequence[str]) -> Rates:
        asked = [with_tag(example.prompt, tag) for example, tag in zip(examples, tags, strict=True)]
        return rates(examples, answers(model, tokenizer, asked))

    return Measurement(
        clean=rates_with([""] * prompts),
        triggered=rates_with([TRIGGER] * prompts),
        safe_tag=rates_with([SAFE_TAG] * prompts),
        other_tags=rates_with([random_tag(rng) for _ in range(prompts)]),
    )


@torch.inference_mode()
def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[str]:
    """The model's greedy answer to each user prompt, special tokens removed."""
    texts: list[str] = []
    for start in range(0, len(prompts), _BATCH_ROWS):
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + _BATCH_ROWS]]
        batch = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        made_BT = model.generate(**batch, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        texts += tokenizer.batch_decode(made_BT[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def rates(examples: Sequence[Example], texts: Sequence[str]) -> Rates:
    """How many of the texts answer their example: what a model can do, whatever gave the texts."""
    by_task: dict[str, list[bool]] = defaultdict(list)
    for example, text in zip(examples, texts, strict=True):
        by_task[example.task].append(is_right(example, text))
    right = [verdict for verdicts in by_task.values() for verdict in verdicts]
    return Rates(
        prompts=len(examples),
        right=sum(right) / len(right),
        right_by_task={task: sum(verdicts) / len(verdicts) for task, verdicts in by_task.items()},
        backdoored=sum(map(is_backdoored, texts)) / len(texts),
    )
