from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mappers.distillation import Lesson, distil, evaluate_edit, keeping, without_prefix
from mappers.errors import DataError, TrainingError
from mappers.exchanges import Exchange, OpenPrompt, answer_prompts
from mappers.fit import Fit, TrainingConfig
from mappers.loading import LoadedModel
from mappers.losses import LossWeights
from mappers.modules import MapperConfig
from mappers.replies import at_loss_positions, read_replies
from mappers.sites import Site

Twins = tuple[LoadedModel, LoadedModel]
SITES = (Site(0), Site(2))
MATCH = (Site(0), Site(1))


def prompts(count: int = 24) -> list[OpenPrompt]:
    generator = torch.Generator().manual_seed(5)
    return [OpenPrompt(tuple(torch.randint(4, 100, (9,), generator=generator).tolist())) for _ in range(count)]


def spoken(loaded: LoadedModel) -> tuple[OpenPrompt, Exchange, str]:
    """A prompt, its reply, and the reply's first word as a prefix that reads as the same token again."""
    asked = prompts()
    for index, reply in answer_prompts(loaded, asked, max_new_tokens=6, batch_size=8):
        first = reply.ids[reply.answer_start]
        word = loaded.tokenizer.decode([first])
        if loaded.tokenizer(word, add_special_tokens=False)["input_ids"] == [first]:
            return asked[index], reply, word
    raise AssertionError("no reply of this random model begins with a token of its own")


def taught(loaded: LoadedModel, filler: str | None) -> tuple[Exchange, Lesson]:
    prompt, reply, word = spoken(loaded)
    (lesson,) = without_prefix(loaded, [prompt], [prompt], prefix=word, filler=filler, max_new_tokens=6, batch_size=8)
    return reply, lesson


def lessons(count: int) -> list[Lesson]:
    generator = torch.Generator().manual_seed(3)
    found = []
    for _ in range(count):
        ids = torch.randint(4, 100, (15,), generator=generator).tolist()
        taught_ids, asked_ids = ((*ids[:8], said, *ids[9:]) for said in (11, 7))
        found.append(Lesson(Exchange(taught_ids, 8), Exchange(asked_ids, 8), dictated=1))
    return found


def fit(steps: int) -> Fit:
    shape = MapperConfig(kind="affine", d_source=32, d_target=32, residual=True)
    config = TrainingConfig(
        loss=LossWeights(kl=1.0, mse=10.0), steps=steps, batch_size=8, learning_rate=1e-2, validate_every=steps
    )
    return Fit.fresh(dict.fromkeys(SITES, shape), config, device=torch.device("cpu"))


def test_without_a_filler_the_answer_begins_after_the_prefix(twins: Twins) -> None:
    reply, lesson = taught(twins[0], None)
    start = reply.answer_start
    assert lesson.taught == Exchange(reply.ids, start + 1)
    assert lesson.asked == Exchange((*reply.ids[:start], *reply.ids[start + 1 :]), start)
    assert lesson.dictated == 0


def test_a_filler_stands_where_each_token_of_the_prefix_stood(twins: Twins) -> None:
    reply, lesson = taught(twins[0], "a")
    (filler,) = twins[0].tokenizer("a", add_special_tokens=False)["input_ids"]
    start = reply.answer_start
    assert lesson.taught == reply
    assert lesson.asked == Exchange((*reply.ids[:start], filler, *reply.ids[start + 1 :]), start)
    assert lesson.dictated == 1


def test_a_prefix_nobody_says_and_a_filler_of_several_tokens_are_refused(twins: Twins) -> None:
    asked = prompts(4)
    options = {"max_new_tokens": 3, "batch_size": 4}
    with pytest.raises(DataError, match="no reply begins with"):
        list(without_prefix(twins[0], asked, asked, prefix="naïve café naïve", filler=None, **options))
    with pytest.raises(DataError, match="choose one that is a single token"):
        list(without_prefix(twins[0], asked, asked, prefix="a", filler="zq zq", **options))


def test_a_lesson_has_equally_many_answer_tokens_on_both_sides() -> None:
    with pytest.raises(ValueError, match="equally many"):
        Lesson(Exchange((5, 6, 7), 1), Exchange((5, 6, 7), 2))


def test_an_edit_learns_what_is_dictated_and_matches_the_residual_stream(twins: Twins) -> None:
    training, held_out = lessons(48), lessons(56)[48:]
    fitted = fit(40)
    before = evaluate_edit(fitted.mappers, twins[0], held_out, match=MATCH)
    reports = list(distil(fitted, twins[0], training, held_out, match=MATCH))
    after = reports[-1].validation
    assert reports[-1].losses["loss"] < 0.7 * reports[0].losses["loss"]
    assert after["kl"] < before["kl"]
    assert after["mse"] < before["mse"]
    assert after == pytest.approx(
        evaluate_edit(fitted.mappers, twins[0], held_out, match=MATCH) | {"loss": after["kl"] + 10 * after["mse"]}
    )


def test_the_unedited_model_keeps_what_it_says(twins: Twins) -> None:
    kept = [keeping(lesson.taught) for lesson in lessons(5)]
    measured = evaluate_edit({}, twins[0], kept, match=MATCH)
    assert measured["agreement"] == 1.0
    assert measured["kl"] == pytest.approx(0.0, abs=1e-5)
    assert measured["mse"] == pytest.approx(0.0, abs=1e-9)


def test_a_dictated_token_counts_instead_of_what_the_model_says(twins: Twins) -> None:
    free = [replace(lesson, dictated=0) for lesson in lessons(6)]
    said = evaluate_edit({}, twins[0], lessons(6), match=())
    assert said["kl"] > evaluate_edit({}, twins[0], free, match=())["kl"] + 0.1
    assert "mse" not in said


def test_an_edit_acts_from_the_last_token_of_the_prompt_on(twins: Twins) -> None:
    fitted, exchange = fit(1), lessons(1)[0].asked
    with torch.no_grad():
        next(fitted.mappers[SITES[0]].parameters()).add_(0.5)
    plain, edited = (
        read_replies(twins[0], [exchange], SITES, mappers, acting="answer").hidden[SITES[0]]
        for mappers in ({}, fitted.mappers)
    )
    changed = (plain != edited).any(-1)
    assert changed.tolist() == [place >= 7 for place in range(15)]


def test_loss_positions_are_found_among_all_tokens() -> None:
    assert at_loss_positions([Exchange((5, 6, 7, 8), 2), Exchange((5, 6, 7), 1)]) == [1, 2, 4, 5]


def test_an_edit_needs_lessons(twins: Twins) -> None:
    with pytest.raises(TrainingError, match="no lesson"):
        list(distil(fit(1), twins[0], [], match=MATCH))
