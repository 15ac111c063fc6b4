"""The engine of this project. :func:`make` is the only place of the benchmarks where an engine is built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import count
from queue import SimpleQueue
from time import sleep

import torch
from torch import nn

from benchmarks.contenders import Unavailable
from benchmarks.contenders.clock import Run
from benchmarks.contenders.stock_model import resident_with
from benchmarks.effects import autoencoder, vector
from benchmarks.workload import Intervention, RequestTrace, Work
from mappers.loading import load_model
from mappers.mapper_config import MapperConfig
from mappers.modules import AutoencoderMapper
from mappers.sites import Site
from server.engine.engine import Engine
from server.engine.linears import install_linears
from server.engine.loader import EngineOptions, build_engine
from server.engine.precision import pick_precision
from server.engine.request import GenerationRequest
from server.interventions.catalog import ResolvedIntervention
from server.serve import IDLE_PREFILL
from server.settings import ConfigurationError, DtypeSetting, Settings
from server.types import Apply, Event, Failed, Finished, SamplingParams, TokensGenerated

MOST_ROWS = 256
PREFILL_TOKENS = Settings.model_fields["prefill_tokens"].default


class Interlock:
    """A started engine and the interventions that were asked for so far."""

    def __init__(self, engine: Engine, blocks: Sequence[nn.Module], loaded_rss_mib: float) -> None:
        self._engine = engine
        self._blocks = blocks
        self._ids = count()
        self._resolved = cache(lambda spec: _resolve(spec, engine.info.width))
        self.loaded_rss_mib = loaded_rss_mib

    def run(self, work: Work) -> list[RequestTrace]:
        """Submits from this thread; tokens are stamped on the engine's, as a client would see them at the soonest."""
        # Artifacts are resident before a request names them; made by a thread that is gone when the engine computes.
        with ThreadPoolExecutor(1) as loader:
            list(loader.map(self._resolved, (spec for request in work.requests for spec in request.interventions)))
        with nullcontext() if work.hooks else self._without_hooks():
            run = Run(work.requests)
            ended: SimpleQueue[Event] = SimpleQueue()
            for index, request in enumerate(work.requests):
                if (early := request.arrival_s - run.now()) > 0:
                    sleep(early)
                self._submit(run, index, ended)
            for _ in work.requests:
                event = ended.get()
                if isinstance(event, Failed):
                    raise RuntimeError(f"a request failed: {event.message}")
            return run.traces()

    @contextmanager
    def _without_hooks(self) -> Iterator[None]:
        """The engine is idle at both ends. In one process, because two differ by more than what hooks cost."""
        hooks = [dict(module._forward_hooks) for module in self._blocks]
        gates = [module.__dict__.pop("forward") for module in self._blocks]
        for module in self._blocks:
            module._forward_hooks.clear()
        try:
            yield
        finally:
            for module, held, gate in zip(self._blocks, hooks, gates, strict=True):
                module._forward_hooks.update(held)
                module.forward = gate

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


def make(model: str, threads: int, *, dtype: DtypeSetting, prefix_bytes: int = 0) -> Interlock:
    """A started engine. Prefixes are kept only where they are asked for: elsewhere they would answer for the engine."""
    # As the server does: the thread that loads is gone when the engine's begins.
    with ThreadPoolExecutor(1) as loader:
        return loader.submit(_started, model, threads, dtype, prefix_bytes).result()


def _started(model: str, threads: int, dtype: DtypeSetting, prefix_bytes: int) -> Interlock:
    torch.set_num_threads(threads)
    try:
        precision = pick_precision(dtype, "cpu", torch.cpu.get_capabilities())
    except ConfigurationError as error:
        raise Unavailable(str(error)) from error
    loaded = load_model(model, dtype=precision.dtype)
    resident = resident_with(loaded.model)
    install_linears(loaded.model, precision.weight_format)
    options = EngineOptions(
        MOST_ROWS,
        max_waiting=1024,
        prefill_tokens=PREFILL_TOKENS,
        idle_prefill_tokens=IDLE_PREFILL * PREFILL_TOKENS,
        prefix_bytes=prefix_bytes,
    )
    engine, _ = build_engine(loaded, options)
    engine.start()
    return Interlock(engine, [loaded.stack.site_module(site) for site in loaded.stack.sites], resident)


def _resolve(spec: Intervention, width: int) -> ResolvedIntervention:
    name, site = f"{spec.kind}-{spec.layer}-{spec.seed}", Site(spec.layer)
    if spec.kind == "vector":
        return ResolvedIntervention("add", name, name, (site,), 1.0, Apply(), {site: vector(spec, width)})
    mapper = AutoencoderMapper(MapperConfig(kind="autoencoder", d_source=width, d_target=width, residual=True))
    state = ("encoder_weight", "encoder_bias", "decoder_weight", "decoder_bias")
    mapper.load_state_dict(dict(zip(state, autoencoder(spec, width), strict=True)))
    effects = {site: mapper.requires_grad_(False).eval()}
    return ResolvedIntervention("switch", name, name, (site,), 1.0, Apply(), effects)
