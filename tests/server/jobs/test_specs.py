"""What a client may ask of a job, at and beyond each limit."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from server.jobs import specs
from server.jobs.specs import JOB_SPEC

SWITCH = {"base": "base", "dataset": "d", "sites": [{"layer": 2}]}
MAPPER = {"source": "small", "source_site": {"layer": 1}, "target_site": {"layer": 2}, "dataset": "d"}
VECTOR = {"positive": "a", "negative": "b", "sites": [{"layer": 2}]}
TRANSFER = {"vector": "v", "mapper": "m"}
REFUSAL = {"harmful": "a", "harmless": "b"}
CARRIED = {"switch": "s", "dataset": "d", "sites": [{"source": {"layer": 1}, "target": {"layer": 2}}]}
SWEEP = {"edit": {"kind": "difference_in_means", "positive": "a", "negative": "b"}, "prompts": "p"}
COLLECT = {"dataset": "d", "sites": [{"layer": 2}]}
MINIMAL = {
    "collect_activations": COLLECT,
    "train_switch": SWITCH,
    "train_mapper": MAPPER,
    "extract_vector": VECTOR,
    "extract_refusal_direction": REFUSAL,
    "transfer_vector": TRANSFER,
    "train_probe": VECTOR,
    "transfer_switch": CARRIED,
    "sweep_sites": SWEEP,
    "evaluate": {"prompts": "p", "switch": {"switch": "s"}},
    "generate_dataset": {"rows": 10},
}


def read(kind: str, **changes: Any) -> Any:
    parameters = {**MINIMAL[kind], **changes}
    return JOB_SPEC.validate_python({"kind": kind, "name": "x", "parameters": parameters}).parameters


def test_defaults_are_the_recipe_that_works():
    switch = read("train_switch")
    assert (switch.mapper, switch.residual, switch.steps) == ("autoencoder", True, 300)
    assert (switch.loss.kl, switch.loss.mse) == (1.0, 0.1)
    assert read("train_switch", loss={"kl": 1.0}).loss.mse == 0.0
    assert (read("train_mapper").mapper, read("train_mapper").alignment) == ("ridge", "offsets")
    assert read("transfer_vector").rule == "pairs"


@pytest.mark.parametrize("kind", MINIMAL)
def test_what_is_stored_reads_back_as_the_same(kind):
    parameters = read(kind)
    assert read(kind, **parameters.stored()).stored() == parameters.stored()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("train_switch", {"mapper": "ridge", "steps": 10}),
        ("train_switch", {"mapper": "ridge", "loss": {"mse": 1.0}}),
        ("train_switch", {"mapper": "affine", "hidden": 8}),
        ("train_switch", {"ridge": 0.1}),
        ("train_mapper", {"hidden": 8}),
        ("train_mapper", {"mapper": "affine", "loss": {"kl": 1.0}}),
        ("extract_vector", {"l2": 0.1}),
        ("extract_vector", {"method": "actadd", "position": "last"}),
        ("transfer_vector", {"rescale": {"to": "native", "vector": "n"}, "native": "n"}),
        ("train_mapper", {"batch_size": 8}),
        ("train_mapper", {"mapper": "affine", "batch_size": 8, "batch_texts": 8}),
        ("train_switch", {"steps": 10, "epochs": 1}),
        ("train_switch", {"loss": {"kl": 1.0}, "mse_form": "plain"}),
        ("train_switch", {"validation_fraction": 0.0, "patience": 1}),
        ("train_switch", {"validation_fraction": 0.0, "validate_every": 10}),
        ("train_switch", {"rank": 4}),
        ("train_switch", {"attack": {}}),
        ("train_switch", {"augment": {}, "attack": {}, "loss": {"mse": 1.0}}),
        ("train_switch", {"augment": {}, "attack": {}, "mapper": "ridge"}),
        ("train_switch", {"scale": True}),
        ("train_switch", {"mapper": "low_rank"}),
        ("train_switch", {"mapper": "low_rank", "rank": 4, "hidden": 8}),
        ("train_switch", {"mapper": "procrustes", "ridge": 0.1}),
        ("train_switch", {"mapper": "ridge", "mixed_precision": False}),
        ("train_switch", {"mapper": "ridge", "preset": "paper"}),
    ],
)
def test_parameters_without_effect_are_refused(kind, changes):
    with pytest.raises(ValidationError):
        read(kind, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"negative": None},
        {"prompts": "c"},
        {"trigger": {"text": "x"}},
        {"positive": None, "negative": None},
        {"positive": None, "negative": None, "prompts": "c"},
        {"positive": None, "negative": None, "prompts": "c", "trigger": {"text": ""}},
        {"positive": None, "negative": None, "prompts": "c", "trigger": {"text": "x", "mode": "prefix"}},
    ],
)
def test_a_vector_has_two_datasets_or_one_and_a_trigger(changes):
    with pytest.raises(ValidationError):
        read("extract_vector", **changes)


@pytest.mark.parametrize("method", ["difference_in_means", "actadd", "pca", "logistic"])
def test_every_method_reads_back_with_every_form_of_data(method):
    triggered = {"positive": None, "negative": None, "prompts": "c", "trigger": {"text": "x", "replaces": "y"}}
    for changes in ({}, triggered):
        parameters = read("extract_vector", method=method, **changes)
        assert read("extract_vector", **parameters.stored()) == parameters


@pytest.mark.parametrize("strengths", [[], [0.0], [1.0, 1.0], [100.5], [float("nan")], [1.0] * 17])
def test_a_check_names_each_strength_once(strengths):
    check = {"dataset": "d", "marker": "m"}
    assert read("transfer_vector", check=check | {"strengths": [-1.5, 1.0]}).check is not None
    with pytest.raises(ValidationError):
        read("transfer_vector", check=check | {"strengths": strengths})


def test_a_site_is_carried_once():
    pair = CARRIED["sites"][0]
    for other in ({"source": {"layer": 1}, "target": {"layer": 0}}, {"source": {"layer": 0}, "target": {"layer": 2}}):
        with pytest.raises(ValidationError, match="names a site twice"):
            read("transfer_switch", sites=[pair, other])


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("steps", [1, 1_000_000], [0, -1, 1_000_001, 2**63, 10**400, 1.5, "3", True, None, float("nan")]),
        ("batch_size", [1, 1024], [0, -1, 1025, 2**63, "3"]),
        ("max_length", [2, 131_072], [1, 0, -1, 131_073, 2**63]),
        ("max_new_tokens", [1, 4096], [0, -1, 4097]),
        ("hidden", [1, 65_536], [0, -1, 65_537]),
        ("seed", [0, 2**31 - 1], [-1, 2**31, 2**63]),
        ("learning_rate", [1e-9, 1.0], [0, -1, 1.1, float("nan"), float("inf"), "0.1"]),
        ("validation_fraction", [0.0, 0.5], [-0.1, 0.51, float("nan")]),
        ("epochs", [1, 1000], [0, -1, 1001, 1.5, "3", True]),
        ("accumulate", [1, 1024], [0, -1, 1025, True]),
        ("weight_decay", [0.0, 1.0], [-0.1, 1.1, float("nan")]),
        ("validate_every", [1], [0, None]),
        ("patience", [1, 1_000_000], [0, -1]),
        ("mixed_precision", [True, False], ["true", 1, None]),
        ("preset", ["paper", None], ["", "papers", 1, ["paper"]]),
        (
            "loss",
            [{"kl": 1000.0}, {"cosine": 1.0}],
            [{"kl": 0, "mse": 0}, {"kl": -1}, {"kl": 1001}, {"l1": 1}, {"mse": float("inf")}],
        ),
        ("sites", [[{"layer": 0}], [{"layer": 1023}]], [[], [{"layer": -1}], [{"layer": 1024}], [{"layer": 1}] * 2]),
        ("dataset", ["d", "a" * 96], ["", "a" * 97, 3, None]),
        ("base", ["b", "a" * 200], ["", "a" * 201, None]),
        ("mapper", ["affine"], ["mlp", "", None]),
        ("unknown", [], [1]),
    ],
)
def test_limits(field, good, bad):
    for value in good:
        assert read("train_switch", **{field: value}) is not None
    for value in bad:
        with pytest.raises(ValidationError):
            read("train_switch", **{field: value})


def test_a_sweep_has_a_grid_for_every_edit():
    ends = {"positive": "a", "negative": "b"}
    grids = {
        kind: read("sweep_sites", edit={"kind": kind, **extra}).grid
        for kind, extra in (
            ("difference_in_means", ends),
            ("vector", {"vector": "v", "unit": "norm"}),
            ("switch", {"base": "base", "dataset": "d"}),
            ("transfer", {**ends, "source": "small", "texts": "d", "operation": "ablate"}),
        )
    }
    assert grids == {
        "difference_in_means": (0.5, 1.0, 1.5, 2.0, 3.0),
        "vector": (0.1, 0.2, 0.4, 0.7, 1.0),
        "switch": (0.25, 0.5, 0.75, 1.0),
        "transfer": (0.5, 1.0, 1.5),
    }
    assert read("sweep_sites", strengths=[2.0, -1.0]).grid == (-1.0, 2.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"strengths": [0.0]},
        {"strengths": [1.0, 1.0]},
        {"strengths": []},
        {"sites": [{"layer": 1}] * 2},
        {"aim": "marker_absent"},
        {"patching": {"triggered": "a", "clean": "b"}},
        {"validation_fraction": 0.0},
        {"limit": 1},
        {"edit": {"kind": "vector", "vector": "v", "operation": "ablate", "unit": "norm"}},
        {"edit": {"kind": "switch", "base": "base", "dataset": "d", "operation": "add"}},
    ],
)
def test_a_sweep_that_cannot_be_meant_is_refused(changes):
    with pytest.raises(ValidationError):
        read("sweep_sites", **changes)


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("dtype", ["float16", "float32"], ["bfloat16", "float64", None]),
        ("shard_mib", [1, 2048], [0, 2049, "8", None]),
        ("mask", [{}, {"massive": 1.5}, {"massive": None}, {"special_tokens": True}], [None, {"massive": 1}, {"k": 2}]),
        ("sites", [[{"layer": 0}, {"layer": 1}]], [[], [{"layer": 1}] * 2]),
        ("model", [None, "small"], ["", 3]),
    ],
)
def test_limits_of_a_collection(field, good, bad):
    for value in good:
        assert read("collect_activations", **{field: value}) is not None
    for value in bad:
        with pytest.raises(ValidationError):
            read("collect_activations", **{field: value})


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a" * 97, "a\n", ".a"])
def test_bad_names_of_jobs_are_refused(name):
    with pytest.raises(ValidationError):
        JOB_SPEC.validate_python({"kind": "train_switch", "name": name, "parameters": SWITCH})


def test_every_number_list_and_string_is_bounded():
    """Walks the JSON schema of every request model: nothing without an upper bound."""
    schema = JOB_SPEC.json_schema()
    unbounded = []

    def walk(node: Any, path: str) -> None:
        if isinstance(node, dict):
            bounds = {
                "integer": ("maximum", "exclusiveMaximum"),
                "number": ("maximum", "exclusiveMaximum"),
                "string": ("maxLength", "enum", "const"),
                "array": ("maxItems",),
            }.get(node.get("type"), ())
            if bounds and not any(bound in node for bound in bounds):
                unbounded.append(path)
            for key, value in node.items():
                walk(value, f"{path}.{key}")
        elif isinstance(node, list):
            for index, value in enumerate(node):
                walk(value, f"{path}[{index}]")

    walk(schema, "")
    assert unbounded == []


def test_every_model_is_frozen_and_refuses_unknown_fields():
    found = [value for value in vars(specs).values() if isinstance(value, type) and issubclass(value, BaseModel)]
    for model in found:
        if model is not BaseModel:
            assert model.model_config.get("frozen") is True, model
            assert model.model_config.get("extra") == "forbid", model


def test_a_preset_is_a_set_of_defaults_and_what_is_given_wins():
    paper = read("train_switch", preset="paper")
    assert (paper.mapper, paper.hidden, paper.residual, paper.mse_form) == ("autoencoder", None, False, "plain")
    assert (paper.loss.kl, paper.loss.mse, paper.loss.cosine) == (0.0, 1.0, 0.0)
    assert (paper.learning_rate, paper.batch_size, paper.accumulate) == (1e-4, 16, 4)
    assert (paper.epochs, paper.max_length, paper.validation_fraction) == (3, 720, 0.1)
    between = read("train_mapper", preset="paper")
    assert (between.mapper, between.batch_texts, between.alignment) == ("autoencoder", 16, "position")
    assert "batch_size" not in between.stored()
    own = read("train_mapper", preset="paper", mapper="affine", steps=10, batch_size=99, alignment="offsets", seed=4)
    assert (own.mapper, own.steps, own.epochs, own.batch_size, own.batch_texts) == ("affine", 10, None, 99, None)
    assert (own.alignment, own.seed, own.learning_rate) == ("offsets", 4, 1e-4)
    assert "mse_form" not in read("train_switch", preset="paper", loss={"kl": 1.0}).stored()


@pytest.mark.parametrize("changes", [{}, {"steps": 10}, {"loss": {"kl": 1.0}}, {"validation_fraction": 0.0}])
def test_a_preset_is_stored_with_all_that_it_means(changes):
    stored = read("train_switch", preset="paper", **changes).stored()
    assert (stored["preset"], stored["learning_rate"], stored["accumulate"]) == ("paper", 1e-4, 4)
    assert read("train_switch", **stored).stored() == stored
