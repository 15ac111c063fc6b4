"""Every architecture is served token for token as ``model.generate`` does, in a mixed batch and in chunks."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, JambaConfig, MambaConfig, RecurrentGemmaConfig, T5Config

from mappers.architectures import config_digest, discover
from mappers.errors import UnsupportedArchitecture
from mappers.loading import LoadedModel
from server.engine.loader import EngineOptions, build_engine, model_context
from server.types import Finished
from tests.server.engine.conftest import CONFIGS, Harness, assert_all_free, byte_tokenizer, greedy, tiny_model
from tests.server.engine.interventions import switch, vector


@pytest.mark.parametrize("kind", CONFIGS)
def test_equal_to_generate(kind, make_harness):
    harness = make_harness(tiny_model(kind), prefill_tokens=16)
    rng = random.Random(1)
    prompts = [[rng.randrange(1, 256) for _ in range(length)] for length in (1, 3, 12, 21, 40)]
    ids = [harness.submit(prompt, greedy(24)) for prompt in prompts]
    outcomes = harness.run()
    for id_, prompt in zip(ids, prompts, strict=True):
        assert outcomes[id_].tokens == harness.generate(prompt, 24)
    assert len({tuple(outcomes[id_].tokens) for id_ in ids}) == len(ids), "the prompts have to matter"


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3", "qwen2-sliding", "mistral-sliding"])
def test_equal_to_generate_through_all_length_classes(kind, make_harness):
    """Windows of 8 in a context of 512; one prompt is longer than the first classes, one row goes through them all."""
    harness = make_harness(tiny_model(kind, context=512), prefill_tokens=48)
    rng = random.Random(2)
    wanted = [(3, 400), (70, 320), (150, 12), (30, 60)]
    prompts = [([rng.randrange(1, 256) for _ in range(length)], count) for length, count in wanted]
    ids = [harness.submit(prompt, greedy(count)) for prompt, count in prompts]
    classes = set()
    while harness.step():
        classes.add(tuple(pool.capacity for pool in harness.engine._runner.cache.pools))
    assert {(64, 128, 256), (128, 256), (256,), (512,)} <= classes
    for id_, (prompt, count) in zip(ids, prompts, strict=True):
        assert harness.outcomes[id_].tokens == harness.generate(prompt, count)
    assert_all_free(harness)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, make_harness):
    loaded = tiny_model("gemma2")
    loaded.model.to(dtype)
    harness = make_harness(loaded, prefill_tokens=16)
    steered = harness.submit([1, 2, 3] * 9, greedy(8), (switch(), vector("ablate", (0, 2))))
    plain = harness.submit([1, 2, 3] * 9, greedy(8))
    outcomes = harness.run()
    assert outcomes[plain].tokens == harness.generate([1, 2, 3] * 9, 8)
    assert isinstance(outcomes[steered].end, Finished)
    assert outcomes[steered].tokens != outcomes[plain].tokens


def test_blocks_are_found_in_order():
    for kind in CONFIGS:
        loaded = tiny_model(kind)
        assert loaded.stack.layers == 3
        assert loaded.stack.width == 32
        order = []
        handles = [b.register_forward_pre_hook(lambda m, _, order=order: order.append(m)) for b in loaded.stack.blocks]
        loaded.model(torch.tensor([[1, 2, 3]]))
        for handle in handles:
            handle.remove()
        assert order == list(loaded.stack.blocks)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lambda: MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2), "recurrent|kind"),
        (
            lambda: JambaConfig(
                vocab_size=64, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, use_mamba_kernels=False
            ),
            "recurrent|kind",
        ),
        (lambda: RecurrentGemmaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=3), "recurrent|kind"),
    ],
)
def test_recurrent_models_are_refused_with_the_reason(config, reason):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config())
    with pytest.raises(UnsupportedArchitecture, match=reason):
        discover(model)


def test_encoder_decoders_are_refused():
    class Fake(torch.nn.Module):
        config = T5Config(num_layers=2, d_model=8)

    with pytest.raises(UnsupportedArchitecture, match="encoder-decoder"):
        discover(Fake())


def test_a_model_whose_attention_is_its_own_is_refused():
    """BLOOM adds its ALiBi biases without asking anybody."""
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=256, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)
    model = AutoModelForCausalLM.from_config(config).eval()
    loaded = LoadedModel(model, byte_tokenizer(), discover(model), "bloom", config_digest(config))
    with pytest.raises(UnsupportedArchitecture, match="BloomForCausalLM: 0 of its 2 layers"):
        build_engine(loaded, EngineOptions(4, 4, 64))


def test_context_stops_where_rotary_embeddings_would_depend_on_the_batch():
    config = CONFIGS["phi3"]()
    assert model_context(config) == 256
    config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 64}
    assert model_context(config) == 64


def test_harness_generate_is_an_oracle_of_its_own(llama):
    """The oracle must not depend on hooks that the engine left on the model."""
    harness = Harness(llama)
    before = harness.generate([5, 6, 7], 8)
    harness.engine.stop()
    assert harness.generate([5, 6, 7], 8) == before
