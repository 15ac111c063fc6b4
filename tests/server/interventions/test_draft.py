"""Sorting what rows ask for: places, kinds, turns, tokens and counts."""

import torch

from mappers.sites import Site
from server.interventions.active import ActiveIntervention
from server.interventions.draft import Draft, PlanRow, commit
from server.interventions.meter import MeterBank
from server.types import NONE, Apply, Positions
from tests.server.engine.interventions import switch, vector


def begun(*used):
    meters = MeterBank("cpu")
    return [ActiveIntervention.begin(one, meters) for one in used]


def test_sorts_by_site_turn_and_kind():
    """A row's second intervention at a site takes its second turn there, whatever came before at other sites."""
    first = PlanRow(0, 0, 9, 1, 4, begun(vector(layers=(0, 1)), switch(layers=(1, 2))))
    second = PlanRow(1, 1, 9, 1, 4, begun(switch(layers=(1,)), vector(layers=(0,))))
    draft = Draft.collect([first, second])
    found = {
        (site.layer, turn, kind.operation): [member.row for member in members]
        for (site, turn), kinds in draft.steps.items()
        for kind, members in kinds.items()
    }
    assert found == {
        (0, 0, "add"): [0, 1],
        (1, 0, "add"): [0],
        (1, 0, "switch"): [1],
        (1, 1, "switch"): [0],
        (2, 0, "switch"): [0],
    }


def test_only_what_can_be_computed_together_is_of_one_kind():
    wide = vector()
    wide.effects[Site(1)] = torch.ones(5)
    used = [vector(), vector(seed=1), wide, vector("ablate"), switch(), switch(seed=1), switch("affine")]
    draft = Draft.collect([PlanRow(i, i, 9, 1, 4, begun(one)) for i, one in enumerate(used)])
    (kinds,) = draft.steps.values()
    assert [[member.row for member in members] for members in kinds.values()] == [[0, 1], [2], [3], [4, 5], [6]]


def test_tokens_are_numbered_from_the_rows_first():
    apply = Apply(Positions("window", 2, None), Positions("listed", indices=(1,)))
    draft = Draft.collect([PlanRow(3, 20, 1, 6, 4, begun(vector(apply=apply)))])
    ((member,),) = draft.steps[Site(1), 0].values()
    assert (member.row, member.tokens) == (3, [21, 22, 24])
    (touched,) = draft.touched
    assert (touched.prompt_tokens, touched.generated_tokens, touched.sites) == (2, 1, 1)


def test_layers_that_are_not_computed_again_are_left_out():
    rows = [PlanRow(0, 0, 0, 6, 4, begun(vector(layers=(0, 2)), switch(layers=(0,))))]
    draft = Draft.collect(rows, lowest=1)
    assert list(draft.steps) == [(Site(2), 0)]
    assert [touched.sites for touched in draft.touched] == [1]


def test_counts_only_rows_that_did_not_fail():
    rows = [PlanRow(i, 6 * i, 0, 6, 4, begun(vector(layers=(0, 2)))) for i in range(2)]
    commit(Draft.collect(rows).touched, failed={1})
    assert [(r.interventions[0].prompt_tokens, r.interventions[0].generated_tokens) for r in rows] == [(4, 2), (0, 0)]


def test_says_for_how_many_steps_it_stays_the_same():
    """Against collecting anew at each of the following decode steps."""

    def planned(interventions, step):
        rows = [PlanRow(0, 0, 4 + step, 1, 4, interventions)]
        return [touched.intervention for touched in Draft.collect(rows).touched]

    spans = [Positions("window", 2, 5), Positions("listed", indices=(3, 4, 9)), Positions("window", 6, None), NONE]
    interventions_of = begun(*[vector(apply=Apply(NONE, span), strength=s) for span in spans for s in (1.0, 0.0)])
    for used in ([0], [2], [4], [6], [0, 2, 4, 6], [1, 3, 5, 7]):
        interventions = [interventions_of[i] for i in used]
        for step in range(12):
            repeats = Draft.collect([PlanRow(0, 0, 4 + step, 1, 4, interventions)]).repeats
            same = [planned(interventions, later) == planned(interventions, step) for later in range(step, 20)]
            assert repeats + 1 >= 1000 if all(same) else repeats + 1 == same.index(False)


def test_what_is_asked_in_a_prompt_is_asked_once():
    assert Draft.collect([PlanRow(0, 0, 0, 6, 4, begun(vector()))]).repeats == 0
    assert Draft.collect([PlanRow(0, 0, 3, 1, 4, begun(vector()))]).repeats == 0
    assert Draft.collect([PlanRow(0, 0, 0, 6, 4, begun(vector(strength=0.0)))]).repeats > 1000
