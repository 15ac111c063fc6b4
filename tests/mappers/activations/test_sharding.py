"""What lies in shards, and that a collection that is killed anywhere ends in the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mappers.activations.collect import collect
from mappers.activations.masks import Mask, has_text
from mappers.activations.sharding import LEDGER_FILE, Recipe, read_ledger, seal_activations, write_shards
from mappers.activations.shards import StoredTokens, read_activations, shard_name
from mappers.dataset import DatasetRow
from mappers.errors import ArtifactCorrupt, ArtifactMismatch, DataError
from mappers.loading import LoadedModel
from mappers.manifest import Manifest, ModelBinding
from mappers.rendering import Rendered, render
from mappers.sites import Site

PROMPTS = ["the quick brown fox", "", "naïve café 🙂", "What is the capital of Averon?", "a", "a lamp", "12 + 34"]
SITES = (Site(0), Site(2))
RECIPE = Recipe(SITES, batch_size=2, shard_bytes=4000)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def loaded(make_llama: Callable[..., LoadedModel]) -> LoadedModel:
    return make_llama(0)


@pytest.fixture(scope="module")
def texts(loaded: LoadedModel) -> dict[int, Rendered]:
    """Every other row of a dataset: the others were left out."""
    return {2 * i: render(loaded.tokenizer, DatasetRow(prompt=prompt)) for i, prompt in enumerate(PROMPTS)}


def manifest(loaded: LoadedModel, recipe: Recipe) -> Manifest:
    return Manifest(
        kind="activations",
        name="acts",
        created_at="2026-01-02T03:04:05+00:00",
        target=ModelBinding(model=loaded.name, config_digest=loaded.config_digest, width=loaded.stack.width),
        sites=tuple(map(str, recipe.sites)),
        dtype=recipe.dtype,
    )


def finish(loaded: LoadedModel, texts: dict[int, Rendered], recipe: Recipe, folder: Path) -> Path:
    assert list(write_shards(loaded, texts, recipe, folder / "work"))
    seal_activations(folder / "work", folder / "sealed", manifest(loaded, recipe))
    return folder / "sealed"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def by_token(batches: Iterator[StoredTokens], site: Site) -> dict[tuple[int, int], tuple[int, torch.Tensor]]:
    found = {}
    for batch in batches:
        for place in range(len(batch.position_N)):
            key = (int(batch.text_index_N[place]), int(batch.position_N[place]))
            assert key not in found
            found[key] = (int(batch.token_ids_N[place]), batch.hidden[site][place])
    return found


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_token_is_stored_where_it_belongs(loaded, texts, tmp_path, dtype) -> None:
    recipe = replace(RECIPE, dtype=dtype, shard_bytes=RECIPE.shard_bytes * (1 if dtype == "float16" else 2))
    folder = finish(loaded, texts, recipe, tmp_path)
    assert len(list(folder.glob("*.safetensors"))) > 2
    stored = {site: by_token(read_activations(folder, tokens=5), site) for site in SITES}
    assert stored[Site(0)].keys() == {(row, i) for row, text in texts.items() for i in range(len(text.ids))}
    for row, text in texts.items():
        (batch,) = collect(loaded, SITES, [text.ids], batch_size=1)
        for site in SITES:
            for position, token in enumerate(text.ids):
                found, h_D = stored[site][row, position]
                assert found == token
                assert h_D.dtype == getattr(torch, dtype)
                assert torch.allclose(h_D.float(), batch.hidden[site][0, position], rtol=2e-3, atol=2e-3)


def test_files_are_bounded_and_readers_give_bounded_batches(loaded, texts, tmp_path) -> None:
    folder = finish(loaded, texts, RECIPE, tmp_path)
    for path in folder.glob("*.safetensors"):
        header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        assert path.stat().st_size - header <= RECIPE.shard_bytes
    batches = list(read_activations(folder, sites=[Site(2)], tokens=3))
    assert {len(batch.position_N) for batch in batches} <= {1, 2, 3}
    assert all(set(batch.hidden) == {Site(2)} for batch in batches)


@pytest.mark.parametrize("after", range(1, 6))
def test_a_killed_collection_ends_in_the_same_bytes(loaded, texts, tmp_path, after, monkeypatch) -> None:
    whole = contents(finish(loaded, texts, RECIPE, tmp_path / "whole"))
    run = write_shards(loaded, texts, RECIPE, tmp_path / "work")
    for _ in range(after):
        next(run)
    run.close()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*.safetensors")}
    assert contents(finish(loaded, texts, RECIPE, tmp_path)) == whole
    ledger = {shard_name(number) for number in range(len(read_ledger(tmp_path / "work").shards))}
    assert kept.keys() <= ledger
    assert all((tmp_path / "work" / name).stat().st_mtime_ns == at for name, at in kept.items())


def test_a_kill_between_a_shard_and_its_entry_costs_that_shard_only(loaded, texts, tmp_path, monkeypatch) -> None:
    whole = contents(finish(loaded, texts, RECIPE, tmp_path / "whole"))

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("mappers.activations.sharding.describe_file", killed)
        with pytest.raises(Killed):
            list(write_shards(loaded, texts, RECIPE, tmp_path / "work"))
    assert [path.name for path in (tmp_path / "work").iterdir()] == [shard_name(0)]
    assert contents(finish(loaded, texts, RECIPE, tmp_path)) == whole


def test_damaged_shards_are_made_again(loaded, texts, tmp_path) -> None:
    whole = contents(finish(loaded, texts, RECIPE, tmp_path / "whole"))
    list(write_shards(loaded, texts, RECIPE, tmp_path / "work"))
    damaged = tmp_path / "work" / shard_name(1)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    assert contents(finish(loaded, texts, RECIPE, tmp_path)) == whole


def test_a_kill_while_sealing_costs_nothing(loaded, texts, tmp_path) -> None:
    whole = contents(finish(loaded, texts, RECIPE, tmp_path / "whole"))
    (tmp_path / "sealed").mkdir()
    (tmp_path / "sealed" / shard_name(0)).write_bytes(b"half")
    assert contents(finish(loaded, texts, RECIPE, tmp_path)) == whole


def test_masked_tokens_are_counted_and_left_out(loaded, texts, tmp_path) -> None:
    norms = torch.cat(
        [
            b.real(Site(2)).norm(dim=-1)
            for b in collect(loaded, [Site(2)], [t.ids for t in texts.values()], batch_size=1)
        ]
    )
    ratio = float((norms / norms.median()).sort().values[-3:].mean())
    recipe = replace(RECIPE, sites=(Site(2),), mask=Mask(massive=ratio, special_tokens=True))
    folder = finish(loaded, texts, recipe, tmp_path)
    ledger = read_ledger(tmp_path / "work")
    assert ledger.masked["special_tokens"] == sum(has_text(text).count(False) for text in texts.values())
    limit = ledger.limits["resid_post.2"]
    assert ledger.masked["massive.resid_post.2"] == int((norms > limit).sum()) > 0
    stored = by_token(read_activations(folder), Site(2))
    assert len(stored) == ledger.tokens
    assert all(has_text(texts[row])[position] for row, position in stored)
    assert all(float(h_D.float().norm()) <= limit * 1.001 for _, h_D in stored.values())


def test_another_collection_in_the_folder_is_refused(loaded, texts, tmp_path) -> None:
    list(write_shards(loaded, texts, RECIPE, tmp_path))
    for other in (replace(RECIPE, batch_size=3), replace(RECIPE, sites=SITES[:1]), replace(RECIPE, mask=Mask(9.0))):
        with pytest.raises(DataError, match="another collection"):
            next(write_shards(loaded, texts, other, tmp_path))


def test_what_does_not_fit_is_refused(loaded, texts, tmp_path) -> None:
    with pytest.raises(DataError, match="max_length"):
        next(write_shards(loaded, texts, replace(RECIPE, shard_bytes=500), tmp_path))
    with pytest.raises(DataError, match="at most 400"):
        next(write_shards(loaded, dict.fromkeys(range(450), texts[8]), replace(RECIPE, shard_bytes=1000), tmp_path))
    with pytest.raises(DataError, match="no text has a token"):
        next(write_shards(loaded, {}, RECIPE, tmp_path))
    with pytest.raises(ArtifactCorrupt, match="collect"):
        seal_activations(tmp_path, tmp_path / "sealed", manifest(loaded, RECIPE))


def test_values_beyond_float16_are_refused(make_llama, texts, tmp_path) -> None:
    loaded = make_llama(0)
    handle = loaded.stack.blocks[2].register_forward_hook(lambda _module, _args, output: output * 1e6)
    with pytest.raises(DataError, match="float32"):
        list(write_shards(loaded, texts, RECIPE, tmp_path / "half"))
    single = replace(RECIPE, dtype="float32", shard_bytes=2 * RECIPE.shard_bytes)
    assert list(write_shards(loaded, texts, single, tmp_path / "single"))
    handle.remove()


def test_readers_refuse_what_is_not_there(loaded, texts, tmp_path) -> None:
    folder = finish(loaded, texts, RECIPE, tmp_path)
    with pytest.raises(ArtifactMismatch, match=r"resid_post\.1"):
        next(read_activations(folder, sites=[Site(1)]))
    shard = folder / shard_name(1)
    shard.unlink()
    shard.write_bytes((folder / shard_name(0)).read_bytes()[:-1])
    with pytest.raises(ArtifactCorrupt):
        next(read_activations(folder))
    with pytest.raises(ArtifactCorrupt, match="cannot be read"):
        list(read_activations(folder, verify_files=False))


def test_the_ledger_is_no_part_of_the_artifact(loaded, texts, tmp_path) -> None:
    folder = finish(loaded, texts, RECIPE, tmp_path)
    assert not (folder / LEDGER_FILE).exists()
    assert (folder / "manifest.json").exists()
