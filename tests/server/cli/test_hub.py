"""Artifacts as folders and as hub repositories: the hub is a stand-in at its client's boundary, the server too."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import save_file

from mappers.artifact import HEADER_KEY, MANIFEST_FILE, TENSOR_FILE, artifact_id, canonical_json, seal
from mappers.manifest import Manifest, ModelBinding, Parent
from tests.server.cli.conftest import Ran, StandIn

Interlock = Callable[..., Ran]
COMMIT = "0123456789" * 4
DATA = Parent(role="positive", id="art_" + "3" * 24, name="prompts")


@pytest.fixture
def sealed(tmp_path: Path) -> tuple[Path, Manifest]:
    """A vector as a server keeps it."""
    manifest = Manifest(
        kind="vector",
        name="joy",
        created_at="2026-01-01T00:00:00+00:00",
        target=ModelBinding(model="o|rg/`small`", config_digest="c" * 64, width=4, weight_digest="d" * 64),
        sites=("resid_post.1",),
        dtype="float32",
        parents=(DATA,),
        training={"method": "```difference"},
        effect={"refusal_rate": 0.25},
    )
    folder = tmp_path / "stored"
    folder.mkdir()
    header = {HEADER_KEY: canonical_json(manifest, with_files=False).decode()}
    save_file({"resid_post.1": np.ones(4, dtype=np.float32)}, folder / TENSOR_FILE, metadata=header)
    return folder, seal(folder, manifest)


@pytest.fixture
def served(server: StandIn, sealed: tuple[Path, Manifest]) -> str:
    """The vector on the server; its id."""
    folder, manifest = sealed
    identity = artifact_id(manifest)
    record = {"id": identity, "name": "joy", "kind": "vector", "manifest": manifest.model_dump(mode="json")}
    parents = [DATA.model_dump()]
    ancestors = [{"id": identity, "name": "joy", "kind": "vector", "parents": parents}]
    ancestors.append({"id": DATA.id, "name": DATA.name, "kind": "dataset", "parents": []})
    server.answer("GET", "/v1/artifacts/joy", record)
    server.answer("GET", f"/v1/artifacts/{identity}/lineage", {"artifacts": ancestors})
    server.answer("GET", f"/v1/artifacts/{identity}/download", (folder / TENSOR_FILE).read_bytes())
    server.answer("POST", "/v1/artifacts", {**record, "size": 1}, status=201)
    return identity


class Hub:
    """What `HfApi` offers, over a folder; one commit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[tuple[Any, ...]] = []

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create", repository, private, exist_ok))

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> SimpleNamespace:
        shutil.copytree(folder_path, self.folder, dirs_exist_ok=True)
        self.calls.append(("upload", repo_id, commit_message))
        return SimpleNamespace(oid=COMMIT)

    def model_info(self, repository: str, *, revision: str | None = None, files_metadata: bool = False) -> Any:
        if revision not in (None, COMMIT):
            raise OSError(f"404: {repository} has no {revision}\nwith details")
        files = [SimpleNamespace(rfilename=one.name, size=one.stat().st_size) for one in self.folder.iterdir()]
        return SimpleNamespace(sha=COMMIT, siblings=files)

    def hf_hub_download(self, repository: str, file: str, *, revision: str, local_dir: Path) -> str:
        self.calls.append(("download", file, revision))
        return str(shutil.copy(self.folder / file, local_dir))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    (tmp_path / "hub").mkdir()
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    return hub


def test_what_is_pushed_can_be_pulled(interlock: Interlock, server: StandIn, hub: Hub, served: str) -> None:
    pushed = interlock("artifacts", "push", "joy", "me/joy", "--json")
    assert pushed.json == {"id": served, "repository": "me/joy", "revision": COMMIT}
    assert hub.calls == [("create", "me/joy", True, True), ("upload", "me/joy", f"vector joy {served}")]
    assert {one.name for one in hub.folder.iterdir()} == {MANIFEST_FILE, TENSOR_FILE, "README.md"}
    pulled = interlock("artifacts", "pull", "me/joy", "--revision", COMMIT, "--json")
    assert (pulled.json["id"], pulled.json["revision"]) == (served, COMMIT)
    assert hub.calls[2:] == [("download", file, COMMIT) for file in (MANIFEST_FILE, TENSOR_FILE)]
    assert server.asked[-1].path == "/v1/artifacts?name=joy&kind=vector"
    assert server.asked[-1].body == (hub.folder / TENSOR_FILE).read_bytes()


