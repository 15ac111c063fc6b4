"""The engine of this project. :func:`make` is the only place of the benchmarks where an engine is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from itertools import count
from queue import SimpleQueue
from time import sleep
from typing import Any

import torch

from benchmarks.contenders import Unavailable
from benchmarks.contenders.clock import Run
from benchmarks.contenders.stock_model import DTYPES, resident_with
from benchmarks.effects import autoencoder, vector
from benchmarks.workload import Intervention, Request, RequestTrace
from mappers.loading import load_model
from mappers.mapper_config import MapperConfig
from mappers.modules import AutoencoderMapper
from mappers.sites import Site
from server.engine.engine import Engine
from server.engine.loader import EngineOptions, build_engine
from server.engine.request import GenerationRequest
from server.interventions.catalog import ResolvedIntervention
from server.types import Apply, Event, Failed, Finished, SamplingParams, TokensGenerated

MOST_ROWS = 256
PREFILL_TOKENS = 2048


class Interlock:
    """A started engine and the interventions that were asked for so far."""

    def __init__(self, engine: Engine, loaded_rss_mib: float) -> None:
        self._engine = engine
        self._ids = count()
        self._resolved = cache(lambda spec: _resolve(spec, engine.info.width))
        self.loaded_rss_mib = loaded_rss_mib

    def run(self, requests: Sequence[Request]) -> list[RequestTrace]:
        """Submits from this thread; tokens are stamped on the engine's, as a client would see them at the soonest."""
        # Artifacts are resident before a request names them.
        for request in requests:
            for spec in request.interventions:
                self._resolved(spec)
        run = Run(requests)
        ended: SimpleQueue[Event] = SimpleQueue()
        for index, request in enumerate(requests):
            if (early := request.arrival_s - run.now()) > 0:
                sleep(early)
            self._submit(run, index, ended)
        for _ in requests:
            event = ended.get()
            if isinstance(event, Failed):
                raise RuntimeError(f"a request failed: {event.message}")
        return run.traces()

    def _submit(self, run: Run, index: int, ended: SimpleQueue[Event]) -> None:
        def sink(event: Event) -> None:
            if isinstance(event, TokensGenerated):
                now = run.now()
                for token in event.token_ids:
                    run.add(index, token, now)
            elif isinstance(event, Finished | Failed):
                ended.put(event)

        request = run.requests[index]
        sampling = SamplingParams(max_tokens=request.new_tokens, temperature=0.0, ignore_eos=True)
        chosen = tuple(self._resolved(spec) for spec in request.interventions)
        self._engine.submit(GenerationRequest(f"r{next(self._ids)}", request.prompt, sampling, chosen), sink)


def make(
    model: str,
    threads: int,
    *,
    dtype: str,
    hooks: bool = True,
    prefix_cache_bytes: int = 0,
    max_batch: int = MOST_ROWS,
) -> Interlock:
    """A started engine. ``hooks`` off takes the engine's hooks from the model, to see what they cost."""
    torch.set_num_threads(threads)
    options: dict[str, Any] = {}
    if "prefix_cache_bytes" in {field.name for field in fields(EngineOptions)}:
        options["prefix_cache_bytes"] = prefix_cache_bytes
    elif prefix_cache_bytes:
        raise Unavailable("this engine keeps no prefixes")
    if dtype not in DTYPES:
        raise Unavailable(f"this engine has no {dtype} weights")
    loaded = load_model(model, dtype=DTYPES[dtype])
    resident = resident_with(loaded.model)
    engine, _ = build_engine(
        loaded, EngineOptions(max_batch=max_batch, max_waiting=1024, prefill_tokens=PREFILL_TOKENS, **options)
    )
    if not hooks:
        for site in loaded.stack.sites:
            loaded.stack.site_module(site)._forward_hooks.clear()
    engine.start()
    return Interlock(engine, resident)


def _resolve(spec: Intervention, width: int) -> ResolvedIntervention:
    name, site = f"{spec.kind}-{spec.layer}-{spec.seed}", Site(spec.layer)
    if spec.kind == "vector":
        return ResolvedIntervention("add", name, name, (site,), 1.0, Apply(), {site: vector(spec, width)})
    mapper = AutoencoderMapper(MapperConfig(kind="autoencoder", d_source=width, d_target=width, residual=True))
    state = ("encoder_weight", "encoder_bias", "decoder_weight", "decoder_bias")
    mapper.load_state_dict(dict(zip(state, autoencoder(spec, width), strict=True)))
    effects = {site: mapper.requires_grad_(False).eval()}
    return ResolvedIntervention("switch", name, name, (site,), 1.0, Apply(), effects)
