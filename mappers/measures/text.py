"""Scores of a text against the one that was wanted, without a model."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+")


def exact_match(text: str, wanted: str) -> bool:
    """Whether both say the same up to white space."""
    return text.split() == wanted.split()


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L: F-measure of the longest common subsequence of words, in lower case (Lin 2004, section 3, beta = 1).

    0 where no word is shared; 1 where both are the same words, or both have none.
    """
    given, wanted = (_WORD.findall(one.lower()) for one in (text, reference))
    if not given or not wanted:
        return float(given == wanted)
    return 2 * _longest_common_subsequence(given, wanted) / (len(given) + len(wanted))


def _longest_common_subsequence(first: list[str], second: list[str]) -> int:
    lengths = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for place, other in enumerate(second, start=1):
            before, lengths[place] = (
                lengths[place],
                before + 1 if word == other else max(lengths[place], lengths[place - 1]),
            )
    return lengths[-1]
