"""A dataset: an artifact whose ``rows.jsonl`` holds chats, prompts with completions, or plain texts. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError, model_validator

from mappers.artifact import ROWS_FILE, seal, staged_file
from mappers.errors import DataError
from mappers.manifest import Manifest

MAX_LINE = 1 << 18
MAX_ROWS = 1_000_000
MAX_BYTES = 1 << 30

_FORMS = '{"messages": [{"role", "content"}]}, {"prompt", "completion"} or {"text"}'

Content = Annotated[str, StringConstraints(max_length=MAX_LINE)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(_Part):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: Content


class DatasetRow(_Part):
    """One row in exactly one of three forms: ``messages``, ``prompt`` (with or without ``completion``) or ``text``.

    A chat whose last turn is the assistant's, and a prompt with a completion, carry an answer; others do not. A text is
    read as it stands, without a chat template.
    """

    messages: tuple[Message, ...] | None = Field(default=None, min_length=1, max_length=1024)
    prompt: Content | None = None
    completion: Content | None = None
    text: Content | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if sum(part is not None for part in (self.messages, self.prompt, self.text)) != 1:
            raise ValueError(f"a row is one of {_FORMS}")
        if self.completion is not None and self.prompt is None:
            raise ValueError("completion belongs to prompt")
        return self

    @property
    def turns(self) -> tuple[Message, ...]:
        """The turns before the answer, a prompt being one user turn; empty for a text."""
        if self.messages is not None:
            return self.messages[:-1] if self.messages[-1].role == "assistant" else self.messages
        return () if self.prompt is None else (Message(role="user", content=self.prompt),)

    @property
    def answer(self) -> str | None:
        """What the assistant says last, or None where the row leaves it open."""
        if self.messages is not None:
            last = self.messages[-1]
            return last.content if last.role == "assistant" else None
        return self.completion


def dataset_rows(path: Path) -> Iterator[DatasetRow]:
    """Reads a ``rows.jsonl`` (or the folder that holds one) row by row, blank lines passed over.

    Raises DataError naming the line and the remedy.
    """
    with (path / ROWS_FILE if path.is_dir() else path).open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE + 2):
            number += 1
            if line.strip():
                yield parse_row(line, number)


def parse_row(line: bytes, number: int) -> DatasetRow:
    """One JSON line as a row; ``number`` (from 1) is for the message of the DataError it may raise."""
    if len(line.rstrip(b"\r\n")) > MAX_LINE:
        raise DataError(f"line {number} is longer than {MAX_LINE} bytes: split the row")
    try:
        return DatasetRow.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"line {number}: {f'{place}: ' if place else ''}{first['msg']}; write {_FORMS}") from error


def write_dataset(
    folder: Path,
    lines: Iterable[bytes],
    *,
    name: str,
    created_at: str,
    facts: Mapping[str, JsonValue] = MappingProxyType({}),
) -> Manifest:
    """Checks JSON lines one by one, writes them as ``rows.jsonl`` with a manifest, and returns the manifest.

    ``created_at`` is ISO 8601 with a time zone; ``facts`` say where the rows come from. Raises DataError for a bad
    line, no rows, over ``MAX_ROWS`` rows or ``MAX_BYTES`` bytes; nothing but an empty folder is left then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = size = 0
    with staged_file(folder, ROWS_FILE) as path, path.open("wb") as file:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            parse_row(line, number)
            rows, size = rows + 1, size + len(line) + 1
            if rows > MAX_ROWS or size > MAX_BYTES:
                raise DataError(f"a dataset holds at most {MAX_ROWS} rows and {MAX_BYTES} bytes: split it")
            file.write(line.rstrip(b"\r\n") + b"\n")
        if rows == 0:
            raise DataError(f"a dataset needs at least one row: {_FORMS}")
    return seal(folder, Manifest(kind="dataset", name=name, created_at=created_at, training={"rows": rows, **facts}))
