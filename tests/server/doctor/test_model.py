"""A model's folder before it is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mappers.organisms import organism_path
from server.doctor import model
from server.doctor.model import examine_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(organism_path("llama-small-base"), tmp_path / "model"))


def test_an_organism_can_be_served(folder: Path) -> None:
    found = {one.check: one for one in examine_model(str(folder))}
    assert {name: one.status for name, one in found.items()} == {"model": "ok", "weights": "ok", "tokenizer": "ok"}
    assert found["model"].found == "LlamaForCausalLM"


def test_a_hub_id_is_taken_as_one_and_a_missing_folder_is_not(tmp_path: Path) -> None:
    assert [one.status for one in examine_model("some/model")] == ["ok"]
    assert [one.status for one in examine_model(str(tmp_path / "none"))] == ["fail"]


def _with_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))


def _without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = folder / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(settings.read_text()).items() if key != "chat_template"}
    settings.write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("harm", "check", "state"),
    [
        (_with_code, "model", "warn"),
        (lambda folder: (folder / "config.json").write_text("["), "model", "fail"),
        (lambda folder: (folder / "model.safetensors").unlink(), "weights", "fail"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer", "fail"),
        (_without_template, "tokenizer", "warn"),
    ],
)
def test_what_is_missing_is_named_with_a_remedy(
    folder: Path, harm: Callable[[Path], object], check: str, state: str
) -> None:
    harm(folder)
    (one,) = [one for one in examine_model(str(folder)) if one.check == check]
    assert one.status == state
    assert one.remedy


def test_weights_that_may_not_fit_are_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "free_memory", lambda _device: 1000)
    found = {one.check: one for one in examine_model(str(folder))}
    assert found["weights"].status == "warn"
    assert "int8" in found["weights"].remedy
