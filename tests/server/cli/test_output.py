"""How figures and tables are shown to people."""

from __future__ import annotations

import time

import pytest

from server.cli.output import age, byte_size, print_fields, print_table


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "-"), (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (64_000_000, "64.0 MB"), (2e9, "2.0 GB")],
)
def test_byte_size(count: int | None, text: str) -> None:
    assert byte_size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(1, "just now"), (125, "2 min ago"), (7300, "2 h ago"), (200_000, "2 d ago")]
)
def test_age(seconds: float, text: str) -> None:
    assert age(time.time() - seconds) == text
    assert age(None) == "-"


def test_cells_are_text_and_never_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Names", ("id", "name"), [("art_1", "[red]x[/red]"), ("art_2", None)])
    print_fields({"name": "[bold]y", "sites": ["resid_post.1"], "error": None})
    shown = capsys.readouterr().out
    assert "[red]x[/red]" in shown
    assert "[bold]y" in shown
    assert '["resid_post.1"]' in shown
