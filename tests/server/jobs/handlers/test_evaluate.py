"""``evaluate`` on tiny random models: settings side by side, with controls and intervals."""

from __future__ import annotations

import pytest

from mappers.errors import ArtifactMismatch, DataError
from mappers.report import load_report
from tests.server.jobs.handlers.test_handlers import ANSWERED, PROMPTS

SHORT = {"max_new_tokens": 4, "limit": 4, "batch_size": 8}


@pytest.fixture
def parts(run, dataset, artifacts):
    """A switch and a vector of the served model, and prompts."""
    data = {"d": dataset("d", ANSWERED), "open": dataset("open", PROMPTS)}
    fit = {"base": "base", "dataset": "d", "sites": [{"layer": 1}], "mapper": "ridge"}
    _, switch = run("train_switch", "safe", data, **fit, job_id="job_1")
    contrast = {"positive": "d", "negative": "open", "sites": [{"layer": 2}]}
    _, vector = run("extract_vector", "dir", data, **contrast, job_id="job_2")
    found = {
        name: artifacts.register(folder, name=name, owner=None) for name, folder in (("safe", switch), ("dir", vector))
    }
    return data | found


def test_every_setting_answers_the_same_prompts(run, parts):
    manifest, folder = run(
        "evaluate", "effect", parts, **SHORT, prompts="d", switch={"switch": "safe"}, marker="a",
        vectors=[{"vector": "dir", "strength": 50.0}], base="base", job_id="job_3",
    )  # fmt: skip
    _, content = load_report(folder)
    assert list(content["arms"]) == ["off", "on", "random", "base"]
    assert set(content["arms"]["on"]) == {
        "answered", "marker", "exact_match", "rouge_l", "rouge_l_to_base", "same_as_base",
    }  # fmt: skip
    assert content["prompts"] == 4
    assert content["arms"]["base"]["same_as_base"]["value"] == 1.0
    off, on = (content["arms"][arm]["rouge_l_to_base"] for arm in ("off", "on"))
    assert content["on_less_off"]["rouge_l_to_base"]["value"] == pytest.approx(on["value"] - off["value"])
    assert on["low"] <= on["value"] <= on["high"]
    assert manifest.effect["same_as_base_base"] == 1.0
    assert [parent.role for parent in manifest.parents] == ["prompts", "switch", "vector"]
    assert (folder / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_a_setting_that_does_nothing_changes_nothing(run, parts):
    use = {"switch": "safe", "strength": 0.0}
    _, folder = run("evaluate", "effect", parts, **SHORT, prompts="open", switch=use, base="base", job_id="job_3")
    _, content = load_report(folder)
    assert list(content["arms"]) == ["off", "on", "base"]
    assert content["arms"]["on"] == content["arms"]["off"]
    assert {found["value"] for found in content["on_less_off"].values()} == {0.0}


def test_what_cannot_be_evaluated_says_why(run, parts, artifacts):
    with pytest.raises(DataError, match="max_length"):
        run("evaluate", "e", parts, **SHORT, prompts="d", switch={"switch": "safe"}, max_length=2, job_id="job_4")
    contrast = {"positive": "d", "negative": "open", "sites": [{"layer": 1}], "model": "small"}
    _, folder = run("extract_vector", "other", parts, **contrast, job_id="job_5")
    other = parts | {"other": artifacts.register(folder, name="other", owner=None)}
    with pytest.raises(ArtifactMismatch, match="another model"):
        run("evaluate", "e", other, **SHORT, prompts="d", vectors=[{"vector": "other"}], job_id="job_6")
