from __future__ import annotations

from collections.abc import Callable

import pytest

from mappers.augmentation import Augment, insert_tokens, text_tokens
from mappers.dataset import DatasetRow
from mappers.errors import DataError
from mappers.exchanges import Exchange, read_rows
from mappers.loading import LoadedModel

QUESTION = "Tell me a story"


def asked(loaded: LoadedModel, count: int) -> list[Exchange]:
    rows = [DatasetRow(prompt=QUESTION, completion="the fox")] * count
    return [one for one in read_rows(loaded, rows, max_length=100) if isinstance(one, Exchange)]


def test_inserted_tokens_stand_in_the_question_and_change_nothing_else(make_llama: Callable[..., LoadedModel]) -> None:
    loaded = make_llama(0)
    before = asked(loaded, 300)
    after = insert_tokens(before, loaded.tokenizer, Augment(share=0.5, tokens=4), max_length=100, seed=0)
    changed = [(old, new) for old, new in zip(before, after, strict=True) if new != old]
    assert 110 < len(changed) < 190
    for old, new in changed:
        first, end = new.inserted
        assert 1 <= end - first <= 4
        assert (*new.ids[:first], *new.ids[end:]) == old.ids
        assert new.ids[new.answer_start :] == old.ids[old.answer_start :]
        assert new.question[0] == old.question[0] <= first < end <= new.question[1] == old.question[1] + end - first
        assert set(new.ids[first:end]) <= set(text_tokens(loaded.tokenizer))
    in_front = sum(new.inserted[0] == new.question[0] for _, new in changed)
    behind = sum(new.inserted[1] == new.question[1] for _, new in changed)
    assert 0.4 < in_front / len(changed) < 0.75
    assert 0.15 < behind / len(changed) < 0.5


def test_equal_seeds_insert_the_same(make_llama: Callable[..., LoadedModel]) -> None:
    loaded = make_llama(0)
    one, again, other = (
        insert_tokens(asked(loaded, 20), loaded.tokenizer, Augment(), max_length=100, seed=seed) for seed in (0, 0, 1)
    )
    assert one == again != other


def test_nothing_is_inserted_where_there_is_no_room(make_llama: Callable[..., LoadedModel]) -> None:
    loaded = make_llama(0)
    before = asked(loaded, 5)
    length = len(before[0].ids)
    assert insert_tokens(before, loaded.tokenizer, Augment(share=1.0), max_length=length, seed=0) == before


def test_texts_have_no_place_for_an_insertion(make_llama: Callable[..., LoadedModel]) -> None:
    loaded = make_llama(0)
    with pytest.raises(DataError, match="no prompt to insert tokens into"):
        insert_tokens([Exchange((5, 6, 7), 1)], loaded.tokenizer, Augment(), max_length=100, seed=0)


def test_reserved_tokens_are_no_text(make_llama: Callable[..., LoadedModel]) -> None:
    tokenizer = make_llama(0).tokenizer
    tokens = text_tokens(tokenizer)
    assert not {"<pad>", "<end>", "<user>", "<bot>"} & set(tokenizer.convert_ids_to_tokens(tokens))
    assert len(tokens) == len(tokenizer) - 4
