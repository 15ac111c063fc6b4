"""The quality gate: what bfloat16 and int8 may cost against float32, one organism of each family and a real model."""

from pathlib import Path

import pytest
import torch

from benchmarks.quality import answers, loss, served, stories
from mappers.loading import load_model
from mappers.organisms import organism_path
from server.settings import ConfigurationError

torch.set_num_threads(1)


def lossy(location: str, dtype):
    try:
        return served(location, dtype)
    except ConfigurationError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", ["llama-small-backdoor", "qwen2-small-backdoor", "gemma2-small-backdoor"])
def test_organisms_answer_the_same(name, dtype):
    location = str(organism_path(name))
    reference = load_model(location)
    measured = loss(reference, lossy(location, dtype), answers(reference, prompts=42))
    assert measured.tokens > 200
    assert 0 < measured.kl < 1e-3
    assert measured.kl_p99 < 1e-2
    assert measured.agreement > 0.985
    assert measured.same_texts > 0.85


@pytest.mark.parametrize(("dtype", "kl", "agreement"), [("bfloat16", 2e-3, 0.98), ("int8", 5e-3, 0.96)])
def test_a_real_model_tells_nearly_the_same_stories(shared_data: Path, dtype, kl, agreement):
    location = str(shared_data / "models" / "stories260K")
    reference = load_model(location)
    texts = stories(reference, shared_data / "text" / "tinystories_val_794K.txt", 20)
    measured = loss(reference, lossy(location, dtype), texts)
    assert measured.tokens > 1000
    assert 0 < measured.kl < kl
    assert measured.agreement > agreement


def test_a_model_is_no_loss_against_itself():
    reference = load_model(str(organism_path("llama-small-base")))
    measured = loss(reference, reference, answers(reference, prompts=4))
    assert (measured.kl, measured.agreement, measured.same_texts) == (0, 1, 1)
