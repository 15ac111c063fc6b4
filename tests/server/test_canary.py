"""Every artifact is tried at start, remembered, and refused where it no longer does what it did."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from mappers.manifest import Manifest, ModelBinding
from mappers.mapper_config import MapperConfig
from mappers.sites import Site
from mappers.tensors import save_switch, save_vector
from server import canary
from server.api.services import Services
from server.doctor.data import examine_data
from server.engine.engine import Engine
from server.serve import running_services
from server.settings import read_settings
from tests.server.engine.interventions import mapper
from tests.server.listening import listening

WIDTH = 32


@contextmanager
def serving(model: Path, data: Path, **options: Any) -> Iterator[tuple[Services, httpx.Client]]:
    given = {"model": str(model), "data_dir": data, "device": "cpu", "dtype": "float32", "threads": 1}
    chosen = read_settings(given | options, {})
    with (
        running_services(chosen, threading.Event()) as services,
        listening(services) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield services, client


def register(
    services: Services, name: str, write: Callable[[Path, Manifest], object], kind: str = "switch", **target: Any
) -> str:
    info = services.engine.info
    binding = {"model": info.name, "config_digest": info.config_digest, "width": WIDTH} | target
    config = MapperConfig(kind="autoencoder", d_source=WIDTH, d_target=WIDTH, residual=True)
    manifest = Manifest(
        kind=kind,
        name=name,
        created_at="2026-01-01T00:00:00+00:00",
        target=ModelBinding(**binding),
        sites=(str(Site(1)),),
        mapper=config if kind == "switch" else None,
        dtype="float32",
    )
    folder = services.artifacts.new_staging()
    write(folder, manifest)
    return services.artifacts.register(folder, name=name, owner="operator").id


def working(folder: Path, manifest: Manifest) -> None:
    save_switch(folder, {Site(1): mapper(seed=1)}, manifest)


def scaled(factor: float) -> Callable[[Path, Manifest], object]:
    def write(folder: Path, manifest: Manifest) -> None:
        made = mapper(seed=1)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.mul_(factor)
        save_switch(folder, {Site(1): made}, manifest)

    return write


def vector(value: float) -> Callable[[Path, Manifest], object]:
    return lambda folder, manifest: save_vector(folder, {Site(1): torch.full((WIDTH,), value)}, manifest)


def ask(client: httpx.Client, **fields: Any) -> httpx.Response:
    body = {"model": "tiny", "prompt": "Hello", "max_tokens": 2, "temperature": 0}
    return client.post("/v1/completions", json=body | fields)


def test_what_was_seen_first_is_kept_and_seen_again_at_every_start(model_folder, tmp_path):
    with serving(model_folder, tmp_path) as (services, _):
        switch = register(services, "safe", working)
        joy = register(services, "joy", vector(0.3), "vector")
        register(services, "foreign", vector(0.3), "vector", config_digest="f" * 64)
        assert not list((tmp_path / "canaries").glob("*"))
    with serving(model_folder, tmp_path):
        pass
    files = {file.name: file.read_text() for file in (tmp_path / "canaries").iterdir()}
    assert files.keys() == {f"{switch}.float32.cpu.json", f"{joy}.float32.cpu.json"}
    seen = [json.loads(text) for text in files.values()]
    assert all(len(one["logprobs"]) == 11 + 20 and one["failed"] == "" for one in seen)
    assert seen[0]["logprobs"] != seen[1]["logprobs"]
    with serving(model_folder, tmp_path) as (services, client):
        assert client.get("/health/ready").status_code == 200
        assert ask(client, safety_switch="safe").status_code == 200
        assert services.catalog.refused == {}
    assert {file.name: file.read_text() for file in (tmp_path / "canaries").iterdir()} == files


def test_an_artifact_that_does_something_else_is_refused_until_its_record_is_removed(model_folder, tmp_path):
    with serving(model_folder, tmp_path) as (services, _):
        switch = register(services, "safe", working)
        register(services, "joy", vector(0.3), "vector")
    with serving(model_folder, tmp_path):
        pass
    (file,) = (tmp_path / "canaries").glob(f"{switch}.*")
    kept = json.loads(file.read_text())
    file.write_text(json.dumps(kept | {"logprobs": [value + 0.01 for value in kept["logprobs"]]}))
    with serving(model_folder, tmp_path) as (_, client):
        refused = ask(client, safety_switch="safe")
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "artifact_unusable"
        assert "failed its canary" in refused.json()["error"]["message"]
        assert file.name in refused.json()["error"]["message"]
        assert ask(client, steering=[{"vector": "joy"}]).status_code == 200
        assert client.get("/health/ready").status_code == 200, "nothing that is on by default needs it"
    (finding,) = [one for one in examine_data(tmp_path) if one.check == "canaries"]
    assert (finding.status, "1 of 2 failed" in finding.found) == ("fail", True)
    file.unlink()
    with serving(model_folder, tmp_path) as (_, client):
        assert ask(client, safety_switch="safe").status_code == 200
    assert json.loads(file.read_text()) == kept
    (finding,) = [one for one in examine_data(tmp_path) if one.check == "canaries"]
    assert (finding.status, finding.found) == ("ok", "2, as they were at first")


@pytest.mark.parametrize("by", ["profile", "switch"])
def test_a_server_is_not_ready_while_its_default_failed(model_folder, tmp_path, by):
    with serving(model_folder, tmp_path) as (services, client):
        switch = register(services, "safe", scaled(0))
        assert client.put("/v1/profiles/guarded", json={"safety_switch": "safe", "shared": True}).is_success
        if by == "profile":
            document = {"default_profiles": {"tiny": "guarded"}}
            assert client.put("/v1/policy", json={"document": document, "version": 0}).is_success
    options = {"switch": "safe"} if by == "switch" else {}
    with serving(model_folder, tmp_path, **options) as (services, client):
        answer = client.get("/health/ready")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "default_unavailable")
        assert "exactly what it does without" in services.catalog.refused[switch]
        assert ask(client).status_code == 503


def test_what_only_a_profile_needs_is_refused_to_its_users_alone(model_folder, tmp_path):
    with serving(model_folder, tmp_path) as (services, client):
        register(services, "safe", scaled(0))
        assert client.put("/v1/profiles/mine", json={"safety_switch": "safe"}).is_success
    with serving(model_folder, tmp_path) as (services, client):
        assert client.get("/health/ready").status_code == 200
        assert ask(client).status_code == 200
        assert ask(client, model="tiny:mine").status_code == 400
        assert client.delete("/v1/profiles/mine").is_success
        assert client.delete("/v1/artifacts/safe").is_success
        assert services.catalog.refused == {}


def test_vectors_are_tried_whatever_their_length_and_the_bound_on_strengths(model_folder, tmp_path):
    lengths = {"tiny": 1e-12, "ordinary": 0.3, "long": 1e15, "nothing": 0.0}
    with serving(model_folder, tmp_path) as (services, _):
        made = {name: register(services, name, vector(length), "vector") for name, length in lengths.items()}
        made["safe"] = register(services, "safe", working)
    for _ in range(2):
        with serving(model_folder, tmp_path, max_strength=0.01) as (services, client):
            assert services.catalog.refused == {}
            assert services.catalog.resident_ids == frozenset(), "what was only tried is not in use"
            assert client.get("/health/ready").status_code == 200
    seen = {file.name.partition(".")[0] for file in (tmp_path / "canaries").iterdir() if "[]" not in file.read_text()}
    assert seen == set(made.values()) - {made["nothing"]}


def test_garbage_that_failed_may_come_again(model_folder, tmp_path):
    with serving(model_folder, tmp_path) as (services, client):
        switch = register(services, "safe", scaled(0))
    with serving(model_folder, tmp_path) as (services, client):
        assert switch in services.catalog.refused
        assert client.delete("/v1/artifacts/safe/names/safe").is_success
        removed = client.post("/v1/artifacts/gc", params={"older_than_s": 0}).json()
        assert [one["id"] for one in removed["removed"]] == [switch]
        assert services.catalog.refused == {}


def test_a_switch_that_has_faded_is_noticed_in_the_coarsest_format(model_folder, tmp_path):
    def start() -> tuple[Any, list[float]]:
        with serving(model_folder, tmp_path, dtype="bfloat16") as (services, _):
            return dict(services.catalog.refused), canary._Trial(services.engine, services.catalog)._off

    with serving(model_folder, tmp_path, dtype="bfloat16") as (services, _):
        switch = register(services, "safe", scaled(0.5))
    refused, off = start()
    assert refused == {}
    (file,) = (tmp_path / "canaries").iterdir()
    kept = json.loads(file.read_text())
    # As if it had done three times as much at first: what is left of it lies within the format's tolerance.
    more = [on + 2 * (on - bare) for on, bare in zip(kept["logprobs"], off, strict=True)]
    assert canary._distance(more, kept["logprobs"]) < canary._TOLERANCE["bfloat16"]
    file.write_text(json.dumps(kept | {"logprobs": more}))
    assert "no longer does what it did" in start()[0][switch]


def test_a_folder_that_cannot_be_written_stops_nothing(model_folder, tmp_path):
    with serving(model_folder, tmp_path) as (services, _):
        register(services, "safe", working)
    (tmp_path / "canaries").write_text("in the way")
    with serving(model_folder, tmp_path) as (services, client):
        assert services.catalog.refused == {}
        assert client.get("/health/ready").status_code == 200


def test_an_engine_that_does_not_answer_stops_the_start(model_folder, tmp_path, monkeypatch):
    with serving(model_folder, tmp_path) as (services, _):
        register(services, "safe", working)
    monkeypatch.setattr(canary, "_LIMIT_S", 0.2)
    monkeypatch.setattr(Engine, "submit", lambda *_: None)
    with pytest.raises(canary.EngineSilent, match="did not answer"), serving(model_folder, tmp_path):
        pass


def test_damaged_files_and_outputs_that_are_not_finite_are_refused(model_folder, tmp_path):
    with serving(model_folder, tmp_path) as (services, _):
        damaged = register(services, "damaged", working)
        huge = register(services, "huge", scaled(1e25))
    (weights,) = (tmp_path / "artifacts" / damaged).glob("*.safetensors")
    tensors = load_file(weights)
    weights.chmod(0o600)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, weights)
    with serving(model_folder, tmp_path) as (services, client):
        refused = services.catalog.refused
        assert refused.keys() == {damaged, huge}
        assert "damaged" in refused[damaged]
        assert ask(client).status_code == 200
        assert "not finite" in refused[huge]
        assert ask(client, safety_switch="huge").json()["error"]["code"] == "artifact_unusable"


def test_what_no_longer_computes_the_same_without_interventions_is_blamed_on_all(model_folder, tmp_path, monkeypatch):
    with serving(model_folder, tmp_path) as (services, _):
        switch = register(services, "safe", working)
    submit, off = Engine.submit, []

    def disturbed(engine, request, sink):
        off.extend(() if request.interventions else (request,))
        prompt = request.prompt_ids if len(off) < 2 else (1, *request.prompt_ids[1:])
        changed = type(request)(request.id, prompt, request.sampling, request.interventions)
        submit(engine, changed, sink)

    monkeypatch.setattr(Engine, "submit", disturbed)
    with serving(model_folder, tmp_path) as (services, _):
        assert services.catalog.refused == {switch: canary._LEFT_BEHIND}
    (file,) = (tmp_path / "canaries").iterdir()
    assert json.loads(file.read_text())["logprobs"] == [], "nothing of such a run is remembered"


def test_other_weights_or_another_number_format_are_a_record_of_their_own(model_folder, tmp_path):
    with serving(model_folder, tmp_path) as (services, _):
        switch = register(services, "safe", working)
    for dtype in ("float32", "bfloat16"):
        with serving(model_folder, tmp_path, dtype=dtype) as (services, _):
            assert services.catalog.refused == {}
    folder = tmp_path / "canaries"
    assert {file.name for file in folder.iterdir()} == {f"{switch}.{one}.cpu.json" for one in ("float32", "bfloat16")}
    file = folder / f"{switch}.float32.cpu.json"
    kept = json.loads(file.read_text())
    file.write_text(json.dumps(kept | {"weight_digest": "0" * 64, "logprobs": [0.0]}))
    with serving(model_folder, tmp_path) as (services, _):
        assert services.catalog.refused == {}
    assert json.loads(file.read_text()) == kept


def test_records_of_artifacts_that_are_gone_are_removed_and_unreadable_ones_written_anew(model_folder, tmp_path):
    with serving(model_folder, tmp_path) as (services, _):
        register(services, "safe", working)
    folder = tmp_path / "canaries"
    folder.mkdir()
    (folder / f"{'0' * 64}.float32.cpu.json").write_text("{}")
    with serving(model_folder, tmp_path):
        pass
    (file,) = folder.iterdir()
    kept = file.read_text()
    file.write_text(kept[:-20])
    assert {one.check: one.status for one in examine_data(tmp_path)}["canaries"] == "warn"
    with serving(model_folder, tmp_path) as (services, client):
        assert services.catalog.refused == {}
        assert client.delete("/v1/artifacts/safe").is_success
    assert file.read_text() == kept
    with serving(model_folder, tmp_path):
        assert not list(folder.iterdir())
