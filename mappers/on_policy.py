"""Data without labels: a model writes prompts and answers of its own, so that a fit sees what the model is used to.

With a chat template the model first goes on from where a user's turn opens, which makes it write what users ask
(Magpie, arXiv 2406.08464), and then answers that prompt. Without one it writes a text from the beginning-of-text token
on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mappers.dataset import DatasetRow, Message
from mappers.errors import DataError
from mappers.generation import continue_ids
from mappers.loading import LoadedModel, eos_token_ids
from mappers.rendering import render

_MARK = "\ue000"


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws rows from ``loaded`` at ``temperature``; a prompt and an answer have at most ``max_new_tokens`` each."""

    loaded: LoadedModel
    temperature: float
    max_new_tokens: int

    def rows(self, count: int, seed: int) -> list[DatasetRow]:
        """At most ``count`` rows, drawn in one batch: those in which the model wrote nothing are left out.

        Equal arguments give equal rows. Raises DataError for a model without a token to start from, or whose chat
        template leaves the user's words out.
        """
        tokenizer = self.loaded.tokenizer
        if tokenizer.chat_template is None:
            return [DatasetRow(text=text) for text in self._write([self._first_token()] * count, seed) if text]
        opening, closing = _user_turn(tokenizer)
        start = tokenizer(opening, add_special_tokens=False)["input_ids"] or self._first_token()
        written = self._write([start] * count, seed)
        prompts = [text.partition(closing)[0].strip() if closing else text for text in written]
        asked = [prompt for prompt in prompts if prompt]
        ids = [render(tokenizer, DatasetRow(prompt=prompt)).ids for prompt in asked]
        answers = self._write(ids, seed + 1) if ids else []
        return [_chat(prompt, answer) for prompt, answer in zip(asked, answers, strict=True) if answer]

    def _write(self, starts: Sequence[Sequence[int]], seed: int) -> list[str]:
        """What the model writes up to its first special token, without white space around it."""
        tokenizer = self.loaded.tokenizer
        special = {*tokenizer.all_special_ids, *eos_token_ids(self.loaded.model)}
        special |= {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        written = continue_ids(
            self.loaded,
            starts,
            ends=special,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=seed,
        )
        return [str(tokenizer.decode([token for token in ids if token not in special])).strip() for ids in written]

    def _first_token(self) -> Sequence[int]:
        candidates = (self.loaded.tokenizer.bos_token_id, *sorted(eos_token_ids(self.loaded.model)))
        first = next((token for token in candidates if token is not None), None)
        if first is None:
            raise DataError("the model names no token that a text could begin with: import a dataset instead")
        return [first]


def _user_turn(tokenizer: Any) -> tuple[str, str]:
    """What the chat template puts before and after what a user says first (the latter without white space around)."""
    turn = [{"role": "user", "content": _MARK}]
    text = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=False))
    opening, mark, closing = text.partition(_MARK)
    if not mark:
        raise DataError("the chat template leaves out what the user says: import a dataset instead")
    return opening, closing.strip()


def _chat(prompt: str, answer: str) -> DatasetRow:
    return DatasetRow(messages=(Message(role="user", content=prompt), Message(role="assistant", content=answer)))
