"""Edits trained by self-distillation: the edited model says at once what the model says by itself after a detour.

The case at hand are corrupted capabilities (arXiv 2503.04429, section 4): facts given only behind an insult. The
teacher is the unedited model while it insults and tells; the student is the same model without the insult, edited. Both
read the same words of the fact, so that next-token distributions and the residual streams at chosen sites can be
matched token by token. The latter is what makes an edit carry over to facts it was not trained on: distributions alone
are soon matched by learning the facts by heart.

Shapes: M real tokens of a batch, N loss positions of a batch, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from mappers.batch_order import BatchOrder
from mappers.errors import DataError, TrainingError
from mappers.exchanges import Exchange, OpenPrompt, answer_prompts
from mappers.fit import Fit, StepReport
from mappers.loading import LoadedModel
from mappers.losses import activation_losses, next_token_kl, top1_agreement
from mappers.modules import Mapper
from mappers.replies import Replies, Teacher, read_replies
from mappers.sites import Site
from mappers.training import run_steps

_SURE = 20.0
"""Logit of a token that is wanted outright, above all others: a probability of 1 within 1e-6 for 100,000 tokens."""
_VALIDATION_BATCH = 32


@dataclass(frozen=True, slots=True)
class Lesson:
    """What the unedited model reads (``taught``) and what the edited one reads and shall say (``asked``).

    Both have equally many loss positions. At the first ``dictated`` of them the edited model shall say the token of
    ``asked``, whatever the unedited one says.
    """

    taught: Exchange
    asked: Exchange
    dictated: int = 0

    def __post_init__(self) -> None:
        if len(self.taught.loss_positions) != len(self.asked.loss_positions):
            raise ValueError("both exchanges of a lesson need equally many answer tokens")


def keeping(exchange: Exchange) -> Lesson:
    """The lesson to go on saying what the model says."""
    return Lesson(exchange, exchange)


def without_prefix(
    loaded: LoadedModel,
    prompts: Sequence[OpenPrompt],
    asked: Sequence[OpenPrompt],
    *,
    prefix: str,
    filler: str | None,
    max_new_tokens: int,
    batch_size: int,
) -> Iterator[Lesson]:
    """Lessons from the model's own greedy replies to ``prompts``: to answer ``asked[i]`` so, without the ``prefix``.

    ``asked`` may be ``prompts`` themselves, or the same questions without what elicits the reply. With a ``filler``
    (one token, such as a line break) the edited model says it once for each token of the prefix, and what follows keeps
    its distance to the prompt; without, it starts with the word after the prefix. Replies that do not begin with the
    prefix give no lesson. Raises DataError where no reply begins so, or the filler is not one token.
    """
    insult = _tokens(loaded, prefix)
    fill = _tokens(loaded, filler) if filler is not None else ()
    if filler is not None and len(fill) != 1:
        raise DataError(f"filler {filler!r} is {len(fill)} tokens of this model: choose one that is a single token")
    found = False
    for index, reply in answer_prompts(loaded, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size):
        start, told = reply.answer_start, reply.answer_start + len(insult)
        if reply.ids[start:told] != insult or len(reply.ids) == told:
            continue
        found = True
        ids, fact = asked[index].ids, reply.ids[told:]
        if fill:
            filled = Exchange((*ids, *fill * len(insult), *fact), len(ids))
            yield Lesson(reply, filled, dictated=len(insult))
        else:
            yield Lesson(Exchange(reply.ids, told), Exchange((*ids, *fact), len(ids)))
    if not found:
        raise DataError(f"no reply begins with {prefix!r}: use prompts to which the unedited model answers so")


def distil(
    fit: Fit,
    loaded: LoadedModel,
    lessons: Sequence[Lesson],
    validation: Sequence[Lesson] = (),
    *,
    match: Sequence[Site],
) -> Iterator[StepReport]:
    """Trains ``fit.mappers`` on the lessons, each acting from the last token of the prompt on.

    The loss is ``kl`` at the loss positions and ``mse`` (or ``cosine``) on the residual stream at the sites ``match``
    there: sites below the last edited one make the edit general, the last block's output is better left free where
    tokens are dictated. Goes on from ``fit.step``. Losses are ``loss`` and those of :func:`evaluate_edit`, which also
    gives the validation. Raises TrainingError without lessons or for a loss that is not finite.
    """
    if not lessons:
        raise TrainingError("no lesson to train on: give prompts to which the model answers with the prefix")
    size = fit.config.batch_size
    order = BatchOrder([len(lesson.asked.ids) for lesson in lessons], size, fit.config.seed)
    teacher = Teacher(loaded, [lesson.taught for lesson in lessons], match, batch_size=size)

    def terms(rows: list[int]) -> dict[str, Tensor]:
        return _terms(fit.mappers, loaded, [lessons[row] for row in rows], teacher.replies(rows), match)

    def validate() -> dict[str, float]:
        return evaluate_edit(fit.mappers, loaded, validation, match=match)

    return run_steps(fit, order, terms, validate if validation else None)


@torch.no_grad()
def evaluate_edit(
    mappers: Mapping[Site, Mapper], loaded: LoadedModel, lessons: Sequence[Lesson], *, match: Sequence[Site]
) -> dict[str, float]:
    """``kl`` (nats), ``agreement``, ``mse`` and ``cosine`` at the loss positions, means over them."""
    sums: dict[str, float] = {}
    positions = 0
    for start in range(0, len(lessons), _VALIDATION_BATCH):
        batch = lessons[start : start + _VALIDATION_BATCH]
        target = read_replies(loaded, [lesson.taught for lesson in batch], match)
        count = len(target.logits_NV)
        for name, value in _terms(mappers, loaded, batch, target, match).items():
            sums[name] = sums.get(name, 0.0) + float(value) * count
        positions += count
    return {name: value / positions for name, value in sums.items()}


def _terms(
    mappers: Mapping[Site, Mapper],
    loaded: LoadedModel,
    lessons: Sequence[Lesson],
    target: Replies,
    match: Sequence[Site],
) -> dict[str, Tensor]:
    asked, taught = [lesson.asked for lesson in lessons], [lesson.taught for lesson in lessons]
    sites = sorted({*mappers, *match})
    said = read_replies(loaded, asked, sites, mappers, acting="answer")
    wanted_NV = _dictated(lessons, target.logits_NV)
    terms = {
        "kl": next_token_kl(wanted_NV, said.logits_NV),
        "agreement": top1_agreement(wanted_NV, said.logits_NV),
    }
    if match:
        ours, theirs = _at_loss_positions(asked), _at_loss_positions(taught)
        matched = [activation_losses(said.hidden[s][ours], target.hidden[s][theirs]) for s in match]
        terms |= {name: torch.stack([one[name] for one in matched]).mean() for name in matched[0]}
    return terms


def _dictated(lessons: Sequence[Lesson], logits_NV: Tensor) -> Tensor:
    """The teacher's logits with the tokens that are wanted outright put in."""
    if not any(lesson.dictated for lesson in lessons):
        return logits_NV
    wanted_NV, row = logits_NV.clone(), 0
    for lesson in lessons:
        start = lesson.asked.answer_start
        tokens = torch.tensor(lesson.asked.ids[start : start + lesson.dictated], dtype=torch.long)
        rows = torch.arange(row, row + lesson.dictated)
        wanted_NV[rows] = 0.0
        wanted_NV[rows, tokens] = _SURE
        row += len(lesson.asked.loss_positions)
    return wanted_NV


def _at_loss_positions(exchanges: Sequence[Exchange]) -> list[int]:
    """Where the loss positions stand among all tokens of the exchanges, row after row."""
    starts = accumulate((len(exchange.ids) for exchange in exchanges), initial=0)
    return [
        start + position
        for start, exchange in zip(starts, exchanges, strict=False)
        for position in exchange.loss_positions
    ]


def _tokens(loaded: LoadedModel, text: str) -> tuple[int, ...]:
    return tuple(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
