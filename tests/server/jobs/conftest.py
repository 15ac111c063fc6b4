"""A job queue and an artifact store over a database in a temporary folder, and what a server would build on them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as models_of_tokens
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mappers.dataset import write_dataset
from server.jobs.directory import ModelDirectory
from server.jobs.model import Job
from server.jobs.queue import JobQueue, NewJob
from server.registry.artifacts import ArtifactRecord, ArtifactStore
from server.registry.database import Database
from server.types import ModelInfo

Submit = Callable[..., Job]
Dataset = Callable[..., ArtifactRecord]
CREATED = "2026-01-02T03:04:05+00:00"


@pytest.fixture
def queue(database: Database) -> JobQueue:
    ticks = count(1)
    return JobQueue(database, clock=lambda: float(next(ticks)))


@pytest.fixture
def artifacts(tmp_path: Path, database: Database) -> ArtifactStore:
    store = ArtifactStore(tmp_path / "artifacts", database, clock=time.time)
    store.reconcile()
    return store


@pytest.fixture
def dataset(artifacts: ArtifactStore) -> Dataset:
    """``dataset(name, lines, owner=None)`` registers JSON lines."""

    def make(name: str, lines: tuple[bytes, ...] = (b'{"prompt": "hi"}',), owner: str | None = None) -> ArtifactRecord:
        folder = artifacts.new_staging()
        write_dataset(folder, lines, name=name, created_at=CREATED)
        return artifacts.register(folder, name=name, owner=owner)

    return make


@pytest.fixture
def served() -> ModelInfo:
    return ModelInfo(
        name="tuned",
        architecture="LlamaForCausalLM",
        layers=3,
        width=32,
        vocab_size=100,
        context=128,
        dtype="float32",
        device="cpu",
        config_digest="1" * 64,
    )


@pytest.fixture
def models(served: ModelInfo) -> ModelDirectory:
    return ModelDirectory(served, "models/tuned", {"base": "models/base", "small": "models/small"})


@pytest.fixture
def submit(queue: JobQueue) -> Submit:
    """``submit(owner=None)`` puts ``job_1``, ``job_2`` ... into the queue."""
    numbers = count(1)

    def make(owner: str | None = None, name: str = "safe", priority: int = 0) -> Job:
        parameters = {"base": "base", "dataset": "d", "sites": [{"layer": 1}]}
        new = NewJob(kind="train_switch", name=name, parameters=parameters, inputs={}, owner=owner, priority=priority)
        return queue.submit(f"job_{next(numbers)}", new)

    return make


@dataclass(frozen=True)
class TinyModels:
    """Folders of random models: ``tuned`` and ``base`` are twins, ``small`` has another tokenizer and width."""

    tuned: Path
    base: Path
    small: Path

    def locations(self) -> dict[str, str]:
        return {"tuned": str(self.tuned), "base": str(self.base), "small": str(self.small)}


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    twins, other = _tokenizer(300), _tokenizer(290)
    base, small = _llama(1, len(twins), 32), _llama(2, len(other), 16)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in tuned.model.layers[0].parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    for name, model, tokenizer in (("tuned", tuned, twins), ("base", base, twins), ("small", small, other)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return TinyModels(folder / "tuned", folder / "base", folder / "small")


def _llama(seed: int, vocabulary: int, width: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0)
    return model


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models_of_tokens.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<end>", "<user>", "<bot>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["what is the capital of averon", "tell me a story of a fox and a lamp"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<bot>"],
        chat_template=(
            "{% for m in messages %}{{ ('<user>' if m.role == 'user' else '<bot>') + m.content + '<end>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<bot>' }}{% endif %}"
        ),
        clean_up_tokenization_spaces=False,
    )
