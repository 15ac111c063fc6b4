import json
from dataclasses import dataclass, field, replace

import pytest
import torch

from server.evaluation.experiment import Cell
from server.evaluation.lab import Lab
from server.evaluation.report import Section
from server.evaluation.scale import QUICK
from server.evaluation.suite import run_suite


@dataclass
class Counting:
    """Measures seeds, and stops before the one it is told."""

    name: str = "counting"
    version: int = 1
    stop_at: int | None = None
    measured: list[int] = field(default_factory=list)

    def cells(self, scale):
        return [Cell("organism", seed, ("llama-small-base",)) for seed in scale.seeds]

    def measure(self, lab, cell):
        if cell.seed == self.stop_at:
            raise KeyboardInterrupt
        self.measured.append(cell.seed)
        return {"twice": 2 * cell.seed}

    def section(self, figures):
        return Section("Counting", "Text.", summary={"twice": [found["twice"] for found in figures.values()]})


@pytest.fixture
def lab(tmp_path):
    scale = replace(QUICK, seeds=(0, 1, 2))
    return Lab(scale, tmp_path / "organisms", torch.device("cpu"), lambda stage, step, total: None)


def test_a_run_that_was_interrupted_goes_on_with_the_next_cell(lab, tmp_path):
    first = Counting(stop_at=2)
    with pytest.raises(KeyboardInterrupt):
        run_suite([first], lab, tmp_path, lambda started: None)
    assert first.measured == [0, 1]
    again, kept = Counting(), []
    summary = run_suite([again], lab, tmp_path, lambda started: kept.append(started.kept))
    assert again.measured == [2]
    assert kept == [True, True, False]
    assert summary == {"twice": [0, 2, 4]}
    assert json.loads((tmp_path / "report.json").read_text())["summary"] == summary


def test_figures_of_another_version_or_scale_are_not_used(lab, tmp_path):
    run_suite([Counting()], lab, tmp_path, lambda started: None)
    newer = Counting(version=2)
    run_suite([newer], lab, tmp_path, lambda started: None)
    assert newer.measured == [0, 1, 2]
    lab.scale = replace(lab.scale, held_out=7)
    larger = Counting()
    run_suite([larger], lab, tmp_path, lambda started: None)
    assert larger.measured == [0, 1, 2]


def test_an_experiment_without_cells_has_no_section(lab, tmp_path):
    lab.scale = replace(lab.scale, seeds=())
    assert run_suite([Counting()], lab, tmp_path, lambda started: None) == {}
    assert "Counting" not in (tmp_path / "report.md").read_text()


def test_several_processes_measure_what_one_does(lab, tmp_path):
    lab.scale = replace(lab.scale, seeds=(0, 1))
    alone = run_suite([Counting()], lab, tmp_path / "alone", lambda started: None)
    seen = []
    together = run_suite([Counting()], lab, tmp_path / "together", seen.append, processes=2)
    assert together == alone == {"twice": [0, 2]}
    assert [one.number for one in seen if not one.kept] == [1, 2]
    assert [one.kept for one in seen][2:] == [True, True]


def test_a_report_can_be_made_of_the_cells_that_are_there(lab, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_suite([Counting(stop_at=1)], lab, tmp_path, lambda started: None)
    partly = Counting()
    assert run_suite([partly], lab, tmp_path, lambda started: None, measure=False) == {"twice": [0]}
    assert partly.measured == []
    assert "2 of 3 cells" in (tmp_path / "report.md").read_text()
