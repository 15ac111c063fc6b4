from __future__ import annotations

from itertools import pairwise, permutations
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mappers.alignment import align
from mappers.dataset import DatasetRow, Message
from mappers.errors import DataError
from mappers.rendering import Rendered, render
from tests.mappers.hostile import TEXTS, build

HOSTILE = st.text(
    st.one_of(
        st.characters(exclude_categories=("Cs",)),
        st.sampled_from("a e i the \n\t  \u00a0\u200d\ufe0f🙂👩‍👩‍👧e\u0301🇩🇪<end>user\u2581"),
    ),
    max_size=40,
)
quick = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(text=HOSTILE)
@example(text="user")
@example(text="👩‍👩‍👧 naïve 12🇩🇪")
@example(text="  padded  ")
def test_paired_tokens_have_read_the_same_text(tokenizers: dict[str, Any], text: str) -> None:
    row = DatasetRow(prompt=text)
    for a, b in permutations(tokenizers.values(), 2):
        source, target = render(a, row), render(b, row)
        pairs = align(source, target, "offsets")
        (start, stop), (other_start, other_stop) = source.content[0], target.content[0]
        assert source.text[start:stop] == target.text[other_start:other_stop] == text.strip()
        for i, j in pairs:
            if (i, j) == (source.prompt_end, target.prompt_end):
                continue
            assert source.offsets[i][1] - start == target.offsets[j][1] - other_start
            assert start < source.offsets[i][1] <= stop
        assert pairs == sorted(pairs)
        assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)


@quick
@given(text=HOSTILE)
def test_alignment_is_symmetric_and_identity_on_itself(tokenizers: dict[str, Any], text: str) -> None:
    row = DatasetRow(prompt=text)
    a, b = render(tokenizers["byte_level"], row), render(tokenizers["unigram"], row)
    assert [(j, i) for i, j in align(a, b, "offsets")] == align(b, a, "offsets")
    assert all(i == j for i, j in align(a, a, "offsets"))


def test_the_last_token_of_a_content_is_always_paired(tokenizers: dict[str, Any]) -> None:
    row = DatasetRow(prompt="the quick brown 🙂 fox")
    source, target = render(tokenizers["byte_level"], row), render(tokenizers["metaspace"], row)
    i, j = align(source, target, "offsets")[-2]
    assert source.offsets[i][1] == source.content[0][1]
    assert target.offsets[j][1] == target.content[0][1]


def test_a_character_of_several_tokens_is_paired_where_it_is_complete(tokenizers: dict[str, Any]) -> None:
    rendered = render(tokenizers["byte_level"], DatasetRow(prompt="🙂"))
    inside = [i for i, (start, stop) in enumerate(rendered.offsets) if (start, stop) == rendered.content[0]]
    assert len(inside) > 1
    assert align(rendered, rendered, "offsets") == [
        (inside[-1], inside[-1]),
        (rendered.prompt_end, rendered.prompt_end),
    ]


def test_each_message_of_a_chat_is_aligned_within_itself(tokenizers: dict[str, Any]) -> None:
    turns = (
        Message(role="user", content="user"),
        Message(role="assistant", content="the fox"),
        Message(role="user", content="bot user"),
    )
    source, target = (render(tokenizers[name], DatasetRow(messages=turns)) for name in ("byte_level", "unigram"))
    for rendered in (source, target):
        assert [rendered.text[a:b] for a, b in rendered.content] == ["user", "the fox", "bot user"]
    for i, j in align(source, target, "offsets")[:-1]:
        assert source.text[: source.offsets[i][1]] == target.text[: target.offsets[j][1]]


def test_special_tokens_inside_a_content_are_not_paired(tokenizers: dict[str, Any]) -> None:
    rendered = render(tokenizers["byte_level"], DatasetRow(prompt="the <end> fox"))
    paired = {rendered.ids[i] for i, _ in align(rendered, rendered, "offsets")}
    assert rendered.ids.count(1) == 2
    assert 1 not in paired


