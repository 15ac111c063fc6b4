"""Every experiment plans its cells; the two that others are built like are measured at a tiny scale."""

import pickle
from dataclasses import replace

import pytest
import torch

from server.evaluation import switches, transfers
from server.evaluation.experiments import PAPER
from server.evaluation.experiments import switch as switch_module
from server.evaluation.experiments.switch import SwitchExperiment
from server.evaluation.experiments.tasks import REFUSAL_INDUCED
from server.evaluation.lab import Lab
from server.evaluation.mapping import MappingRecipe
from server.evaluation.scale import FULL, QUICK

torch.set_num_threads(1)


@pytest.fixture
def lab(tmp_path):
    scale = replace(QUICK, held_out=6, validation=5, switch_prompts=24, texts=30)
    return Lab(scale, tmp_path, torch.device("cpu"), lambda stage, step, total: None)


@pytest.mark.parametrize("experiment", PAPER, ids=lambda experiment: experiment.name)
def test_cells_are_distinct_and_quick_ones_need_shipped_models_alone(experiment, lab):
    cells = experiment.cells(FULL)
    assert cells
    assert len(set(cells)) == len(cells)
    assert {cell.seed for cell in cells} == set(FULL.seeds)
    quick = experiment.cells(QUICK)
    assert {cell.seed for cell in quick} <= set(QUICK.seeds)
    assert all(lab.has(name) for cell in quick for name in cell.models)


@pytest.mark.parametrize("experiment", PAPER, ids=lambda experiment: experiment.name)
def test_experiments_travel_to_other_processes(experiment):
    assert pickle.loads(pickle.dumps(experiment)).name == experiment.name


def test_names_are_distinct():
    names = [experiment.name for experiment in PAPER]
    assert len(set(names)) == len(names)


def test_a_switch_is_measured_beside_its_controls(lab, monkeypatch):
    monkeypatch.setattr(switch_module, "OURS", replace(switches.OURS, steps=2))
    experiment = SwitchExperiment()
    cell = experiment.cells(lab.scale)[0]
    figures = experiment.measure(lab, cell)
    assert list(figures["arms"]) == ["off", switches.OURS.label, "base", "true base activations"]
    assert figures["arms"]["off"]["triggered"]["shows"] == "1" * 6
    assert figures["arms"]["base"]["triggered"]["shows"] == "0" * 6
    assert figures["arms"]["true base activations"]["triggered"]["shows"] == "0" * 6
    section = experiment.section({cell: figures})
    assert set(section.summary["switch"]["llama"]) >= {"off", "on", "clean", "triggered"}
    assert section.summary["switch"]["llama"]["off"] == 1.0
    assert len(section.demands) == 3


def test_a_transfer_is_measured_beside_its_controls(lab, monkeypatch):
    monkeypatch.setattr(transfers, "KINDS", (MappingRecipe("ridge"), MappingRecipe("affine", steps=5)))
    experiment = replace(REFUSAL_INDUCED, strengths=(1.0, 2.0))
    (cell,) = experiment.cells(lab.scale)
    figures = experiment.measure(lab, cell)
    assert list(figures["arms"]) == ["unsteered", "native", "mapped", "random", "ridge", "affine"]
    assert all(len(found["wanted"]) == 6 for found in figures["arms"].values())
    assert figures["arms"]["unsteered"]["wanted"] == "0" * 6
    assert figures["arms"]["mapped"] == figures["arms"][figures["picked"]] | {
        "ordinary": figures["arms"]["mapped"]["ordinary"]
    }
    assert set(figures["perplexity"]) == {"unsteered", "native", "mapped", "random"}
    section = experiment.section({cell: figures})
    assert set(section.summary["refusal"]["llama-small->llama-medium"]) == {"unsteered", "native", "mapped", "random"}
    assert len(section.demands) == 3
    assert [table.title for table in section.tables][1] == "What steering costs"
