"""Plain text cut into passages for a dataset: at blank lines, else at line ends, else at spaces. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

MAX_PASSAGE = 1000
"""Characters of a passage: about 250 tokens of English, so that most stay below a fit's default ``max_length``."""


def passages(lines: Iterable[str], limit: int = MAX_PASSAGE) -> Iterator[str]:
    """Passages of at most ``limit`` characters, as many whole paragraphs in each as fit; white space around is gone.

    ``lines`` are the lines of a text in order, of any length.
    """
    held = ""
    for paragraph in _paragraphs(lines):
        for piece in _pieces(paragraph, limit):
            if held and len(held) + len(piece) + 2 > limit:
                yield held
                held = ""
            held = f"{held}\n\n{piece}" if held else piece
    if held:
        yield held


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    block: list[str] = []
    for line in lines:
        if stripped := line.rstrip():
            block.append(stripped)
        elif block:
            yield "\n".join(block).strip()
            block = []
    if block:
        yield "\n".join(block).strip()


def _pieces(paragraph: str, limit: int) -> Iterator[str]:
    start = 0
    while len(paragraph) - start > limit:
        stop = start + limit
        cut = paragraph.rfind("\n", start, stop + 1)
        if cut <= start:
            cut = paragraph.rfind(" ", start, stop + 1)
        if cut <= start:
            cut = stop
        yield paragraph[start:cut].strip()
        start = cut
        while start < len(paragraph) and paragraph[start].isspace():
            start += 1
    yield paragraph[start:]
