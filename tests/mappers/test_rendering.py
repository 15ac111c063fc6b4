from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from mappers.dataset import DatasetRow, Message
from mappers.errors import DataError
from mappers.rendering import end_of_turn, render


def test_a_prompt_becomes_a_user_turn_ready_for_the_answer(tokenizers: dict[str, Any]) -> None:
    rendered = render(tokenizers["byte_level"], DatasetRow(prompt="a fox"))
    assert rendered.text == "<user>\na fox<end>\n<bot>\n"
    assert rendered.text[slice(*rendered.content[0])] == "a fox"
    assert rendered.answer_start is None
    assert tokenizers["byte_level"].decode(rendered.ids) == rendered.text


def test_an_answer_follows_its_prompt_and_is_content(tokenizers: dict[str, Any]) -> None:
    row = DatasetRow(messages=(Message(role="user", content="hi"), Message(role="assistant", content="the fox")))
    rendered = render(tokenizers["byte_level"], row, answer=row.answer)
    assert rendered.answer_start is not None
    assert tokenizers["byte_level"].decode(rendered.ids[rendered.answer_start :]) == "the fox"
    assert [rendered.text[a:b] for a, b in rendered.content] == ["hi", "the fox"]


def test_a_text_is_read_without_the_template(tokenizers: dict[str, Any]) -> None:
    rendered = render(tokenizers["unigram"], DatasetRow(text=" the fox"))
    assert rendered.text == " the fox"
    assert rendered.content == ((1, 8),)


def test_without_a_template_prompts_are_plain_and_chats_are_refused(tokenizers: dict[str, Any]) -> None:
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizers["byte_level"].backend_tokenizer, eos_token="<end>")
    assert render(plain, DatasetRow(prompt="a fox")).text == "a fox"
    with pytest.raises(DataError, match="no chat template"):
        render(plain, DatasetRow(messages=(Message(role="user", content="hi"),)))
    assert end_of_turn(plain, frozenset({0, 1})) == 1


def test_a_template_that_trims_still_gives_the_content(tokenizers: dict[str, Any]) -> None:
    trimming = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers["byte_level"].backend_tokenizer,
        eos_token="<end>",
        chat_template="{% for m in messages %}{{ m.role + m.content | trim }}{% endfor %}",
    )
    rendered = render(trimming, DatasetRow(prompt="  user "))
    assert (rendered.text, rendered.content) == ("useruser", ((4, 8),))


def test_a_template_that_rewrites_is_refused(tokenizers: dict[str, Any]) -> None:
    rewriting = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers["byte_level"].backend_tokenizer,
        chat_template="{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    )
    with pytest.raises(DataError, match="rewrites"):
        render(rewriting, DatasetRow(prompt="hello"))


def test_slow_tokenizers_and_rows_without_a_turn_are_refused(tokenizers: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="fast tokenizer"):
        render(object(), DatasetRow(prompt="a"))
    row = DatasetRow(messages=(Message(role="assistant", content="hello"),))
    with pytest.raises(DataError, match="before the assistant's answer"):
        render(tokenizers["byte_level"], row)


def test_the_end_of_a_turn_is_what_the_template_writes(tokenizers: dict[str, Any]) -> None:
    assert end_of_turn(tokenizers["byte_level"], frozenset({0, 1})) == 1
    with pytest.raises(DataError, match="eos_token_id"):
        end_of_turn(tokenizers["byte_level"], frozenset())
