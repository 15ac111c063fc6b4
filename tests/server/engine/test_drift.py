"""How far a prompt lies from what its switch was trained on, in the receipt."""

from dataclasses import replace

import pytest
import torch

from mappers.drift import DriftMonitor
from mappers.hooks import block_outputs
from mappers.sites import Site
from server.interventions.residency import ResidentArtifact
from server.types import NONE, Apply, Positions
from tests.server.engine.conftest import greedy, record_logits, tiny_model
from tests.server.engine.interventions import WIDTH, gate, gated, switch, vector

pytestmark = pytest.mark.parametrize("static", [False, True], ids=["eager", "static"])

PROMPT = list(range(1, 41))


def monitor(seed=0):
    generator = torch.Generator().manual_seed(seed)
    basis_RD = torch.linalg.qr(torch.randn(WIDTH, 4, generator=generator)).Q.T.contiguous()
    return DriftMonitor(torch.randn(WIDTH, generator=generator), basis_RD, torch.tensor([9.0, 5.0, 2.0, 1.5, 0.5]))


def watched(used, *layers, seed=0):
    monitors = {Site(layer): monitor(seed + layer) for layer in layers}
    return replace(used, artifact=ResidentArtifact("switch", used.digest, used.effects, monitors=monitors))


def expected(loaded, used, positions):
    """The mean over sites and prompt tokens, each site read with the switch on below it."""
    seen = {}

    def act(site, h_BTD):
        if site not in used.sites:
            return None
        seen[site] = h_BTD[0].clone()
        changed_BTD = h_BTD.clone()
        changed_BTD[:, positions] = used.effects[site](h_BTD[:, positions])
        return changed_BTD

    callbacks = {site: (lambda h, site=site: act(site, h)) for site in used.sites}
    with torch.no_grad(), block_outputs(loaded.stack, callbacks):
        loaded.model(torch.tensor([PROMPT]))
    distances = [one.distances(seen[site][positions]) for site, one in used.artifact.monitors.items()]
    return float(torch.cat(distances).mean())


@pytest.mark.parametrize("chunk", [64, 7])
def test_the_receipt_has_the_mean_over_sites_and_prompt_tokens(llama, make_harness, chunk):
    everywhere = watched(switch(layers=(0, 2)), 0, 2)
    early = watched(switch(layers=(1,), apply=Apply(prompt=Positions("window", 3, 9))), 1, seed=5)
    harness = make_harness(llama, prefill_tokens=chunk)
    ids = [harness.submit(PROMPT, greedy(6), (used,)) for used in (everywhere, early)]
    others = [
        harness.submit(PROMPT[i:], greedy(6), (watched(switch(layers=(1,), seed=i), 1, seed=i),)) for i in range(4)
    ]
    outcomes = harness.run()
    assert outcomes[ids[0]].end.receipts[0].drift == pytest.approx(
        expected(llama, everywhere, list(range(40))), rel=1e-4
    )
    assert outcomes[ids[1]].end.receipts[0].drift == pytest.approx(expected(llama, early, list(range(3, 9))), rel=1e-4)
    assert len({outcomes[id_].end.receipts[0].drift for id_ in others}) == 4


def test_without_a_monitor_or_a_prompt_token_there_is_none(harness):
    settings = [switch(), vector(), watched(switch(apply=Apply(prompt=NONE)), 1)]
    outcome = harness.alone(PROMPT, greedy(4), settings)
    assert [receipt.drift for receipt in outcome.end.receipts] == [None] * 3


def test_it_is_measured_also_while_a_gate_is_closed(llama, make_harness):
    used = watched(switch(layers=(1,)), 1)
    harness = make_harness(llama)
    outcome = harness.alone(PROMPT, greedy(4), (gated(used, gate(0, on=1e9)),))
    (receipt,) = outcome.end.receipts
    assert (receipt.gate_hits, receipt.drift) == (0, pytest.approx(expected(llama, used, list(range(40))), rel=1e-4))


def test_measuring_changes_no_bit(make_harness):
    seen = []
    for used in (switch(layers=(0, 2)), watched(switch(layers=(0, 2)), 0, 2)):
        harness = make_harness(tiny_model("llama"))
        logits = record_logits(harness)
        id_ = harness.submit(PROMPT, greedy(5), (used,))
        harness.run()
        seen.append(torch.stack(logits[id_]))
    assert torch.equal(*seen)


def test_reused_positions_are_not_measured_again(llama, make_harness):
    used = watched(switch(layers=(1,)), 1)
    harness = make_harness(llama, prefix_bytes=1 << 24)
    first, second = (harness.alone(PROMPT, greedy(4), (used,)) for _ in range(2))
    assert second.end.cached_tokens == 32
    assert first.tokens == second.tokens
    assert 0 < second.end.receipts[0].drift != first.end.receipts[0].drift
