"""Dataset rows as one model reads them: text by its chat template, tokens with character offsets, content spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mappers.dataset import DatasetRow, Message
from mappers.errors import DataError
from mappers.offsets import Span, characters_read, keep_spaces, reorders_marks


@dataclass(frozen=True, slots=True)
class Rendered:
    """One text of one model.

    ``offsets[i]`` are the characters of ``text`` that token ``ids[i]`` covers; ``(0, 0)`` for special tokens, which
    have no text of their own. ``ends[i]`` is how much of ``text`` has been read with token i, exactly; None for special
    tokens and where a character is read in part (:func:`mappers.offsets.characters_read`). ``content`` are the spans of
    the messages, stripped of surrounding white space, without anything a chat template put around them. Tokens from
    ``answer_start`` on are the answer (None: without).
    """

    text: str
    ids: tuple[int, ...]
    offsets: tuple[Span, ...]
    ends: tuple[int | None, ...]
    content: tuple[Span, ...]
    answer_start: int | None = None

    @property
    def prompt_end(self) -> int:
        """Index of the last token before the answer; -1 where there is none."""
        return (len(self.ids) if self.answer_start is None else self.answer_start) - 1


def render(tokenizer: Any, row: DatasetRow, *, answer: str | None = None) -> Rendered:
    """The row as a prompt ready for generation, followed by ``answer`` where one is given.

    Chats and prompts go through the tokenizer's chat template; without one, a prompt is read as it stands. Texts never
    see the template. Raises DataError for a slow tokenizer, a chat without a template, or no turn before the answer.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError("the tokenizer has no character offsets: use a model with a fast tokenizer (tokenizer.json)")
    if row.text is not None:
        return _encode(tokenizer, row.text, [(0, len(row.text))], answer, template=False)
    if not row.turns:
        raise DataError("a row needs a turn before the assistant's answer: start it with a user message")
    if tokenizer.chat_template is None:
        if row.prompt is None:
            raise DataError("the model has no chat template: use rows with prompt or text instead of messages")
        return _encode(tokenizer, row.prompt, [(0, len(row.prompt))], answer, template=False)
    text = _apply_template(tokenizer, row.turns)
    return _encode(tokenizer, text, _content_spans(tokenizer, row.turns, text), answer, template=True)


def end_of_turn(tokenizer: Any, eos_ids: frozenset[int]) -> int:
    """The token that closes an assistant's turn: the last end token the chat template writes after one.

    Raises DataError where ``eos_ids`` (what the generation config says) is empty.
    """
    if not eos_ids:
        raise DataError("the model names no end-of-text token: set eos_token_id in its generation config")
    if tokenizer.chat_template is not None:
        turns = [Message(role="user", content="a"), Message(role="assistant", content="b")]
        text = _apply_template(tokenizer, turns, add_generation_prompt=False)
        ends = [token for token in tokenizer(text, add_special_tokens=False)["input_ids"] if token in eos_ids]
        if ends:
            return int(ends[-1])
    return int(tokenizer.eos_token_id) if tokenizer.eos_token_id in eos_ids else min(eos_ids)


def _apply_template(tokenizer: Any, turns: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
    messages = [turn.model_dump() for turn in turns]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))


def _encode(tokenizer: Any, prompt: str, content: list[Span], answer: str | None, *, template: bool) -> Rendered:
    text = prompt + (answer or "")
    keep_spaces(tokenizer)
    encoding = tokenizer(text, add_special_tokens=not template, return_offsets_mapping=True)
    ids: tuple[int, ...] = tuple(encoding["input_ids"])
    spans: list[Span] = [(int(start), int(stop)) for start, stop in encoding["offset_mapping"]]
    specials = set(tokenizer.all_special_ids)
    special = [token in specials for token in ids]
    ends = characters_read(text, spans, reordered_marks=reorders_marks(tokenizer))
    parts = [*content, (len(prompt), len(text))] if answer is not None else content
    first = next((i for i, (_, stop) in enumerate(spans) if stop > len(prompt)), len(ids))
    return Rendered(
        text=text,
        ids=ids,
        offsets=tuple((0, 0) if bare else span for span, bare in zip(spans, special, strict=True)),
        ends=tuple(None if bare else end for end, bare in zip(ends, special, strict=True)),
        content=tuple(_strip(text, span) for span in parts),
        answer_start=first if answer is not None else None,
    )


def _content_spans(tokenizer: Any, turns: Sequence[Message], text: str) -> list[Span]:
    """Where each turn's content stands in ``text``, found by rendering the same chat with marks instead of contents.

    Searching for the contents would be wrong where a content such as "user" also is a word of the template. Templates
    may strip the contents of some roles.
    """
    marks = [f"\ue000{index}\ue001" for index in range(len(turns))]
    marked = [Message(role=turn.role, content=mark) for turn, mark in zip(turns, marks, strict=True)]
    literals, rest = [], _apply_template(tokenizer, marked)
    for mark in marks:
        literal, _, rest = rest.partition(mark)
        literals.append(literal)
    cursor, spans = len(literals[0]) if text.startswith(literals[0]) else -1, []
    for turn, after in zip(turns, [*literals[1:], rest], strict=True):
        versions = (turn.content, turn.content.strip())
        shown = next((c for c in versions if cursor >= 0 and text.startswith(c + after, cursor)), None)
        if shown is None:
            break
        spans.append((cursor, cursor + len(shown)))
        cursor += len(shown) + len(after)
    if cursor != len(text) or len(spans) != len(turns):
        raise DataError(
            "the chat template rewrites the messages, so their text cannot be found again: use rows with text"
        )
    return spans


def _strip(text: str, span: Span) -> Span:
    start, stop = span
    content = text[start:stop]
    left = len(content) - len(content.lstrip())
    return start + left, start + left + len(content.strip())
