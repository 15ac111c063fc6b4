"""Linear layers as the engine computes them: right, and a row never sees its neighbours."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mappers.errors import UnsupportedArchitecture
from server.engine.linears import (
    EngineLinear,
    _of_few_sizes,
    has_int8,
    has_onednn,
    install_linears,
    int8_product,
    packed_product,
    weight_bytes,
)
from server.engine.precision import served_dtype
from server.types import Failed, Finished
from tests.server.engine.conftest import CONFIGS, greedy, tiny_model
from tests.server.engine.interventions import switch, vector

pytestmark = [
    pytest.mark.skipif(not has_onednn(), reason="this build of torch has no oneDNN"),
    pytest.mark.filterwarnings("error"),
]
needs_vnni = pytest.mark.skipif(
    not torch.cpu.get_capabilities().get("avx512_vnni"), reason="int8 is served on CPUs with VNNI only"
)

INPUTS, OUTPUTS = 288, 300
NEIGHBOURS = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf"), "huge": 3e38, "zero": 0.0}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def product(kind: str, bias: bool = True):
    weight_OI = random(OUTPUTS, INPUTS, seed=1)
    bias_O = random(OUTPUTS, seed=2) if bias else None
    if kind == "int8":
        return int8_product(weight_OI, bias_O), weight_OI, bias_O
    dtype = getattr(torch, kind)
    bias_O = None if bias_O is None else bias_O.to(dtype)
    return packed_product(weight_OI.to(dtype), bias_O), weight_OI.to(dtype), bias_O


KINDS = [pytest.param("float32"), pytest.param("bfloat16"), pytest.param("int8", marks=needs_vnni)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kind", "error"), [("float32", 1e-6), ("bfloat16", 4e-3), pytest.param("int8", 1.5e-2, marks=needs_vnni)]
)
@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 7), (2, 3), (1, 0), (1, 257)])
def test_what_is_computed(kind, error, shape, bias):
    computed, weight_OI, bias_O = product(kind, bias)
    x_I = random(*shape, INPUTS).to(weight_OI.dtype)
    expected_O = F.linear(x_I.double(), weight_OI.double(), None if bias_O is None else bias_O.double())
    with torch.inference_mode():
        y_O = computed(x_I)
    assert (y_O.shape, y_O.dtype) == (expected_O.shape, x_I.dtype)
    assert float((y_O - expected_O).abs().max() if y_O.numel() else 0) <= error * float(weight_OI.norm(dim=1).max() * 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("neighbour", NEIGHBOURS)
@pytest.mark.parametrize("rows", [2, 8, 33])
def test_a_neighbour_changes_no_bit_of_a_row(kind, neighbour, rows):
    computed, weight_OI, _ = product(kind)
    x_RI = random(rows, INPUTS, seed=3).to(weight_OI.dtype)
    other_RI = x_RI.clone()
    other_RI[rows // 2] = NEIGHBOURS[neighbour]
    kept = [row for row in range(rows) if row != rows // 2]
    with torch.inference_mode():
        y_RO, other_RO = computed(x_RI), computed(other_RI)
    assert torch.equal(y_RO[kept], other_RO[kept])
    assert not torch.equal(y_RO, other_RO)


@needs_vnni
def test_in_int8_a_row_is_the_same_alone_and_in_any_company():
    computed, _, _ = product("int8")
    x_RI = random(40, INPUTS, seed=4) * torch.logspace(-20, 20, 40)[:, None]
    with torch.inference_mode():
        together_RO = computed(x_RI)
        assert all(torch.equal(computed(x_RI[i : i + 1])[0], together_RO[i]) for i in range(40))
        assert all(torch.equal(computed(x_RI[:count]), together_RO[:count]) for count in (2, 3, 8, 17))


@needs_vnni
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_in_int8_a_row_that_is_not_finite_stays_so(value):
    """The engine ends such a row with an error: it must not come back as numbers."""
    computed, _, _ = product("int8")
    x_I = random(1, INPUTS)
    x_I[0, 5] = value
    with torch.inference_mode():
        assert not computed(x_I).isfinite().any()


@needs_vnni
def test_in_int8_a_row_of_zeros_gives_the_bias():
    computed, _, bias_O = product("int8")
    with torch.inference_mode():
        assert torch.equal(computed(torch.zeros(1, INPUTS))[0], bias_O)


@needs_vnni
def test_in_int8_an_output_without_weights_is_zero():
    weight_OI = random(OUTPUTS, INPUTS)
    weight_OI[7] = 0
    with torch.inference_mode():
        y_O = int8_product(weight_OI, None)(random(3, INPUTS))
    assert not y_O[:, 7].any()
    assert y_O.isfinite().all()


def logits(loaded, ids=((3, 1, 4, 1, 5, 9, 2, 6),)):
    with torch.inference_mode():
        return loaded.model(input_ids=torch.tensor(ids), use_cache=False).logits


@needs_vnni
@pytest.mark.parametrize("kind", CONFIGS)
def test_every_linear_layer_of_a_model_is_replaced(kind):
    loaded = tiny_model(kind)
    before = logits(loaded)
    embeddings = loaded.model.get_input_embeddings().weight.clone()
    install_linears(loaded.model, "int8")
    assert not [m for m in loaded.model.modules() if type(m).__name__ in ("Linear", "Conv1D")]
    assert has_int8(loaded.model)
    assert torch.equal(loaded.model.get_input_embeddings().weight, embeddings), "a tied head is quantised alone"
    after = logits(loaded)
    assert 0 < float((after - before).norm() / before.norm()) < 0.1, "three layers of random weights amplify an error"


@needs_vnni
def test_layers_that_read_one_tensor_are_one_product():
    loaded = tiny_model("llama")
    install_linears(loaded.model, "int8")
    attention, mlp = loaded.stack.blocks[0].self_attn, loaded.stack.blocks[0].mlp
    shared = [layer._product.func.__self__ for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
    assert shared[0] is shared[1] is shared[2]
    assert mlp.gate_proj._product.func.__self__ is mlp.up_proj._product.func.__self__ is not shared[0]
    logits(loaded)
    assert shared[0]._input is None, "nothing is kept from one forward to the next"


@needs_vnni
def test_a_shared_product_is_computed_anew_for_another_tensor_and_when_asked_again():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 6, bias=False)

        def forward(self, input_ids, use_cache):
            x_I = input_ids[..., None] * torch.ones(8)
            return self.a(x_I), self.b(x_I)

    model = Both().requires_grad_(False)
    a, b = model.a, model.b
    install_linears(model, "int8")
    with torch.inference_mode():
        for x_I in (random(2, 8), random(2, 8, seed=1)):
            for new, old in ((model.a, a), (model.a, a), (model.b, b), (model.a, a)):
                assert torch.allclose(new(x_I), old(x_I), atol=0.05)


def test_small_float32_layers_stay_as_they_are():
    loaded = tiny_model("llama")
    install_linears(loaded.model)
    assert not any(isinstance(module, EngineLinear) for module in loaded.model.modules())


def test_subclasses_are_left_alone():
    class Adapter(nn.Linear):
        pass

    loaded = tiny_model("llama")
    loaded.stack.blocks[0].mlp.down_proj = Adapter(64, 32).to(torch.bfloat16)
    loaded.model.to(torch.bfloat16)
    install_linears(loaded.model)
    assert type(loaded.stack.blocks[0].mlp.down_proj) is Adapter
    assert isinstance(loaded.stack.blocks[1].mlp.down_proj, EngineLinear)


def test_a_model_that_does_not_run_is_refused_with_its_reason():
    loaded = tiny_model("llama")
    loaded.stack.blocks[0].forward = None
    with pytest.raises(UnsupportedArchitecture, match=r"does not run: .*not callable"):
        install_linears(loaded.model)


PRECISIONS = [pytest.param("bfloat16"), pytest.param("int8", marks=needs_vnni)]


def installed(kind: str, precision: str):
    loaded = tiny_model(kind)
    if precision == "bfloat16":
        loaded.model.to(torch.bfloat16)
    install_linears(loaded.model, "int8" if precision == "int8" else "native")
    assert served_dtype(loaded.model) == precision
    return loaded


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_engine_serves_it(kind, precision, make_harness):
    """Self-check passed, tokens as the model alone gives them, interventions at work."""
    harness = make_harness(installed(kind, precision), prefill_tokens=16)
    assert harness.engine.info.dtype == precision
    plain = harness.submit([1, 2, 3] * 9, greedy(8))
    steered = harness.submit([1, 2, 3] * 9, greedy(8), (switch(), vector("add", (1,), 8.0)))
    outcomes = harness.run()
    assert isinstance(outcomes[plain].end, Finished)
    assert outcomes[steered].end.receipts[1].mean_relative_change > 0
    assert outcomes[steered].tokens != outcomes[plain].tokens
    if precision == "int8":
        assert outcomes[plain].tokens == harness.generate([1, 2, 3] * 9, 8)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_steered_or_ruined_neighbour_changes_nothing(precision, make_harness):
    """While the batch holds the same rows, tokens and log-probabilities are identical whatever is done to others."""
    seen = []
    for strength in (0.0, 5.0, 3e38):
        harness = make_harness(installed("llama", precision), prefill_tokens=64)
        others = [harness.submit([7, i], greedy(12), (vector("add", (0,), strength),)) for i in range(3)]
        watched = harness.submit([5, 6, 7], greedy(12, logprobs=3))
        outcomes = harness.run()
        seen.append(list(zip(outcomes[watched].tokens, outcomes[watched].logprobs, strict=True)))
        ruined = [isinstance(outcomes[other].end, Failed) for other in others]
        assert ruined == [strength > 1e30] * 3
    assert len(seen[0]) == 12
    assert seen[0] == seen[1]
    assert seen[0][0] == seen[2][0], "ruined rows leave after the first token"


def test_weights_are_counted_wherever_they_lie():
    """Llama of 3 layers, untied: what is laid out in int8 takes a quarter, embeddings and norms stay."""
    stock, int8 = tiny_model("llama"), tiny_model("llama")
    every = weight_bytes(stock.model)
    linear = sum(m.weight.numel() * 4 for m in stock.model.modules() if isinstance(m, torch.nn.Linear))
    install_linears(int8.model, "int8")
    assert weight_bytes(int8.model) == every - linear + linear // 4


@pytest.mark.parametrize(("rows", "computed"), [(1, 1), (63, 63), (64, 64), (65, 80), (80, 80), (200, 208)])
def test_many_rows_are_computed_in_few_sizes(rows, computed):
    seen = []

    def product(x_I):
        seen.append(x_I.shape[-2])
        return 2 * x_I

    x_1NI = torch.randn(1, rows, 3)
    assert torch.equal(_of_few_sizes(product)(x_1NI), 2 * x_1NI)
    assert torch.equal(_of_few_sizes(product)(x_1NI[0]), 2 * x_1NI[0])
    assert seen == [computed, computed]
