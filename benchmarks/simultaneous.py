"""n equal requests at once: transformers' ``generate`` on a padded batch against the row engine, with and without
interventions."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable

import torch

from benchmarks.workload import autoencoder_switch, prompts, random_llama, vector
from mappers.loading import LoadedModel
from server.engine.loader import EngineOptions, build_engine
from server.engine.request import GenerationRequest
from server.interventions.catalog import ResolvedIntervention
from server.types import Event, Failed, Finished, SamplingParams

PROMPT, NEW = 32, 64

Contender = Callable[[], float]


def contenders(shape: str, count: int) -> dict[str, Contender]:
    """Name -> a function that does the whole work once and returns tokens a second."""
    loaded = random_llama(shape)
    alone = random_llama(shape)
    engine, _ = build_engine(loaded, EngineOptions(max_batch=max(count, 1), max_waiting=count, prefill_tokens=2048))
    engine.start()
    width, middle = loaded.stack.width, loaded.stack.layers // 2
    switch = autoencoder_switch(width, middle)
    settings: dict[str, list[tuple[ResolvedIntervention, ...]]] = {
        "engine, no interventions": [()] * count,
        "engine, switch on half of the rows": [(switch,) if i % 2 == 0 else () for i in range(count)],
        "engine, switch on every row": [(switch,)] * count,
        "engine, a different vector on every row": [(vector(width, middle, i),) for i in range(count)],
    }

    def served(interventions: list[tuple[ResolvedIntervention, ...]]) -> float:
        ended: queue.SimpleQueue[Event] = queue.SimpleQueue()

        def sink(event: Event) -> None:
            if isinstance(event, Finished | Failed):
                ended.put(event)

        began = time.perf_counter()
        sampling = SamplingParams(max_tokens=NEW, temperature=0.0, ignore_eos=True)
        for i, prompt in enumerate(prompts(count, PROMPT)):
            engine.submit(GenerationRequest(f"r{i}", tuple(prompt), sampling, interventions[i]), sink)
        events = [ended.get() for _ in range(count)]
        if failed := [event for event in events if isinstance(event, Failed)]:
            raise RuntimeError(f"a benchmark request failed: {failed[0].message}")
        return count * NEW / (time.perf_counter() - began)

    made: dict[str, Contender] = {"generate, padded batch": lambda: _generate(alone, count)}
    return made | {name: (lambda chosen=chosen: served(chosen)) for name, chosen in settings.items()}


def _generate(loaded: LoadedModel, count: int) -> float:
    ids = torch.tensor(prompts(count, PROMPT))
    began = time.perf_counter()
    out = loaded.model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
    )
    assert out.shape[1] == PROMPT + NEW
    return count * NEW / (time.perf_counter() - began)
