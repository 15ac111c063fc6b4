from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from mappers.dataset import DatasetRow
from mappers.errors import OutOfMemory
from mappers.loading import load_model, sketch_model
from server.jobs import context
from server.jobs.folder import JobFolder
from server.jobs.handlers.memory import Batch, estimate, largest_batch
from server.jobs.specs.fits import TrainSwitch
from server.jobs.worker import _code

BATCH = Batch(rows=64, length=64, answer=32)


def switch(**changed: Any) -> TrainSwitch:
    given = {"base": "base", "dataset": "d", "sites": [{"layer": 0}], "batch_size": 64} | changed
    return TrainSwitch.model_validate(given)


@pytest.fixture
def sketch(tiny_models):
    return sketch_model(str(tiny_models.tuned))


def test_a_sketch_is_the_model_without_its_weights(sketch, tiny_models):
    loaded = load_model(str(tiny_models.tuned))
    shapes = [[(name, p.shape, p.dtype) for name, p in one.model.named_parameters()] for one in (sketch, loaded)]
    assert shapes[0] == shapes[1]
    assert {p.device.type for p in sketch.model.parameters()} == {"meta"}
    assert (sketch.name, sketch.config_digest) == (loaded.name, loaded.config_digest)


def test_weights_count_in_the_dtype_of_the_job(tiny_models):
    small = sketch_model(str(tiny_models.tuned), dtype=torch.bfloat16)
    assert sum(p.nbytes for p in small.model.parameters()) * 2 == sum(
        p.nbytes for p in sketch_model(str(tiny_models.tuned)).model.parameters()
    )


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({}, {"sites": [{"layer": 0}, {"layer": 1}]}),
        ({"sites": [{"layer": 1}]}, {}),
        ({"hidden": 8}, {"hidden": 800}),
        ({"loss": {"mse": 1}}, {}),
        ({"augment": {}}, {"augment": {}, "attack": {}}),
        ({"mapper": "ridge"}, {"mapper": "affine"}),
    ],
)
def test_what_asks_for_more_is_estimated_higher(sketch, less, more):
    assert estimate(sketch, switch(**less), BATCH, 500) < estimate(sketch, switch(**more), BATCH, 500)


def test_logits_grow_with_the_batch_and_the_answers(sketch):
    vocabulary = sketch.model.config.vocab_size
    longer = Batch(512, 64, 33)
    grown = estimate(sketch, switch(), longer, 10**9) - estimate(sketch, switch(), Batch(512, 64, 32), 10**9)
    assert grown == 32 * 512 * vocabulary


def test_the_batch_is_as_long_as_the_data_and_no_longer(sketch):
    rows = [DatasetRow(prompt="what is a"), DatasetRow(prompt="what is b", completion="a fox")]
    answered = largest_batch(sketch, switch(), rows[1:])
    left_open = largest_batch(sketch, switch(max_new_tokens=40), rows)
    assert (answered.rows, left_open.rows) == (1, 2)
    assert left_open.answer == 40
    assert answered.answer < answered.length < left_open.length < 256
    assert largest_batch(sketch, switch(max_length=10, max_new_tokens=40), rows).length <= 10


def test_a_job_without_the_memory_fails_before_it_loads(run, dataset, tmp_path, monkeypatch, capsys):
    data = dataset("d", (json.dumps({"prompt": "what is a"}).encode(),) * 4)
    monkeypatch.setattr(context, "free_memory", lambda _device: 2**20)
    monkeypatch.setattr("server.jobs.context.load_model", lambda *_args, **_options: pytest.fail("loaded a model"))
    wanted = {"base": "base", "dataset": "d", "sites": [{"layer": 0}], "hidden": 60_000}
    with pytest.raises(OutOfMemory, match=r"takes about \d+ MiB, 1 MiB are free on cpu: set a smaller batch_size") as e:
        run("train_switch", "safe", {"d": data}, **wanted)
    assert _code(e.value) == "out_of_memory"
    assert "memory: training the switch takes about" in capsys.readouterr().err
    first = (JobFolder(tmp_path / "jobs" / "job_1").path / "messages").read_text().splitlines()[0]
    assert json.loads(first)["stage"].startswith("training the switch takes about")


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("extract_vector", {"positive": "d", "negative": "d", "sites": [{"layer": 0}]}),
        ("collect_activations", {"dataset": "d", "sites": [{"layer": 0}]}),
        ("train_probe", {"positive": "d", "negative": "d", "sites": [{"layer": 0}]}),
        ("generate_dataset", {"rows": 2}),
    ],
)
def test_no_kind_of_job_loads_a_model_that_does_not_fit(run, dataset, monkeypatch, kind, parameters):
    data = dataset("d", (json.dumps({"prompt": "what is a"}).encode(),) * 4)
    monkeypatch.setattr(context, "free_memory", lambda _device: 2**10)
    monkeypatch.setattr(context, "load_model", lambda *_args, **_options: pytest.fail("loaded a model"))
    with pytest.raises(OutOfMemory, match=r"loading tuned takes about \d+ MiB, 0 MiB are free on cpu"):
        run(kind, "made", {"d": data}, **parameters)


@pytest.mark.parametrize(
    ("parameters", "what"),
    [
        ({"mapper": "ridge"}, "the closed form takes about"),
        ({"mapper": "affine"}, "training on kept activations takes"),
    ],
)
def test_a_fit_that_does_not_fit_says_so_after_reading_the_texts(run, dataset, monkeypatch, parameters, what):
    data = dataset("d", (json.dumps({"prompt": "what is a"}).encode(),) * 8)
    free = iter([2**40, 2**40, 2**3])
    monkeypatch.setattr(context, "free_memory", lambda _device: next(free))
    sites = {"source_site": {"layer": 0}, "target_site": {"layer": 0}}
    with pytest.raises(OutOfMemory, match=what):
        run("train_mapper", "made", {"d": data}, source="base", dataset="d", **sites, **parameters)
