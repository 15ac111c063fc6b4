"""Tiny random models of many architectures, and a harness that runs requests through a real engine."""

import queue
from dataclasses import dataclass, field

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    Glm4Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PhimoeConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)

from mappers.architectures import config_digest, discover
from mappers.loading import LoadedModel
from server.engine.loader import EngineOptions, build_engine
from server.engine.request import GenerationRequest
from server.types import Failed, Finished, PromptScored, SamplingParams, TokensGenerated, TokensScored
from tests.server.conftest import byte_tokenizer

# Tiny models gain nothing from more threads, and lose much to a loaded machine.
torch.set_num_threads(1)

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
LONG = list(range(1, 151))
VOCAB = 256
WIDTH = 32

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 0,
    "bos_token_id": 1,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
_SLIDING = {"sliding_window": 8, "layer_types": ["full_attention"] + ["sliding_attention"] * 2}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_GPT2 = {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": 3, "n_head": 4, "n_positions": 256, "initializer_range": 0.3}

CONFIGS = {
    "llama": lambda: LlamaConfig(**_COMMON),
    "qwen2": lambda: Qwen2Config(**_COMMON),
    "qwen2-sliding": lambda: Qwen2Config(**_COMMON, **_SLIDING, use_sliding_window=True),
    "qwen3": lambda: Qwen3Config(**_COMMON, head_dim=8),
    "gemma2": lambda: Gemma2Config(**_COMMON, head_dim=8, sliding_window=8, query_pre_attn_scalar=8),
    "gemma3": lambda: Gemma3TextConfig(**_COMMON, head_dim=8, sliding_window=8, query_pre_attn_scalar=8),
    "mistral-sliding": lambda: MistralConfig(**_COMMON, sliding_window=8),
    "gpt2": lambda: GPT2Config(**_GPT2, eos_token_id=0, bos_token_id=1),
    "gpt-neox": lambda: GPTNeoXConfig(**{k: v for k, v in _COMMON.items() if k != "num_key_value_heads"}),
    "phi3": lambda: Phi3Config(**_COMMON),
    "olmo2": lambda: Olmo2Config(**_COMMON),
    "olmo3-sliding": lambda: Olmo3Config(**_COMMON, **_SLIDING),
    "smollm3": lambda: SmolLM3Config(**_COMMON),
    "starcoder2-sliding": lambda: Starcoder2Config(**_COMMON, sliding_window=8),
    "cohere": lambda: CohereConfig(**_COMMON),
    "cohere2-sliding": lambda: Cohere2Config(**_COMMON, **_SLIDING, head_dim=8),
    "stablelm": lambda: StableLmConfig(**_COMMON),
    "granite": lambda: GraniteConfig(**_COMMON),
    "glm4": lambda: Glm4Config(**_COMMON, head_dim=8),
    "mixtral": lambda: MixtralConfig(**_COMMON, num_local_experts=4, num_experts_per_tok=2),
    "qwen2-moe-sliding": lambda: Qwen2MoeConfig(
        **_COMMON, **_SLIDING, **_EXPERTS, num_experts=4, shared_expert_intermediate_size=16, use_sliding_window=True
    ),
    "phimoe-sliding": lambda: PhimoeConfig(**_COMMON, sliding_window=8, num_local_experts=4, num_experts_per_tok=2),
    "deepseek-v3": lambda: DeepseekV3Config(
        **{**_COMMON, "num_key_value_heads": 4},
        **_EXPERTS,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=6,
    ),
}


def tiny_model(kind: str = "llama", seed: int = 0, context: int = 256) -> LoadedModel:
    torch.manual_seed(seed)
    config = CONFIGS[kind]()
    config.max_position_embeddings = context
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.requires_grad_(False)
    model.eval()
    return LoadedModel(model, byte_tokenizer(), discover(model), kind, config_digest(model.config))


@dataclass
class Outcome:
    """Everything that came back for one request."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list = field(default_factory=list)
    prompt: PromptScored | None = None
    divergences: list[float] | None = None
    end: Finished | Failed | None = None


class Harness:
    """Drives an engine step by step on the test's own thread, so that tests decide what happens between steps."""

    def __init__(self, loaded: LoadedModel, **options: int) -> None:
        settings = {"max_batch": 64, "max_waiting": 64, "prefill_tokens": 64, **options}
        self.loaded = loaded
        self.engine, self.codec = build_engine(loaded, EngineOptions(**settings))
        self.outcomes: dict[str, Outcome] = {}
        self._count = 0

    def submit(self, prompt, sampling=None, interventions=(), id=None) -> str:
        self._count += 1
        id = id or f"r{self._count}"
        outcome = self.outcomes[id] = Outcome()
        sampling = sampling or greedy()
        self.engine.submit(GenerationRequest(id, tuple(prompt), sampling, tuple(interventions)), _collector(outcome))
        return id

    def compare(self, prompt, text, settings, owner=None) -> list[str]:
        """Submits rows that score ``text``, one for each of ``settings``."""
        self._count += 1
        ids = [f"c{self._count}-{i}" for i in range(len(settings))]
        self.outcomes |= {id: Outcome() for id in ids}
        requests = [
            GenerationRequest(id, tuple(prompt), SamplingParams(max_tokens=0), tuple(used), owner, tuple(text))
            for id, used in zip(ids, settings, strict=True)
        ]
        self.engine.submit_together(requests, [_collector(self.outcomes[id]) for id in ids])
        return ids

    def step(self) -> bool:
        self.engine._obey(wait=False)
        return self.engine.step()

    def run(self) -> dict[str, Outcome]:
        self.engine._obey(wait=False)
        while self.step():
            pass
        return self.outcomes

    def alone(self, prompt, sampling=None, interventions=()) -> Outcome:
        id = self.submit(prompt, sampling, interventions)
        self.run()
        return self.outcomes[id]

    def generate(self, prompt, count: int) -> list[int]:
        """What transformers' own generate gives."""
        ids = torch.tensor([list(prompt)])
        out = self.loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return out[0, len(prompt) :].tolist()


def _collector(outcome: Outcome):
    def sink(event) -> None:
        if isinstance(event, TokensGenerated):
            outcome.tokens += event.token_ids
            outcome.text += event.text
            outcome.logprobs += event.logprobs
        elif isinstance(event, PromptScored):
            outcome.prompt = event
        elif isinstance(event, TokensScored):
            outcome.divergences = list(event.divergences)
        else:
            assert outcome.end is None, "a request ended twice"
            outcome.end = event

    return sink


def greedy(max_tokens: int = 24, **settings) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, **settings)


