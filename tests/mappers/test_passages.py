from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from mappers.passages import passages


def cut(text: str, limit: int = 40) -> list[str]:
    return list(passages(text.splitlines(keepends=True), limit))


def test_short_paragraphs_share_a_passage() -> None:
    assert cut("one\ntwo\n\n\n three \n") == ["one\ntwo\n\nthree"]


def test_a_paragraph_is_never_cut_where_it_fits() -> None:
    assert cut("a" * 25 + "\n\n" + "b" * 25 + "\n\n" + "c" * 10) == ["a" * 25, "b" * 25 + "\n\n" + "c" * 10]


def test_long_ones_are_cut_at_lines_then_at_spaces_then_anywhere() -> None:
    assert cut("x" * 30 + "\n" + "y" * 30) == ["x" * 30, "y" * 30]
    assert cut("word " * 12) == ["word word word word word word word word", "word word word word"]
    assert cut("z" * 90) == ["z" * 40, "z" * 40, "z" * 10]


@given(st.text(alphabet=st.sampled_from("ab \n\t\u2028é"), max_size=300), st.integers(1, 50))
def test_no_word_is_lost_and_no_passage_too_long(text: str, limit: int) -> None:
    found = list(passages(text.split("\n"), limit))
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(0 < len(passage) <= limit and passage == passage.strip() for passage in found)


def test_one_huge_line_takes_no_time() -> None:
    started = time.perf_counter()
    assert sum(map(len, passages(["ab " * 1_000_000]))) > 2_990_000
    assert time.perf_counter() - started < 5
