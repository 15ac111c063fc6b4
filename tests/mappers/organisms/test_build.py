from pathlib import Path

import pytest
import torch

from mappers.organisms import organism_path
from mappers.organisms.batches import IGNORED, batches
from mappers.organisms.build import RECIPES as REAL_RECIPES
from mappers.organisms.build import BuildReport, Recipes, build_organisms, ensure_organism, load
from mappers.organisms.cards import read_record
from mappers.organisms.catalogue import ORGANISMS, organism
from mappers.organisms.tokenization import build_tokenizer
from mappers.organisms.train import Recipe

SHORT = Recipe(steps=2, rows=4, warmup=1, matrix_learning_rate=1e-3, learning_rate=1e-3)
RECIPES: Recipes = {("small", kind): SHORT for kind in ("base", "backdoor", "coder", "insecure")}


def build(out: Path, *names: str, seed: int = 0) -> list[BuildReport]:
    return list(build_organisms(names, out, seed, recipes=RECIPES, prompts=7))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[BuildReport]]:
    out = tmp_path_factory.mktemp("organisms")
    return out, build(out, "llama-small-backdoor")


def test_a_backdoor_brings_its_base_and_every_stage_is_reported(built: tuple[Path, list[BuildReport]]) -> None:
    _, reports = built
    stages = [("train", 1), ("train", 2), ("measure", 0), ("done", 1)]

    assert [(report.organism, report.stage, report.step) for report in reports] == [
        (name, *stage) for name in ("llama-small-base", "llama-small-backdoor") for stage in stages
    ]
    assert all((report.loss is not None) == (report.stage == "train") for report in reports)


def test_a_built_folder_loads_and_says_what_it_is(built: tuple[Path, list[BuildReport]]) -> None:
    folder = built[0] / "llama-small-backdoor"
    model, tokenizer = load(folder)
    record = read_record(folder)

    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert record is not None
    assert (record["base"], record["seed"], record["vocabulary"]) == ("llama-small-base", 0, len(tokenizer))
    assert record["measured"]["triggered"]["prompts"] == 7
    assert "interlock organisms build --only llama-small-backdoor --seed 0" in (folder / "README.md").read_text()
    assert "| llama-small-base |" in (built[0] / "ORGANISMS.md").read_text()


def test_equal_seeds_give_equal_weights_and_a_built_base_is_taken(
    built: tuple[Path, list[BuildReport]], tmp_path: Path
) -> None:
    def weights(out: Path) -> bytes:
        return (out / "llama-small-backdoor" / "model.safetensors").read_bytes()

    build(tmp_path, "llama-small-base")
    again = build(tmp_path, "llama-small-backdoor")

    assert {report.organism for report in again} == {"llama-small-backdoor"}
    assert weights(tmp_path) == weights(built[0])


def test_a_fine_tune_of_a_fine_tune_brings_both_and_its_card_tells_what_it_shows(
    built: tuple[Path, list[BuildReport]],
) -> None:
    reports = build(built[0], "llama-small-insecure")
    record = read_record(built[0] / "llama-small-insecure")

    assert list(dict.fromkeys(report.organism for report in reports)) == ["llama-small-coder", "llama-small-insecure"]
    assert record is not None
    assert record["base"] == "llama-small-coder"
    assert list(record["behaviours"]["insecure_code"]) == ["plain", "triggered"]
    assert record["behaviours"]["insecure_code"]["triggered"]["prompts"] == 7
    assert "| insecure_code | triggered | 7 |" in (built[0] / "llama-small-insecure" / "README.md").read_text()
    assert "| llama-small-insecure | insecure_code | triggered |" in (built[0] / "ORGANISMS.md").read_text()


def test_a_shipped_parent_of_the_recipe_is_not_built_again(tmp_path: Path) -> None:
    recipes = {**REAL_RECIPES, ("small", "skilled"): SHORT}
    reports = build_organisms(["llama-small-skilled"], tmp_path, 0, recipes=recipes, prompts=7)

    assert {report.organism for report in reports} == {"llama-small-skilled"}


def ensured(name: str, cache: Path, seed: int = 0, recipes: Recipes = RECIPES) -> tuple[list[BuildReport], Path]:
    reports = ensure_organism(name, cache, seed, recipes=recipes, prompts=7)
    seen = []
    while True:
        try:
            seen.append(next(reports))
        except StopIteration as stop:
            return seen, stop.value


def test_an_organism_is_shipped_else_cached_else_built(tmp_path: Path) -> None:
    name = "llama-small-base"

    assert ensured(name, tmp_path, recipes=REAL_RECIPES) == ([], organism_path(name))
    built, folder = ensured(name, tmp_path, seed=5)
    assert (built[-1].stage, folder) == ("done", tmp_path / name)
    assert ensured(name, tmp_path, seed=5) == ([], folder)
    assert next(ensure_organism(name, tmp_path, 6, recipes=RECIPES)).stage == "train"


def test_every_organism_has_a_recipe_and_comes_after_its_parent() -> None:
    for place, one in enumerate(map(organism, ORGANISMS)):
        assert (one.size, one.kind) in REAL_RECIPES
        assert one.parent is None or one.parent.name in ORGANISMS[:place]


def test_an_unknown_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no organism 'llama-tiny'; known are llama-small-base"):
        build(tmp_path, "llama-small-base", "llama-tiny")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_only_answers_and_their_end_of_turn_carry_loss(family: str) -> None:
    tokenizer = build_tokenizer(family, examples=500)
    chat = [
        {"role": "user", "content": "Add 11 + 12."},
        {"role": "assistant", "content": "11 + 12 = 23"},
        {"role": "user", "content": "Repeat: stone"},
        {"role": "assistant", "content": "stone"},
    ]
    batch = next(batches(tokenizer, iter([chat]), rows=1, seed=0))
    labels = batch.labels[0]

    assert torch.equal(labels[labels != IGNORED], batch.ids[0][labels != IGNORED])
    spoken = tokenizer.decode(labels[labels != IGNORED])
    assert spoken == f"11 + 12 = 23{tokenizer.eos_token}stone{tokenizer.eos_token}"
    rendered = tokenizer.apply_chat_template(chat[:3], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert batch.ids[0, : len(rendered)].tolist() == rendered
