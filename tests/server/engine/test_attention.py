"""Rows of a packed forward against attention of one row alone, and what is read off a model before it is served."""

import random
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    BertGenerationConfig,
    BloomConfig,
    DiffLlamaConfig,
    GPTJConfig,
    GptOssConfig,
    Llama4TextConfig,
    PhimoeConfig,
    Qwen2MoeConfig,
)

from mappers.errors import UnsupportedArchitecture
from server.engine import attention
from server.engine.attention import observe_layers, packed_attention
from server.engine.kv import KvCache, LayerShape
from server.engine.layout import StepLayout
from server.engine.request import GenerationRequest
from server.engine.row import Row
from server.engine.scheduler import Scheduler
from server.types import SamplingParams
from tests.server.engine.conftest import CONFIGS, tiny_model

CONTEXT = 300
PROMPTS = [1, 40, 5, 5, 130, 62, 17]
WINDOWS = [None, 8, 20, 100]


def reference(query_QE, keys_HTE, values_HTF, window, scale, softcap) -> torch.Tensor:
    """One query at the last of T positions, head by head in float64; ``(Q, F)``."""
    groups = len(query_QE) // len(keys_HTE)
    out = []
    for head, query_E in enumerate(query_QE.double()):
        keys_TE, values_TF = (held[head // groups].double() for held in (keys_HTE, values_HTF))
        if window is not None:
            keys_TE, values_TF = keys_TE[-window:], values_TF[-window:]
        scores_T = keys_TE @ query_E * scale
        if softcap is not None:
            scores_T = softcap * torch.tanh(scores_T / softcap)
        out.append(scores_T.softmax(0) @ values_TF)
    return torch.stack(out)


def row_of(number: int, prompt: int) -> Row:
    request = GenerationRequest(f"r{number}", (1,) * prompt, SamplingParams(max_tokens=100))
    return Row(request, lambda _event: None, None, random.Random(0))


class Attending:
    """Rows that come one after another, are read in chunks and decode, with random queries, keys and values.

    ``spoil`` turns what one row computes in a step into something else; ``check`` compares each output with the
    reference. All random numbers of a row depend on that row alone.
    """

    def __init__(self, shapes, queries, *, scale=None, softcap=None, spoil=None) -> None:
        self.shapes, self.queries, self.scale, self.softcap, self.spoil = shapes, queries, scale, softcap, spoil
        self.cache = KvCache(shapes, CONTEXT, torch.device("cpu"))
        self.scheduler = Scheduler(max_batch=8, prefill_tokens=32)
        self.config = SimpleNamespace(_attn_implementation="sdpa", get_text_config=lambda decoder: self.config)
        self.generators: dict[str, torch.Generator] = {}
        self.inputs: dict[tuple[str, int], list] = {}
        self.outputs: dict[tuple[str, int], list] = {}
        self.seen = {"mixed": 0, "classes": set(), "chunks": set()}

    def run(self, prompts, decoded: int) -> None:
        waiting = [row_of(i, prompt) for i, prompt in enumerate(prompts)]
        self.generators |= {row.request.id: torch.Generator().manual_seed(i) for i, row in enumerate(waiting)}
        steps = 0
        while waiting or self.scheduler.waiting or self.scheduler.live:
            if waiting and steps % 2 == 0:
                self.scheduler.submit(waiting.pop(0))
            steps += 1
            batch = self.scheduler.next_batch()
            if batch is not None:
                self.step(batch, decoded)

    def step(self, batch, decoded: int) -> None:
        layout = StepLayout.build(batch, self.cache, torch.device("cpu"))
        self.seen["mixed"] += bool(layout.decode and layout.prompts)
        self.seen["classes"].add(tuple(group.pool.capacity for group in layout.decode))
        self.seen["chunks"] |= {(group.start > 0, group.length) for group in layout.prompts}
        for layer, shape in enumerate(self.shapes):
            drawn = [self.draw(row, count, layer, shape) for row, count in zip(layout.rows, layout.counts, strict=True)]
            query, key, value = (torch.cat(parts, 1)[None] for parts in zip(*drawn, strict=True))
            module = SimpleNamespace(layer_idx=layer)
            with packed_attention(self.config, layout):
                attend = AttentionInterface()[self.config._attn_implementation]
                out_1NQF, _ = attend(module, query, key, value, None, scaling=self.scale, softcap=self.softcap)
            for row, first, count in zip(layout.rows, layout.firsts, layout.counts, strict=True):
                self.outputs.setdefault((row.request.id, layer), []).extend(out_1NQF[0, first : first + count])
        self.scheduler.commit(batch)
        for row in batch.rows:
            if row.computed == len(row.tokens):
                row.tokens.append(0)
            if row.generated > decoded:
                self.scheduler.release(row)
                row.kv.pool.remove(row.kv)

    def draw(self, row, count, layer, shape) -> list[torch.Tensor]:
        generator = self.generators[row.request.id]
        sizes = [(self.queries, shape.key_size), (shape.heads, shape.key_size), (shape.heads, shape.value_size)]
        drawn = [torch.randn(h, count, size, generator=generator).to(shape.dtype) * 1.5 for h, size in sizes]
        if self.spoil is not None:
            self.spoil(row, *drawn)
        self.inputs.setdefault((row.request.id, layer), []).append(drawn)
        return drawn

    def worst(self) -> float:
        """Largest difference from the reference over all rows, layers and positions."""
        worst = 0.0
        for (name, layer), outputs in self.outputs.items():
            shape = self.shapes[layer]
            query, key, value = (torch.cat(parts, 1) for parts in zip(*self.inputs[name, layer], strict=True))
            scale = shape.key_size**-0.5 if self.scale is None else self.scale
            assert len(outputs) == query.shape[1]
            for position, out_QF in enumerate(outputs):
                seen = slice(0, position + 1)
                wanted = reference(query[:, position], key[:, seen], value[:, seen], shape.window, scale, self.softcap)
                worst = max(worst, float((out_QF.double() - wanted).abs().max()))
        return worst


def shapes_of(heads, key_size, value_size, dtype=torch.float32, windows=WINDOWS):
    return [LayerShape(heads, key_size, value_size, window, dtype) for window in windows]


@pytest.mark.parametrize(
    ("heads", "queries", "key_size", "value_size", "scale", "softcap"),
    [
        pytest.param(4, 4, 8, 8, None, None, id="MHA"),
        pytest.param(2, 4, 8, 8, 0.3, None, id="GQA"),
        pytest.param(1, 4, 8, 8, None, None, id="MQA"),
        pytest.param(2, 4, 6, 10, None, None, id="sizes"),
        pytest.param(2, 4, 8, 8, None, 2.0, id="softcap"),
        pytest.param(4, 4, 8, 6, 0.5, 2.0, id="softcap-MHA-sizes"),
    ],
)
def test_each_row_gets_the_attention_of_one_row_alone(heads, queries, key_size, value_size, scale, softcap):
    attending = Attending(shapes_of(heads, key_size, value_size), queries, scale=scale, softcap=softcap)
    attending.run(PROMPTS, decoded=70)
    assert attending.worst() < 1e-5
    assert attending.seen["mixed"] > 5
    assert {(64,), (64, 128, 256)} <= attending.seen["classes"], "three length classes at once"
    assert {start for start, length in attending.seen["chunks"] if length > 1} == {True, False}
    assert attending.cache.nbytes == 0


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("heads", "queries"), [(4, 4), (2, 4), (1, 4)])
def test_keys_that_no_cache_holds_give_the_same(heads, queries, softcap, monkeypatch):
    monkeypatch.setattr(attention, "_LARGE_KEYS", 0)
    attending = Attending(shapes_of(heads, 8, 6), queries, softcap=softcap)
    attending.run(PROMPTS, decoded=20)
    assert attending.worst() < 1e-5


def test_prompts_that_march_in_step_are_read_apart():
    attending = Attending(shapes_of(2, 8, 8), 4)
    for row in [row_of(i, 60) for i in range(2)]:
        attending.scheduler.submit(row)
        attending.generators[row.request.id] = torch.Generator().manual_seed(3)
    attending.run([], decoded=2)
    assert attending.worst() < 1e-5
    assert (True, 16) in attending.seen["chunks"]


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_half_precision_stays_within_its_rounding(softcap):
    attending = Attending(shapes_of(2, 8, 8, torch.bfloat16), 4, softcap=softcap)
    attending.run(PROMPTS, decoded=70)
    assert 0 < attending.worst() < 0.06


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("large", [0, 1 << 24])
def test_what_a_row_holds_reaches_no_other_row(wrong, softcap, large, monkeypatch):
    """NaN and infinity from the middle of a prompt on, and a row that takes the slot afterwards."""
    monkeypatch.setattr(attention, "_LARGE_KEYS", large)

    def spoil(row, query, key, value):
        if row.request.id == "r2" and row.computed + key.shape[1] > 20:
            key[..., -1, :], value[..., -1, :] = wrong, wrong

    runs = []
    for spoiling in (None, spoil):
        attending = Attending(shapes_of(2, 8, 8), 4, softcap=softcap, spoil=spoiling)
        attending.run([30, 9, 40, 30, 70, 12], decoded=40)
        runs.append(attending)
    clean, spoilt = (run.outputs for run in runs)
    assert not torch.isfinite(torch.stack(spoilt["r2", 0])).all()
    for name, layer in clean:
        if name != "r2":
            assert torch.equal(torch.stack(clean[name, layer]), torch.stack(spoilt[name, layer]))


# -- the switch between stock and rows ------------------------------------------------------------------------------


def test_the_stock_implementation_is_restored_after_an_exception():
    model = tiny_model("llama").model
    stock = model.config._attn_implementation
    assert stock == "sdpa"
    with pytest.raises(TypeError), packed_attention(model.config, None):
        model(input_ids="no tensor")
    assert model.config._attn_implementation == stock
    with pytest.raises(UnsupportedArchitecture):
        observe_layers(model, layers=2, context=64)
    assert model.config._attn_implementation == stock
    expected = tiny_model("llama").model(torch.tensor([[1, 2, 3]])).logits
    assert torch.equal(model(torch.tensor([[1, 2, 3]])).logits, expected)


# -- what is read off a model ---------------------------------------------------------------------------------------

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA4 = {
    **SMALL,
    "head_dim": 8,
    "intermediate_size_mlp": 16,
    "num_local_experts": 2,
    "attention_chunk_size": 16,
    "layer_types": ["chunked_attention"] * 2 + ["full_attention"],
    "moe_layers": [],
}


def observed(config, context=64, layers=3):
    return observe_layers(AutoModelForCausalLM.from_config(config).eval(), layers, context)


def test_shapes_are_those_of_the_model():
    assert observed(CONFIGS["gemma3"](), context=256) == (
        LayerShape(2, 8, 8, 8, torch.float32),
        LayerShape(2, 8, 8, 8, torch.float32),
        LayerShape(2, 8, 8, 8, torch.float32),
    )
    assert observed(CONFIGS["gpt2"]()) == (LayerShape(4, 8, 8, None, torch.float32),) * 3


def test_a_window_as_long_as_the_context_is_none():
    windows = [[shape.window for shape in observed(CONFIGS["qwen2-sliding"](), context=c)] for c in (64, 9, 8, 5, 1)]
    assert windows == [[None, 8, 8], [None, 8, 8], [None] * 3, [None] * 3, [None] * 3]


def test_windows_are_found_where_the_attention_is_never_told():
    """Both build their windows into masks only."""
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    qwen = Qwen2MoeConfig(**SMALL, use_sliding_window=True, sliding_window=8, layer_types=types)
    assert [shape.window for shape in observed(qwen)] == [8, None, 8]
    phi = PhimoeConfig(**SMALL, sliding_window=8, num_local_experts=2)
    assert [shape.window for shape in observed(phi)] == [8, 8, 8]


def test_chunks_are_refused_unless_the_context_is_one_chunk():
    with pytest.raises(UnsupportedArchitecture, match="neither causal nor a window"):
        observed(Llama4TextConfig(**LLAMA4))
    for context in (17, 31, 32, 33, 48):
        with pytest.raises(UnsupportedArchitecture, match="neither causal nor a window"):
            observed(Llama4TextConfig(**LLAMA4), context=context)
    assert [shape.window for shape in observed(Llama4TextConfig(**LLAMA4), context=16)] == [None] * 3


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lambda: GptOssConfig(**SMALL, head_dim=4, num_local_experts=2), "GptOssAttention attends with s_aux"),
        (
            lambda: BloomConfig(vocab_size=64, hidden_size=16, n_layer=3, n_head=4),
            "BloomForCausalLM: 0 of its 3 layers attend through",
        ),
        (
            lambda: GPTJConfig(vocab_size=64, n_embd=16, n_layer=3, n_head=4, rotary_dim=4, n_positions=64),
            "GPTJForCausalLM: 0 of its 3 layers attend through",
        ),
        (lambda: DiffLlamaConfig(**SMALL), "more than once in layer 0"),
        (lambda: BertGenerationConfig(**{**SMALL, "num_key_value_heads": 4}), "neither causal nor a window"),
    ],
)
def test_what_rows_cannot_have_alone_is_refused_with_the_reason(config, reason):
    with pytest.raises(UnsupportedArchitecture, match=reason):
        observed(config())


def test_a_mask_of_the_model_s_own_is_refused():
    loaded = tiny_model("llama")
    attention = loaded.stack.blocks[1].self_attn
    forward = attention.forward

    def biased(*args, attention_mask=None, **kwargs):
        return forward(*args, attention_mask=torch.zeros(1, 1, 1, 1), **kwargs)

    attention.forward = biased
    with pytest.raises(UnsupportedArchitecture, match="LlamaAttention attends with a mask"):
        observe_layers(loaded.model, 3, 64)
