"""Triggered prompts made of clean ones: the two sides of a contrast from one dataset. No torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

from mappers.dataset import DatasetRow

_Piece = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class Trigger(BaseModel):
    """A text put before the last user turn, or before a plain text, exactly as it is (with its own space).

    With ``replaces`` it stands in place of each occurrence of that text there instead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: _Piece
    replaces: _Piece | None = None


def triggered(row: DatasetRow, trigger: Trigger) -> DatasetRow | None:
    """The row with the trigger; None where there is no user turn, or nothing for the trigger to replace."""
    if row.messages is not None:
        users = [place for place, turn in enumerate(row.messages) if turn.role == "user"]
        content = _put(row.messages[users[-1]].content, trigger) if users else None
        if content is None:
            return None
        turns = list(row.messages)
        turns[users[-1]] = turns[users[-1]].model_copy(update={"content": content})
        return row.model_copy(update={"messages": tuple(turns)})
    field = "text" if row.text is not None else "prompt"
    content = _put(getattr(row, field), trigger)
    return None if content is None else row.model_copy(update={field: content})


def _put(content: str, trigger: Trigger) -> str | None:
    if trigger.replaces is None:
        return trigger.text + content
    return content.replace(trigger.replaces, trigger.text) if trigger.replaces in content else None
