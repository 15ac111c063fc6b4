"""``generate`` with a plain forward hook, one request a call: how a site is usually swept by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from benchmarks.contenders.generate import Generate
from benchmarks.contenders.stock_model import stock_model
from benchmarks.effects import autoencoder, replaced, vector
from benchmarks.workload import Intervention, Request


def make(model: str, threads: int) -> Generate:
    """The stock model; each request's interventions are put on its blocks for its own call."""
    loaded, resident = stock_model(model, threads)
    width = loaded.config.hidden_size

    @cache
    def hook(spec: Intervention) -> Any:
        if spec.kind == "vector":
            v_D = vector(spec, width)
            return lambda _module, _args, h_BTD: h_BTD + v_D
        weights = autoencoder(spec, width)
        return lambda _module, _args, h_BTD: replaced(h_BTD, weights)

    @contextmanager
    def around(request: Request) -> Iterator[None]:
        blocks = loaded.model.layers
        handles = [blocks[spec.layer].register_forward_hook(hook(spec)) for spec in request.interventions]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    return Generate(loaded, resident, 1, around)