@pytest.fixture(scope="session")
def llama() -> LoadedModel:
    return tiny_model("llama")


@pytest.fixture
def static() -> bool:
    """Whether decode steps run through the program that a GPU would replay; some modules ask for both."""
    return False


@pytest.fixture
def harness(llama, static):
    made = Harness(llama, static=static)
    yield made
    made.engine.stop()


@pytest.fixture
def make_harness(static):
    made: list[Harness] = []

    def make(loaded: LoadedModel, **options: int) -> Harness:
        made.append(Harness(loaded, **{"static": static, **options}))
        return made[-1]

    yield make
    for one in made:
        one.engine.stop()


@pytest.fixture
def events() -> queue.Queue:
    return queue.Queue()


def assert_all_free(harness: Harness) -> None:
    harness.step()
    engine = harness.engine
    assert engine.generations() == []
    assert engine._runner.meters.in_use == 0
    assert sum(len(pool.slots) for pool in engine._runner.cache.pools) == 0
    assert engine._runner.cache.nbytes == 0 or engine._runner.static
    assert (engine._scheduler.live, engine._scheduler.waiting) == (0, 0)


def record_logits(harness: Harness) -> dict[str, list[torch.Tensor]]:
    """Keeps the logits of every row of every forward."""
    seen: dict[str, list[torch.Tensor]] = {}
    forward = harness.engine._runner.forward

    def recording(batch):
        result = forward(batch)
        for row, logits in zip(result.ready, result.logits_BV, strict=True):
            seen.setdefault(row.request.id, []).append(logits.clone())
        return result

    harness.engine._runner.forward = recording
    return seen
