"""Receipts: what was used, how many tokens it touched, and how much it changed those that were computed."""

import pytest
import torch

from server.interventions.active import ActiveIntervention
from server.interventions.meter import MeterBank
from tests.server.engine.interventions import vector


def test_a_receipt_names_what_was_used_and_averages_over_tokens_and_sites():
    meters = MeterBank("cpu")
    used = vector(layers=(0, 2), strength=2.0)
    active = ActiveIntervention.begin(used, meters)
    active.touched(3, 1, sites=2)
    meters.record(torch.full((8,), active.meter), torch.ones(8, 1), torch.full((8, 1), 1.5))
    receipt = active.end(meters)
    assert (receipt.kind, receipt.name, receipt.digest) == ("add", used.name, used.digest)
    assert (receipt.sites, receipt.strength) == (("resid_post.0", "resid_post.2"), 2.0)
    assert (receipt.prompt_tokens, receipt.generated_tokens) == (3, 1)
    assert receipt.mean_relative_change == pytest.approx(0.5)
    assert meters.in_use == 0


def test_a_receipt_without_tokens_has_no_change():
    meters = MeterBank("cpu")
    receipt = ActiveIntervention.begin(vector(), meters).end(meters)
    assert (receipt.prompt_tokens, receipt.mean_relative_change) == (0, 0.0)


def test_reused_tokens_are_counted_but_not_averaged_over():
    meters = MeterBank("cpu")
    active = ActiveIntervention.begin(vector(), meters)
    active.reused(prompt=7, generated=2)
    active.touched(1, 1, sites=1)
    meters.record(torch.full((2,), active.meter), torch.ones(2, 1), torch.full((2, 1), 1.5))
    receipt = active.end(meters)
    assert (receipt.prompt_tokens, receipt.generated_tokens) == (8, 3)
    assert receipt.mean_relative_change == pytest.approx(0.5)


def test_nothing_but_reused_tokens_has_no_change():
    meters = MeterBank("cpu")
    active = ActiveIntervention.begin(vector(), meters)
    active.reused(prompt=7, generated=0)
    receipt = active.end(meters)
    assert (receipt.prompt_tokens, receipt.mean_relative_change) == (7, 0.0)
