from __future__ import annotations

from pathlib import Path

import pytest

from mappers.artifact import ROWS_FILE, read_manifest, verify
from mappers.dataset import MAX_LINE, DatasetRow, dataset_rows, write_dataset
from mappers.errors import DataError

CREATED = "2026-01-02T03:04:05+00:00"


def test_rows_of_every_form_are_read_back(tmp_path: Path) -> None:
    lines = [
        b'{"prompt": "a", "completion": "b"}\r\n',
        b"\n",
        b'{"prompt": "only"}',
        b'{"text": "caf\xc3\xa9"}',
        b'{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "x"}]}',
        b'{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}',
    ]
    manifest = write_dataset(tmp_path, lines, name="rows", created_at=CREATED)
    assert manifest == verify(tmp_path)
    assert manifest.training == {"rows": 5}
    rows = list(dataset_rows(tmp_path))
    assert [row.answer for row in rows] == ["b", None, None, "x", None]
    assert [[turn.role for turn in row.turns] for row in rows] == [["user"], ["user"], [], ["user"], ["system", "user"]]
    assert list(dataset_rows(tmp_path / ROWS_FILE)) == rows


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"null",
        b'{"prompt": 1}',
        b'{"prompt": null}',
        b'{"completion": "x"}',
        b'{"prompt": "a", "text": "b"}',
        b'{"prompt": "a", "label": "b"}',
        b'{"messages": []}',
        b'{"messages": [{"role": "tool", "content": "x"}]}',
        b'{"messages": [{"role": "user", "content": ["x"]}]}',
        b'{"text": "\\ud800"}',
        b'{"text": "\xff"}',
        b'{"text": NaN}',
        b"[" * 10_000,
        b'{"text": "' + b"x" * MAX_LINE + b'"}',
    ],
)
def test_a_bad_line_is_named_with_its_remedy_and_nothing_is_kept(tmp_path: Path, line: bytes) -> None:
    with pytest.raises(DataError, match="line 2") as caught:
        write_dataset(tmp_path, [b'{"prompt": "fine"}', line], name="rows", created_at=CREATED)
    assert "write {" in caught.value.message or "split the row" in caught.value.message
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ROWS_FILE).write_bytes(b'{"prompt": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match="line 2"):
        list(dataset_rows(tmp_path))


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one row"):
        write_dataset(tmp_path, [b"\n", b" "], name="rows", created_at=CREATED)


def test_the_digest_of_the_rows_is_in_the_manifest(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_dataset(tmp_path / name, [b'{"text": "x"}'], name=name, created_at=CREATED)
    a, b = read_manifest(tmp_path / "a"), read_manifest(tmp_path / "b")
    assert a.files == b.files
    assert DatasetRow(text="x") in list(dataset_rows(tmp_path / "a"))
