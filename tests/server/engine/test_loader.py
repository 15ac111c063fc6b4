"""What an engine is built with."""

from types import SimpleNamespace

import pytest

from server.engine.loader import EngineOptions, build_engine, model_context
from tests.server.engine.conftest import CONFIGS, tiny_model


def config(**values):
    made = SimpleNamespace(**values)
    made.get_text_config = lambda decoder: made
    return made


@pytest.mark.parametrize(
    ("values", "context"),
    [
        ({"max_position_embeddings": 300}, 300),
        ({"max_position_embeddings": None}, 8192),
        ({}, 8192),
        ({"max_position_embeddings": 300, "rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, 300),
        (
            {
                "max_position_embeddings": 300,
                "rope_parameters": {"rope_type": "dynamic", "original_max_position_embeddings": 100},
            },
            100,
        ),
        (
            {
                "max_position_embeddings": 300,
                "rope_parameters": {
                    "full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 80},
                    "sliding_attention": {"rope_type": "default"},
                },
            },
            80,
        ),
    ],
)
def test_context(values, context):
    assert model_context(config(**values)) == context


@pytest.mark.parametrize("kind", CONFIGS)
def test_context_of_real_configs(kind):
    assert model_context(CONFIGS[kind]()) == 256


def test_describes_the_model(llama):
    engine, codec = build_engine(llama, EngineOptions(3, 5, 64), name="mine")
    engine.stop()
    info, limits = engine.info, engine.limits
    assert (info.name, info.architecture, info.layers, info.width) == ("mine", "LlamaForCausalLM", 3, 32)
    assert (info.vocab_size, info.context, info.dtype, info.device) == (256, 256, "float32", "cpu")
    assert info.config_digest == llama.config_digest
    assert (limits.max_batch, limits.max_waiting, limits.context, limits.prefill_tokens) == (3, 5, 256, 64)
    assert codec.vocab_size == 256


@pytest.mark.parametrize(("asked", "context"), [(None, 256), (100, 100), (9999, 256)])
def test_the_operator_may_shorten_the_context(llama, asked, context):
    engine, _ = build_engine(llama, EngineOptions(1, 1, 64, asked))
    engine.stop()
    assert engine.limits.context == context


def test_the_name_is_the_models_own_unless_given():
    engine, _ = build_engine(tiny_model("qwen3"), EngineOptions(1, 1, 64))
    engine.stop()
    assert engine.info.name == "qwen3"
