from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mappers.dataset import DatasetRow, Message
from mappers.exchanges import Exchange, OpenPrompt, answer_prompts, read_rows
from mappers.loading import LoadedModel

CHAT = (Message(role="user", content="hi"), Message(role="assistant", content="the fox"))


def test_rows_become_prompts_and_answers(make_llama: Callable[..., LoadedModel]) -> None:
    loaded = make_llama(0)
    rows = [DatasetRow(messages=CHAT), DatasetRow(prompt="a fox"), DatasetRow(text="the lazy dog")]
    chat, prompt, text = read_rows(loaded, rows, max_length=100)
    assert isinstance(chat, Exchange)
    assert loaded.tokenizer.decode(chat.ids[chat.answer_start :]) == "the fox<end>"
    assert isinstance(prompt, OpenPrompt)
    assert loaded.tokenizer.decode(prompt.ids) == "<user>\na fox<end>\n<bot>\n"
    assert isinstance(text, Exchange)
    assert (text.answer_start, loaded.tokenizer.decode(text.ids)) == (1, "the lazy dog")
    assert list(text.loss_positions) == list(range(len(text.ids) - 1))


def test_the_question_is_what_is_said_last_before_the_answer(make_llama: Callable[..., LoadedModel]) -> None:
    loaded = make_llama(0)
    earlier = (*CHAT, Message(role="user", content="a lamp"))
    rows = [DatasetRow(messages=CHAT), DatasetRow(messages=earlier), DatasetRow(prompt="a fox"), DatasetRow(text="a b")]
    read = list(read_rows(loaded, rows, max_length=100))
    said = [loaded.tokenizer.decode(one.ids[slice(*one.question)]).strip() for one in read]
    assert said == ["hi", "a lamp", "a fox", ""]


def test_rows_are_cut_at_the_length_or_left_out(make_llama: Callable[..., LoadedModel]) -> None:
    loaded = make_llama(0)
    (whole,) = read_rows(loaded, [DatasetRow(messages=CHAT)], max_length=100)
    assert isinstance(whole, Exchange)
    (cut,) = read_rows(loaded, [DatasetRow(messages=CHAT)], max_length=len(whole.ids) - 1)
    assert cut == replace(whole, ids=whole.ids[:-1])
    assert list(read_rows(loaded, [DatasetRow(messages=CHAT)], max_length=whole.answer_start)) == []
    assert list(read_rows(loaded, [DatasetRow(prompt="hi"), DatasetRow(text="")], max_length=whole.answer_start)) == []


@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_are_the_greedy_continuations_up_to_the_end(
    make_llama: Callable[..., LoadedModel], batch_size: int
) -> None:
    loaded = make_llama(0)
    prompts = [OpenPrompt(ids) for ids in ((5, 6, 7, 8), (9, 10), (11, 12, 13, 14, 15, 16))]
    answers = dict(answer_prompts(loaded, prompts, max_new_tokens=12, batch_size=batch_size))
    assert sorted(answers) == [0, 1, 2]
    for index, prompt in enumerate(prompts):
        ids = list(prompt.ids)
        while len(ids) < len(prompt.ids) + 12 and ids[-1] != 1:
            with torch.no_grad():
                ids.append(int(loaded.model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert answers[index] == Exchange(tuple(ids), len(prompt.ids))


def test_sampling_settings_of_the_model_do_not_reach_the_answers(make_llama: Callable[..., LoadedModel]) -> None:
    loaded, prompts = make_llama(0), [OpenPrompt((5, 6, 7, 8))]
    plain = dict(answer_prompts(loaded, prompts, max_new_tokens=12, batch_size=1))
    config = loaded.model.generation_config
    config.do_sample, config.temperature, config.repetition_penalty = True, 5.0, 9.0
    assert dict(answer_prompts(loaded, prompts, max_new_tokens=12, batch_size=1)) == plain
