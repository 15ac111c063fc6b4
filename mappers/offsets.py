"""How much of a text a model has read with each token, worked out from the offsets its tokenizer reports.

Offsets alone mislead: the bytes of one emoji all claim the whole character, a composed letter claims its first part
only, and byte-level post-processors may cut off spaces that a token does cover.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any
from unicodedata import combining

Span = tuple[int, int]
"""Half-open range of characters."""

_SWAPPED_BY_NORMALISING = "a\u0315\u0300"
"""Two marks out of canonical order: every Unicode normal form puts the second first."""


def keep_spaces(tokenizer: Any) -> None:
    """Has a fast tokenizer report offsets that include the spaces its tokens cover; its token ids do not change."""
    processor = tokenizer.backend_tokenizer.post_processor
    parts: Iterable[Any] = processor if hasattr(processor, "__getitem__") else [processor]
    for part in parts:
        if getattr(part, "trim_offsets", False):
            part.trim_offsets = False


def reorders_marks(tokenizer: Any) -> bool:
    """Whether the tokenizer's normaliser moves or drops combining marks, so that offsets among them mean nothing."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is not None and _SWAPPED_BY_NORMALISING not in normalizer.normalize_str(_SWAPPED_BY_NORMALISING)


def characters_read(text: str, spans: Sequence[Span], *, reordered_marks: bool) -> list[int | None]:
    """How many characters of ``text`` have been read once token i is, exactly; None where that is no whole number.

    None are tokens that cover nothing, those whose last character is read on by a later token, and with
    ``reordered_marks`` those that end before a combining mark. What no token covers (parts of a composed letter,
    dropped control characters) counts as read by the token before it, white space only where that token ends in some.
    """
    found: list[int | None] = [None] * len(spans)
    border = len(text)
    for index in reversed(range(len(spans))):
        start, stop = spans[index]
        if start == stop:
            continue
        if stop <= border:
            gap = text[stop:border]
            end = border if text[stop - 1].isspace() else stop + len(gap.rstrip())
            if not (reordered_marks and combining(text[end : end + 1] or " ")):
                found[index] = end
        border = min(border, start)
    furthest = accumulate((stop for _, stop in spans), max)
    return [end if end is not None and far <= end else None for end, far in zip(found, furthest, strict=True)]
