"""Nothing of a model's folder is run, and nothing but safetensors is read."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from mappers.loading import ModelLoadError, load_model, sketch_model
from mappers.organisms import organism_path

CODE = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    shutil.copytree(organism_path("llama-small-base"), place)
    (place / "evil.py").write_text(CODE)
    return place


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_an_ordinary_folder_is_loaded_frozen(folder):
    loaded = load_model(str(folder))
    assert loaded.name == "model"
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert next(loaded.model.parameters()).dtype == torch.float32
    assert len(loaded.weight_digest or "") == 64


@pytest.mark.parametrize("read", [load_model, sketch_model])
@pytest.mark.parametrize("model_type", ["llama", "unheard_of"])
def test_code_of_a_model_is_refused_and_not_run(folder, read, model_type):
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit(folder / "config.json", auto_map=auto_map, model_type=model_type)
    with pytest.raises(ModelLoadError, match="takes --trust-remote-code"):
        read(str(folder))
    assert not list(folder.rglob("ran"))


def test_code_of_a_tokenizer_is_not_run(folder):
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", "evil.Fast"]})
    with suppress(ModelLoadError):
        load_model(str(folder))
    assert not list(folder.rglob("ran"))


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cbuiltins\nprint\n")
    with pytest.raises(ModelLoadError, match="safetensors"):
        load_model(str(folder))


@pytest.mark.parametrize("place", ["/nowhere/at/all", "./nowhere", "~/nowhere-at-all"])
def test_a_folder_that_is_not_there_is_never_asked_for_on_the_hub(place, monkeypatch):
    monkeypatch.setattr(
        "mappers.loading.PreTrainedConfig.get_config_dict", lambda *_args, **_options: pytest.fail("asked")
    )
    with pytest.raises(ModelLoadError, match="no folder of that name"):
        load_model(place)
