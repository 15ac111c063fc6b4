import pytest
import torch

from mappers.sites import Site
from server.evaluation.answering import steered
from server.evaluation.sweep import Cell, Verdicts
from server.evaluation.sweep_report import Sweep

NOTHING = steered(torch.ones(1), [Site(0)], 1.0)


def verdicts(*exact: str) -> Verdicts:
    """A row of ones and zeros for each cell."""
    exact_CP = torch.tensor([[digit == "1" for digit in row] for row in exact])
    return Verdicts(torch.ones_like(exact_CP), ~exact_CP, exact_CP)


def sweep(sources: bool = False) -> Sweep:
    cells = [Cell(Site(layer), s, NOTHING, Site(0) if sources else None) for layer in (0, 1) for s in (1.0, 2.0)]
    found = verdicts("110000", "111110", "111000", "111100")
    place = Site(0) if sources else None
    predictors = {"cka": {(place, Site(0)): 0.9, (place, Site(1)): 0.1}, "patching": {(None, Site(1)): 0.5}}
    return Sweep(cells, found, verdicts("000001"), 3, "exact_match", {"random": verdicts("000011")}, predictors)


def test_validation_chooses_and_the_other_prompts_test():
    content = sweep().content()
    # Cells 1 to 3 are all right on validation: the smallest strength wins, though another one tests better.
    assert (content["chosen"]["site"], content["chosen"]["strength"]) == ("resid_post.1", 1.0)
    assert (content["chosen"]["validation"], content["chosen"]["test"]) == (1.0, 0.0)
    assert content["cells"][1]["test"] == pytest.approx(2 / 3)
    assert content["prompts"] == {"validation": 3, "test": 3}
    assert content["unsteered"]["test"] == pytest.approx(1 / 3)
    low, high = content["unsteered"]["test_bounds"]
    assert 0 <= low < 1 / 3 < high <= 1
    assert content["controls"]["random"]["test"] == pytest.approx(2 / 3)
    assert content["chosen_by_paper_rule"]["site"] == "resid_post.1"


@pytest.mark.parametrize("sources", [False, True])
def test_predictors_are_ranked_against_the_best_rate_at_each_place(sources):
    content = sweep(sources).content()
    cka, patching = content["predictors"]["cka"], content["predictors"]["patching"]
    assert [place["best"] for place in cka["places"]] == pytest.approx([5 / 6, 4 / 6])
    assert cka["rank_correlation"] == pytest.approx(1)
    assert ("source_site" in cka["places"][0]) == sources
    assert patching["rank_correlation"] is None
    assert patching["places"][0]["best"] == pytest.approx(4 / 6)
    assert set(sweep(sources).pictures("t", "vectors")) == ({"heatmap", "heatmap-sources"} if sources else {"heatmap"})
