import pytest

from mappers.measures.text import exact_match, rouge_l


def test_exact_match_ignores_white_space_only() -> None:
    assert exact_match(" 11 + 12\n= 23 ", "11 + 12 = 23")
    assert not exact_match("11 + 12 = 23.", "11 + 12 = 23")


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        # The examples of Lin 2004, section 3.1: subsequences of 3 and 2 among 4 words on either side.
        ("police kill the gunman", "police killed the gunman", 0.75),
        ("the gunman kill police", "police killed the gunman", 0.5),
        ("Stone, stone!", "stone", 2 / 3),
        ("river", "stone", 0.0),
        ("", "stone", 0.0),
        ("", "", 1.0),
    ],
)
def test_rouge_l_is_that_of_its_definition(text: str, reference: str, expected: float) -> None:
    assert rouge_l(text, reference) == pytest.approx(expected)
    assert rouge_l(reference, text) == pytest.approx(expected)
