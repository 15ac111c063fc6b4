"""What tokens have read, checked against what their pieces say, on text that is hard on tokenizers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings

from mappers.dataset import DatasetRow, Message
from mappers.offsets import characters_read, keep_spaces
from mappers.rendering import Rendered, render
from tests.mappers.hostile import TEXTS, as_read, build, said

NAMES = ("byte_level", "trimmed", "llama", "gemma", "nfkc", "nfc")
TOKENIZERS = build()
quick = settings(max_examples=25, deadline=None)


def check(tokenizer: Any, rendered: Rendered) -> None:
    """Each end is what the pieces up to its token say of the text, and ends rise."""
    ends = [end for end in rendered.ends if end is not None]
    assert ends == sorted(set(ends))
    for index, end in enumerate(rendered.ends):
        if end is not None:
            assert said(tokenizer, rendered.ids[: index + 1]) == as_read(tokenizer, rendered.text[:end])


@quick
@given(text=TEXTS)
@example(text="e\u0301x")
@example(text="a\u0315\u0300b")
@example(text="\u1100\u1161\u11a8x")
@example(text="a  b \n \n  c  ")
@example(text="🙂! 👩\u200d👩\u200d👧\ufe0f")
@example(text="a <end> b")
def test_tokens_have_read_what_their_end_says(text: str) -> None:
    for tokenizer in TOKENIZERS.values():
        check(tokenizer, render(tokenizer, DatasetRow(text=text)))


@quick
@given(first=TEXTS, answer=TEXTS)
@example(first="e", answer="\u0301")
@example(first="", answer="")
def test_so_they_have_behind_a_chat_template_and_in_the_answer(first: str, answer: str) -> None:
    turns = (Message(role="user", content=first), Message(role="assistant", content=answer))
    for tokenizer in TOKENIZERS.values():
        rendered = render(tokenizer, DatasetRow(messages=turns), answer=answer)
        check(tokenizer, rendered)
        assert [rendered.text[a:b] for a, b in rendered.content] == [first.strip(), answer.strip()]


@pytest.mark.parametrize("name", NAMES)
def test_every_piece_of_plain_text_has_an_end(name: str) -> None:
    rendered = render(TOKENIZERS[name], DatasetRow(text="the fox, 12  jumps\r\n over"))
    ends = [end for end, (start, stop) in zip(rendered.ends, rendered.offsets, strict=True) if start < stop]
    assert ends[-1] == len(rendered.text)
    assert ends.count(None) <= 1, "only a space that was put before the text is read again"


def test_trimmed_spaces_come_back() -> None:
    tokenizer = build()["trimmed"]
    before = tokenizer("a  b", return_offsets_mapping=True)
    keep_spaces(tokenizer)
    after = tokenizer("a  b", return_offsets_mapping=True)
    assert before["input_ids"] == after["input_ids"]
    assert (1, 1) not in after["offset_mapping"]
    covered = [character for start, stop in after["offset_mapping"] for character in range(start, stop)]
    assert covered == [0, 1, 2, 3]
    assert before["offset_mapping"] != after["offset_mapping"]


@pytest.mark.parametrize(
    ("text", "spans", "expected"),
    [
        ("ab", [(0, 1), (1, 2)], [1, 2]),
        ("🙂!", [(0, 1), (0, 2)], [None, 2]),
        ("🙂", [(0, 1), (0, 1), (0, 1)], [None, None, 1]),
        ("e\u0301x", [(0, 1), (2, 3)], [2, 3]),
        ("a b", [(0, 1), (2, 3)], [1, 3]),
        ("a  b", [(0, 1), (1, 2), (3, 4)], [1, 3, 4]),
        ("ab", [(0, 0), (0, 2), (0, 0)], [None, 2, None]),
        ("ab", [(0, 2), (0, 1)], [None, 2]),
    ],
)
def test_ends_of_given_offsets(text: str, spans: list[tuple[int, int]], expected: list[int | None]) -> None:
    assert characters_read(text, spans, reordered_marks=False) == expected
