"""What a model writes itself, with a scripted writer where it matters what it writes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from mappers import on_policy
from mappers.errors import DataError
from mappers.loading import LoadedModel
from mappers.on_policy import Sampler

Script = Callable[[Sequence[str]], None]


@pytest.fixture
def loaded(make_llama: Callable[..., LoadedModel]) -> LoadedModel:
    found = make_llama(0)
    return replace(found, tokenizer=copy.deepcopy(found.tokenizer))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel) -> tuple[Script, list[list[str]]]:
    """``write(texts)`` says what each batch writes, in order; the list gets what each was started with."""
    batches: list[Sequence[str]] = []
    starts: list[list[str]] = []

    def scripted(_: LoadedModel, prompts: Sequence[Sequence[int]], **_settings: Any) -> list[tuple[int, ...]]:
        starts.append([loaded.tokenizer.decode(ids) for ids in prompts])
        texts = batches.pop(0)
        return [tuple(loaded.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]

    monkeypatch.setattr(on_policy, "continue_ids", scripted)
    return batches.append, starts


def test_the_model_asks_and_then_answers(loaded: LoadedModel, script: tuple[Script, list[list[str]]]) -> None:
    write, starts = script
    write(["a fox?<end>", "<end>", " the lamp <end>"])
    write(["the dog<end>", "<end>"])
    rows = Sampler(loaded, 1.0, 8).rows(3, seed=0)
    assert starts[0] == ["<user>\n"] * 3
    assert starts[1] == ["<user>\na fox?<end>\n<bot>\n", "<user>\nthe lamp<end>\n<bot>\n"]
    assert [(row.turns[0].content, row.answer) for row in rows] == [("a fox?", "the dog")]


def test_a_turn_that_no_special_token_ends_is_cut_at_its_text(
    loaded: LoadedModel, script: tuple[Script, list[list[str]]]
) -> None:
    loaded.tokenizer.chat_template = "{% for m in messages %}[ {{ m.content }} ] {% endfor %}"
    write, starts = script
    write(["a fox ] and more"])
    write(["the dog"])
    (row,) = Sampler(loaded, 1.0, 8).rows(1, seed=0)
    assert (starts[0], row.turns[0].content) == (["[ "], "a fox")


def test_without_a_template_it_writes_a_text(loaded: LoadedModel, script: tuple[Script, list[list[str]]]) -> None:
    loaded.tokenizer.chat_template = None
    write, starts = script
    write(["the lazy dog<end>", "<end>"])
    rows = Sampler(loaded, 1.0, 8).rows(2, seed=0)
    assert starts == [["<end>", "<end>"]]
    assert [row.text for row in rows] == ["the lazy dog"]


def test_equal_seeds_give_equal_rows(loaded: LoadedModel) -> None:
    sampler = Sampler(loaded, 1.0, 8)
    rows = sampler.rows(4, seed=1)
    assert rows
    assert rows == sampler.rows(4, seed=1) != sampler.rows(4, seed=2)


def test_a_model_that_cannot_be_started_is_refused(loaded: LoadedModel) -> None:
    loaded.tokenizer.chat_template = "{{ 'always the same' }}"
    with pytest.raises(DataError, match="leaves out what the user says"):
        Sampler(loaded, 1.0, 8).rows(1, seed=0)