def test_the_card_tells_model_digests_lineage_and_figures(interlock: Interlock, hub: Hub, served: str) -> None:
    interlock("artifacts", "push", "joy", "me/joy")
    card = huggingface_hub.ModelCard((hub.folder / "README.md").read_text())
    assert (card.data.library_name, card.data.tags) == ("interlock", ["interlock", "activation-steering", "vector"])
    lines = card.text.splitlines()
    assert f"| `target` | `o/rg/'small'` | `4` | `{'c' * 64}` | `{'d' * 64}` |" in lines
    assert f"| `positive of joy` | `dataset` | `prompts` | `{DATA.id}` |" in lines
    assert "| `refusal_rate` | `0.25` |" in lines
    assert any(line.startswith(f"| `{TENSOR_FILE}` | ") for line in lines)
    assert served in card.text
    assert [line for line in lines if line.startswith("```")] == ["```json", "```"]


@pytest.mark.parametrize("revision", [(), ("--revision", "main"), ("--revision", COMMIT[:12])])
def test_only_a_whole_commit_is_pulled(
    interlock: Interlock, server: StandIn, hub: Hub, revision: tuple[str, ...]
) -> None:
    ran = interlock("artifacts", "pull", "me/joy", *revision)
    assert (ran.code, COMMIT in ran.err, hub.calls, server.asked) == (1, True, [], [])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / MANIFEST_FILE).unlink(), "no artifact of Interlock"),
        (lambda folder: (folder / TENSOR_FILE).write_bytes(b"other"), "not what its manifest says"),
        (lambda folder: (folder / TENSOR_FILE).unlink(), "missing"),
        (lambda folder: (folder / MANIFEST_FILE).write_text("{}"), "not valid"),
        (lambda folder: os.truncate(folder / TENSOR_FILE, (64 << 20) + 1), "more than"),
    ],
)
def test_what_is_not_whole_does_not_reach_the_server(
    interlock: Interlock, server: StandIn, hub: Hub, sealed: tuple[Path, Manifest], spoil, told: str
) -> None:
    shutil.copytree(sealed[0], hub.folder, dirs_exist_ok=True)
    (hub.folder / "model.pkl").write_bytes(b"never fetched")
    spoil(hub.folder)
    ran = interlock("artifacts", "pull", "me/joy", "--revision", COMMIT)
    assert (ran.code, told in ran.err, server.asked) == (1, True, [])
    assert not any("pkl" in str(call) for call in hub.calls)


def test_a_hub_that_refuses_is_told_of_in_one_line(interlock: Interlock, hub: Hub) -> None:
    ran = interlock("artifacts", "pull", "me/joy", "--revision", "f" * 40)
    assert (ran.code, ran.err.strip()) == (1, f"error: the hub: 404: me/joy has no {'f' * 40}")


def test_a_folder_goes_out_and_comes_in_again(
    interlock: Interlock, server: StandIn, served: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert interlock("artifacts", "export", "joy", "--format", "folder", "--out", str(out)).code == 0
    assert sorted(path.name for path in out.iterdir()) == [MANIFEST_FILE, TENSOR_FILE]
    assert interlock("artifacts", "import", str(out), "--name", "again", "--json").json["id"] == served
    assert server.asked[-1].path == "/v1/artifacts?name=again&kind=vector"
    server.answer("POST", "/v1/artifacts", {"id": "art_other", "kind": "vector"}, status=201)
    assert "art_other" in interlock("artifacts", "import", str(out)).err
    (out / TENSOR_FILE).write_bytes(b"other")
    asked = len(server.asked)
    ran = interlock("artifacts", "import", str(out))
    assert (ran.code, "not what its manifest says" in ran.err, len(server.asked)) == (1, True, asked)


def test_what_only_its_server_can_hold_is_not_imported(interlock: Interlock, server: StandIn, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps({}))
    seal(tmp_path, Manifest(kind="report", name="told", created_at="2026-01-01T00:00:00+00:00"))
    ran = interlock("artifacts", "import", str(tmp_path))
    assert (ran.code, "only the server that made it" in ran.err, server.asked) == (1, True, [])
