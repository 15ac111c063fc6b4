"""``sweep_sites`` on tiny random models: every kind of edit is tried everywhere, and the report is whole."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from mappers.errors import ArtifactMismatch, DataError
from mappers.manifest import artifact_id
from mappers.report import load_report
from mappers.sites import Site
from mappers.tensors import load_vector
from server.evaluation import sweep as core
from server.evaluation.answering import Answerer
from server.jobs.channel import StopRequested
from tests.server.jobs.handlers.test_handlers import ANSWERED, TRIGGERED

DIFFERENCE = {"kind": "difference_in_means", "positive": "clean", "negative": "triggered"}
SWEEP: dict[str, Any] = {
    "edit": DIFFERENCE, "prompts": "asked", "marker": "a", "aim": "marker_present", "limit": 4, "max_new_tokens": 4,
    "sites": [{"layer": 2}, {"layer": 0}], "strengths": [2.0, -1.0], "batch_size": 8,
}  # fmt: skip


@pytest.fixture
def data(dataset):
    return {
        "clean": dataset("clean", ANSWERED),
        "triggered": dataset("triggered", TRIGGERED),
        "asked": dataset("asked", ANSWERED[:5]),
    }


def test_every_site_and_strength_is_measured_beside_controls_and_predictors(run, data):
    patching = {"triggered": "triggered", "clean": "clean", "pairs": 3}
    manifest, folder = run("sweep_sites", "where", data, **SWEEP, patching=patching)
    loaded, content = load_report(folder)
    assert loaded == manifest
    assert set(manifest.files) == {"report.json", "heatmap.png"}
    places = [(cell["site"], cell["strength"]) for cell in content["cells"]]
    assert places == [(f"resid_post.{layer}", strength) for layer in (0, 2) for strength in (-1.0, 2.0)]
    assert content["prompts"] == {"validation": 2, "test": 2}
    assert all(0 <= cell[name] <= 1 for cell in content["cells"] for name in ("validation", "test", "marker_rate"))
    assert set(content["controls"]) == {"random"}
    assert set(content["predictors"]) == {"relative_norm", "patching_last", "patching_every"}
    assert set(content["site_norms"]) == {"resid_post.0", "resid_post.2"}
    assert (content["model"], content["parameters"]["strengths"]) == ("tuned", [2.0, -1.0])
    chosen = content["chosen"]
    assert manifest.sites == (chosen["site"],)
    assert manifest.effect == {"strength": chosen["strength"], "marker_present": chosen["test"]}
    assert {parent.role: parent.name for parent in manifest.parents} == {
        "prompts": "asked", "positive": "clean", "negative": "triggered",
    }  # fmt: skip


def test_an_interrupted_sweep_ends_in_the_same_report_without_answering_twice(run, data, monkeypatch):
    monkeypatch.setattr(core, "_ROWS_A_STEP", 4)
    asked, original = [], Answerer.answers
    stop = threading.Event()

    def counted(self, prompts, **options):
        asked.append(len(prompts))
        if len(asked) == 3:
            stop.set()
        return original(self, prompts, **options)

    whole, _ = run("sweep_sites", "where", data, **SWEEP)
    monkeypatch.setattr(Answerer, "answers", counted)
    with pytest.raises(StopRequested):
        run("sweep_sites", "where", data, **SWEEP, job_id="job_2", stop=stop)
    again, folder = run("sweep_sites", "where", data, **SWEEP, job_id="job_2", attempt=2)
    assert again.files == whole.files
    assert load_report(folder)[1]["chosen"]["site"] == again.sites[0]
    # Unsteered, four cells and a control; of the third, which was cut off, the answers are asked for again.
    assert asked == [4] * (2 + 1 + 4)


def test_strengths_can_count_the_sites_norm_and_a_stored_vector_its_own_sites(run, data, artifacts):
    ends = {"positive": "clean", "negative": "triggered"}
    _, made = run("extract_vector", "v", data, **ends, sites=[{"layer": 2}])
    norm = float(load_vector(made)[1][Site(2)].norm())
    data = data | {"v": artifacts.register(made, name="v", owner=None)}
    stored = SWEEP | {"sites": None, "edit": {"kind": "vector", "vector": "v"}}
    manifest, folder = run("sweep_sites", "a", data, **stored)
    content = load_report(folder)[1]
    assert {cell["site"] for cell in content["cells"]} == {"resid_post.2"}
    assert [parent.role for parent in manifest.parents] == ["prompts", "vector"]
    site_norm = content["site_norms"]["resid_post.2"]
    in_norms = {"edit": {"kind": "vector", "vector": "v", "unit": "norm"}, "strengths": [2.0 * norm / site_norm]}
    _, folder = run("sweep_sites", "b", data, **stored | in_norms, attempt=2)
    (same,) = load_report(folder)[1]["cells"]
    by_vector = next(cell for cell in content["cells"] if cell["strength"] == 2.0)
    assert same | {"strength": 2.0} == by_vector
    with pytest.raises(ArtifactMismatch, match=r"resid_post\.0"):
        run("sweep_sites", "c", data, **stored | {"sites": [{"layer": 0}, {"layer": 2}]}, attempt=3)


def test_switches_are_tried_as_a_dial_at_each_site_alone(run, data):
    edit = {"kind": "switch", "base": "base", "dataset": "clean"}
    settings = SWEEP | {"edit": edit, "strengths": [1.0], "aim": "exact_match"}
    manifest, folder = run("sweep_sites", "where", data, **settings)
    content = load_report(folder)[1]
    assert [cell["site"] for cell in content["cells"]] == ["resid_post.0", "resid_post.2"]
    assert content["controls"] == {}
    assert set(content["predictors"]) == {"cka", "svcca"}
    assert [parent.role for parent in manifest.parents] == ["prompts", "dataset"]


def test_a_transfer_tries_every_source_site_at_every_target_site(run, data):
    source = {"source": "small", "texts": "clean", "source_sites": [{"layer": 1}, {"layer": 0}]}
    edit = DIFFERENCE | {"kind": "transfer", **source}
    manifest, folder = run("sweep_sites", "where", data, **SWEEP | {"edit": edit, "strengths": [1.0]})
    content = load_report(folder)[1]
    pairs = [(cell["source_site"], cell["site"]) for cell in content["cells"]]
    assert pairs == [(f"resid_post.{s}", f"resid_post.{t}") for s in (0, 1) for t in (0, 2)]
    assert set(content["controls"]) == {"random", "native"}
    assert len(content["predictors"]["svcca"]["places"]) == 4
    assert (len(manifest.source_sites), set(manifest.files)) == (
        1,
        {"report.json", "heatmap.png", "heatmap-sources.png"},
    )
    again, _ = run("sweep_sites", "where", data, **SWEEP | {"edit": edit, "strengths": [1.0]}, attempt=2)
    assert artifact_id(again) == artifact_id(manifest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aim": "exact_match", "prompts": "triggered"}, "no answer to compare"),
        ({"max_length": 3}, "fewer than 2 rows"),
        ({"edit": DIFFERENCE | {"negative": "clean"}}, "same mean"),
        ({"sites": [{"layer": 9}]}, "layer 9"),
        ({"patching": {"triggered": "triggered", "clean": "asked"}}, "row by row"),
        ({"patching": {"triggered": "clean", "clean": "clean"}}, "equally likely"),
    ],
)
def test_what_cannot_be_swept_says_why(run, data, changes, message):
    with pytest.raises((DataError, ArtifactMismatch), match=message):
        run("sweep_sites", "where", data, **SWEEP | changes)
    assert torch.get_num_threads() == 1