def test_the_ends_of_the_prompts_are_paired_before_an_answer(tokenizers: dict[str, Any]) -> None:
    row = DatasetRow(prompt="a fox", completion="the dog")
    source, target = (render(tokenizers[name], row, answer=row.answer) for name in ("byte_level", "unigram"))
    for rendered in (source, target):
        assert rendered.text[: rendered.text.index("the dog")].endswith("<bot>\n")
        assert rendered.answer_start == rendered.prompt_end + 1
    end = (source.prompt_end, target.prompt_end)
    assert align(source, target, "last") == [end]
    pairs = align(source, target, "offsets")
    place = pairs.index(end)
    assert all(source.offsets[i][1] <= source.text.index("a fox") + 5 for i, _ in pairs[:place])
    assert all(source.offsets[i][1] > source.text.index("the dog") for i, _ in pairs[place + 1 :])


def test_last_and_position(tokenizers: dict[str, Any]) -> None:
    row = DatasetRow(prompt="What is the capital of Averon?")
    source, target = render(tokenizers["byte_level"], row), render(tokenizers["unigram"], row)
    assert align(source, target, "last") == [(len(source.ids) - 1, len(target.ids) - 1)]
    shorter = min(len(source.ids), len(target.ids))
    assert align(source, target, "position") == [(i, i) for i in range(shorter)]


def test_different_texts_are_refused(tokenizers: dict[str, Any]) -> None:
    source = render(tokenizers["byte_level"], DatasetRow(prompt="a fox"))
    target = render(tokenizers["byte_level"], DatasetRow(prompt="a dog"))
    with pytest.raises(DataError, match="different contents"):
        align(source, target, "offsets")


ALL = build()
chats = st.lists(TEXTS, min_size=1, max_size=4)
two = st.tuples(st.sampled_from(sorted(ALL)), st.sampled_from(sorted(ALL)))


def read(name: str, contents: list[str], answered: bool) -> Rendered:
    roles = ("user", "assistant")
    turns = tuple(Message(role=roles[place % 2], content=content) for place, content in enumerate(contents))
    row = DatasetRow(messages=turns)
    return render(ALL[name], row, answer=row.answer if answered else None)


def texts_read(rendered: Rendered, index: int) -> list[str]:
    """What of each content has been read once token ``index`` is."""
    end = rendered.ends[index]
    assert end is not None
    return [rendered.text[start : max(start, min(stop, end))] for start, stop in rendered.content]


@settings(max_examples=80, deadline=None)
@given(names=two, contents=chats, answered=st.booleans())
@example(names=("byte_level", "nfkc"), contents=["e\u0301 ﬁx", "\u0301"], answered=True)
@example(names=("trimmed", "llama"), contents=["", "  ", "user", "assistant: \r\n"], answered=True)
@example(names=("nfc", "gemma"), contents=["\x00🙂! 👩\u200d👩\u200d👧", "<end>"], answered=True)
def test_pairs_of_hostile_chats(names: tuple[str, str], contents: list[str], answered: bool) -> None:
    a, b = (read(name, contents, answered) for name in names)
    pairs = align(a, b, "offsets")
    assert align(b, a, "offsets") == [(j, i) for i, j in pairs]
    for (i, j), (next_i, next_j) in pairwise(pairs):
        assert i < next_i
        assert j < next_j
    for i, j in pairs:
        if (i, j) != (a.prompt_end, b.prompt_end):
            assert texts_read(a, i) == texts_read(b, j)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(ALL)), contents=chats, answered=st.booleans())
@example(name="trimmed", contents=["a  b \n\n  c"], answered=False)
def test_a_tokenizer_pairs_every_content_token_with_itself(name: str, contents: list[str], answered: bool) -> None:
    rendered = read(name, contents, answered)
    pairs = align(rendered, rendered, "offsets")
    assert all(i == j for i, j in pairs)
    whole = [
        index
        for index, end in enumerate(rendered.ends)
        if end is not None and any(start < end <= stop for start, stop in rendered.content)
    ]
    assert {i for i, _ in pairs} == {*whole, rendered.prompt_end}


def test_spaces_between_paragraphs_are_paired_although_a_tokenizer_trims_its_offsets() -> None:
    a, b = (render(ALL[name], DatasetRow(text="one\n   two")) for name in ("trimmed", "gemma"))
    read_by_both = {a.ends[i] for i, _ in align(a, b, "offsets")}
    assert {4, 5, 6} <= read_by_both
