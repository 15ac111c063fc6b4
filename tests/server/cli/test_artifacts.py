"""``interlock artifacts`` against canned answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.cli.conftest import Ran, StandIn

Interlock = Callable[..., Ran]

SAFE = {"id": "art_1", "name": "safe", "kind": "switch", "size": 1536, "created_at": 0.0}


def test_list_by_kind(interlock: Interlock, server: StandIn) -> None:
    server.answer("GET", "/v1/artifacts", {"object": "list", "data": [SAFE]})
    assert "1.5 kB" in interlock("artifacts", "list", "--kind", "switch").out
    assert server.asked[0].path == "/v1/artifacts?kind=switch"
    assert interlock("artifacts", "list", "--json").json["data"] == [SAFE]
    assert server.asked[1].path == "/v1/artifacts"


def test_show(interlock: Interlock, server: StandIn) -> None:
    server.answer("GET", "/v1/artifacts/safe", SAFE)
    assert "switch" in interlock("artifacts", "show", "safe").out
    assert interlock("artifacts", "show", "safe", "--json").json == SAFE


def test_import_sends_the_bytes_under_the_name_of_the_file(
    interlock: Interlock, server: StandIn, tmp_path: Path
) -> None:
    server.answer("POST", "/v1/artifacts", SAFE, status=201)
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'{"text": "hello"}\n')
    assert interlock("artifacts", "import", str(file), "--json").json["id"] == "art_1"
    assert (server.asked[0].path, server.asked[0].body) == ("/v1/artifacts?name=prompts", file.read_bytes())
    assert "art_1" in interlock("artifacts", "import", str(file), "--name", "other").out
    assert server.asked[1].path == "/v1/artifacts?name=other"
    assert {asked.content_type for asked in server.asked} == {"application/octet-stream"}


@pytest.mark.parametrize(("name", "options"), [("book.txt", ()), ("BOOK.TXT", ()), ("notes.md", ("--text",))])
def test_plain_text_is_sent_as_such(
    interlock: Interlock, server: StandIn, tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    server.answer("POST", "/v1/artifacts", SAFE, status=201)
    (tmp_path / name).write_text("Once upon a time")
    interlock("artifacts", "import", str(tmp_path / name), *options)
    assert server.asked[0].content_type == "text/plain"


def test_import_of_nothing(interlock: Interlock, server: StandIn, tmp_path: Path) -> None:
    assert interlock("artifacts", "import", str(tmp_path / "none")).code == 2
    assert server.asked == []


@pytest.mark.parametrize(("kind", "suffix"), [("switch", ".safetensors"), ("dataset", ".jsonl")])
def test_export_writes_a_file_once(
    interlock: Interlock, server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    server.answer("GET", "/v1/artifacts/safe", {**SAFE, "kind": kind})
    server.answer("GET", "/v1/artifacts/art_1/download", b"content")
    assert interlock("artifacts", "export", "safe", "--json").json["size"] == 7
    assert (tmp_path / f"safe{suffix}").read_bytes() == b"content"
    refused = interlock("artifacts", "export", "safe")
    assert (refused.code, "--force" in refused.err) == (1, True)
    assert interlock("artifacts", "export", "safe", "--force").code == 0


def test_export_as_gguf(interlock: Interlock, server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    server.answer("GET", "/v1/artifacts/safe", {**SAFE, "kind": "vector"})
    server.answer("GET", "/v1/artifacts/art_1/download", b"GGUF")
    assert interlock("artifacts", "export", "safe", "--format", "gguf", "--json").json["path"] == "safe.gguf"
    assert server.asked[-1].path == "/v1/artifacts/art_1/download?format=gguf"
    assert interlock("artifacts", "export", "safe", "--format", "onnx").code == 2


def test_activations_are_exported_as_a_folder(interlock: Interlock, server: StandIn, tmp_path: Path) -> None:
    names = ["activations-00000.safetensors", "activations-00001.safetensors"]
    manifest = {"kind": "activations", "files": {name: {"sha256": "0" * 64, "size": 7} for name in names}}
    server.answer("GET", "/v1/artifacts/acts", {**SAFE, "kind": "activations", "name": "acts", "manifest": manifest})
    server.answer("GET", "/v1/artifacts/art_1/download", b"content")
    folder = tmp_path / "acts"
    assert interlock("artifacts", "export", "acts", "--out", str(folder), "--json").json["size"] > 14
    assert sorted(path.name for path in folder.iterdir()) == [*names, "manifest.json"]
    assert json.loads((folder / "manifest.json").read_text()) == manifest


def test_a_failed_export_leaves_no_file(interlock: Interlock, server: StandIn, tmp_path: Path) -> None:
    server.answer("GET", "/v1/artifacts/safe", SAFE)
    server.answer("GET", "/v1/artifacts/art_1/download", {"error": {"message": "gone"}}, status=404)
    ran = interlock("artifacts", "export", "safe", "--out", str(tmp_path / "file"))
    assert (ran.code, ran.err.strip()) == (1, "error: gone [request req-1]")
    assert list(tmp_path.iterdir()) == []


def test_delete(interlock: Interlock, server: StandIn) -> None:
    server.answer("DELETE", "/v1/artifacts/safe", {})
    assert interlock("artifacts", "delete", "safe", "--json").json == {"deleted": "safe"}
    assert "deleted safe" in interlock("artifacts", "delete", "safe").out


def test_a_further_file_of_a_report_is_exported_under_its_own_name(
    interlock: Interlock, server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server.answer("GET", "/v1/artifacts/safe", {**SAFE, "kind": "report"})
    server.answer("GET", "/v1/artifacts/art_1/download", b"content")
    assert interlock("artifacts", "export", "safe", "--file", "heatmap.png").code == 0
    assert (tmp_path / "safe-heatmap.png").read_bytes() == b"content"
    assert interlock("artifacts", "export", "safe").code == 0
    assert (tmp_path / "safe.json").exists()
