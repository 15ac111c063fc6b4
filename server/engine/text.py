"""Text to tokens and back: prompts with offsets, and text that is certain while tokens still arrive."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

from jinja2 import TemplateError

from server.errors import InvalidRequest

_CONTEXT_TOKENS = 6
_UNFINISHED = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE (GPT-2): printable Latin-1 stands for itself, the rest from U+0100 on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
_LONGEST_CHARACTER = 4
_MOST_UNFINISHED = 64
"""Tokens that are read again and again while no character is complete; bytes that are no text would never be."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """Token ids with the character span ``[start, end)`` of each in ``text``."""

    ids: tuple[int, ...]
    text: str
    spans: tuple[tuple[int, int], ...]

    def positions_of(self, substring: str) -> tuple[int, ...]:
        """Positions of all tokens that overlap an occurrence of ``substring``; empty where it does not occur."""
        covered = bytearray(len(self.text))
        start = self.text.find(substring) if substring else -1
        while start >= 0:
            covered[start : start + len(substring)] = b"\1" * len(substring)
            start = self.text.find(substring, start + 1)
        covered_before = list(accumulate(covered, initial=0))
        return tuple(i for i, (a, b) in enumerate(self.spans) if covered_before[b] > covered_before[a])


class TextCodec:
    """The tokenizer and chat template of the served model; pure CPU work, to be done off the event loop."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._byte_level = _is_byte_level(tokenizer)
        self.vocab_size = vocab_size
        self.token_text = lru_cache(maxsize=65536)(self._token_text)

    @property
    def has_chat_template(self) -> bool:
        """Whether ``encode_chat`` can work."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> EncodedPrompt:
        """Tokens of a plain text. Raises InvalidRequest for text that is not valid Unicode."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest("the text holds a lone surrogate; send valid Unicode", param="prompt") from error
        found = self._tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
        return EncodedPrompt(tuple(found["input_ids"]), text, tuple(map(tuple, found["offset_mapping"])))

    def encode_chat(
        self,
        messages: Sequence[dict[str, str]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> EncodedPrompt:
        """Tokens of a chat, rendered by the model's own template in transformers' sandbox.

        Raises InvalidRequest where the model has no template or the template refuses the messages.
        """
        if not self.has_chat_template:
            raise InvalidRequest("this model has no chat template; use /v1/completions", param="messages")
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=add_generation_prompt and not continue_final_message,
                continue_final_message=continue_final_message,
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise InvalidRequest(f"the chat template refuses these messages: {error}", param="messages") from error
        return self.encode(text, add_special_tokens=False)

    def from_ids(self, ids: Sequence[int]) -> EncodedPrompt:
        """A prompt given as token ids. Raises InvalidRequest for an id outside the vocabulary."""
        for id_ in ids:
            if not 0 <= id_ < self.vocab_size:
                raise InvalidRequest(f"token id {id_} is not in [0, {self.vocab_size})", param="prompt")
        pieces = [self.token_text(id_) for id_ in ids]
        spans, end = [], 0
        for piece in pieces:
            spans.append((end, end + len(piece)))
            end += len(piece)
        return EncodedPrompt(tuple(ids), "".join(pieces), tuple(spans))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids, as the tokenizer writes it."""
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for, also where they are only a part of a character."""
        piece = str(self._tokenizer.convert_ids_to_tokens(token_id))
        if fallback := _BYTE_TOKEN.fullmatch(piece):
            return bytes([int(fallback[1], 16)])
        if self._byte_level and all(character in _BYTE_OF for character in piece):
            return bytes(_BYTE_OF[character] for character in piece)
        return self.token_text(token_id).encode("utf-8", "replace")

    def _token_text(self, token_id: int) -> str:
        """One token as it reads inside a text, its leading space included."""
        # A first token may lose its leading space, so it is read behind another one.
        anchor = self.decode([token_id], skip_special_tokens=False)
        doubled = self.decode([token_id, token_id], skip_special_tokens=False)
        return doubled[len(anchor) :] if doubled.startswith(anchor) and _UNFINISHED not in doubled else anchor


class RowText:
    """The generated text of one row: hands out only characters that later tokens cannot change.

    Tokens are decoded behind a few known ones, so that leading spaces come out as inside a text. Characters that may
    still become a stop string are held back.
    """

    def __init__(self, codec: TextCodec, prompt_ids: Sequence[int], stop: Sequence[str]) -> None:
        self._codec = codec
        self._ids = _whole_characters(codec, prompt_ids)
        self._read = len(self._ids)
        self._context = codec.decode(self._ids)
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Adds a token and returns the text that has become certain; sets ``stopped`` at a stop string."""
        self._ids.append(token_id)
        text = self._codec.decode(self._ids)
        unfinished = text.endswith(_UNFINISHED) and len(self._ids) - self._read < _MOST_UNFINISHED
        if unfinished or len(text) <= len(self._context):
            return ""
        fresh = text[len(self._context) :]
        # The tokens just read become the context of the next; what lies before them is no longer needed.
        self._ids = self._ids[self._read :]
        self._read = len(self._ids)
        self._context = self._codec.decode(self._ids)
        return self._release(fresh)

    def finish(self) -> str:
        """The text still held back, when no more tokens will come."""
        if self.stopped:
            return ""
        text = self._release(self._codec.decode(self._ids)[len(self._context) :])
        return text if self.stopped else text + self._held

    def _release(self, fresh: str) -> str:
        text = self._held + fresh
        if hits := [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stop if stop in text]:
            self.stopped = True
            # The one that is complete first, however the text was cut into tokens.
            return text[: min(hits)[1]]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _whole_characters(codec: TextCodec, prompt_ids: Sequence[int]) -> list[int]:
    """The last tokens of a prompt, begun where no character is cut: what follows would be misread with it."""
    ids: list[int] = []
    for count in range(_CONTEXT_TOKENS, _CONTEXT_TOKENS + _LONGEST_CHARACTER):
        ids = list(prompt_ids[-count:])
        if not codec.decode(ids).startswith(_UNFINISHED):
            break
    return ids


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return "ByteLevel" in repr(getattr(backend, "decoder", None))


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
