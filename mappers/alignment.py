"""Pairs of tokens of two tokenizations of one text.

arXiv 2503.04429 pairs by position, which fails where tokenizers split differently; pairing tokens by the character at
which they *end* is right for causal models: both states have then read exactly the same text.
"""

from __future__ import annotations

from typing import Literal

from mappers.errors import DataError
from mappers.rendering import Rendered

Alignment = Literal["offsets", "last", "position"]
TokenPairs = list[tuple[int, int]]
"""``(index in source.ids, index in target.ids)``, ascending in both."""


def align(source: Rendered, target: Rendered, how: Alignment) -> TokenPairs:
    """Pairs tokens of one text read by two models.

    ``offsets``: tokens whose last characters coincide, inside the messages' contents, and the tokens at which the
    prompts end (both models have read the same prompt and are about to answer; a vector is mostly taken there, and a
    map that never saw such a token carries it badly). ``last``: the tokens at which the prompts end, alone.
    ``position``: token i with token i, as in the paper. Raises DataError for ``offsets`` where the contents differ.
    """
    ends = (source.prompt_end, target.prompt_end)
    prompt_ends = [ends] if min(ends) >= 0 else []
    if how == "last":
        return prompt_ends
    if how == "position":
        return [(i, i) for i in range(min(len(source.ids), len(target.ids)))]
    if _contents(source) != _contents(target):
        raise DataError("the two models' chat templates render different contents, so tokens cannot be paired by text")
    source_ends, target_ends = token_ends(source), token_ends(target)
    pairs = {source_ends[end]: target_ends[end] for end in source_ends.keys() & target_ends.keys()}
    if source.prompt_end not in pairs and target.prompt_end not in pairs.values():
        pairs |= dict(prompt_ends)
    return sorted(pairs.items())


def token_ends(rendered: Rendered) -> dict[tuple[int, int], int]:
    """``(content, characters of it read so far)`` -> index of the token that completes them.

    Each number of characters has one token at most: where several end at one character (the bytes of an emoji), the
    last has read all of it, and none has where its bytes are shared with the next character. Tokens that end outside of
    the contents are left out, and so are special tokens.
    """
    ends: dict[tuple[int, int], int] = {}
    part = 0
    for index, end in enumerate(rendered.ends):
        if end is None:
            continue
        while part < len(rendered.content) and rendered.content[part][1] < end:
            part += 1
        if part == len(rendered.content):
            break
        first = rendered.content[part][0]
        if first < end:
            ends[part, end - first] = index
    return ends


def _contents(rendered: Rendered) -> list[str]:
    return [rendered.text[start:stop] for start, stop in rendered.content]
