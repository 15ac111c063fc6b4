"""The ``steering-vectors`` package around ``generate``: it changes the whole model, so requests go one by one.

Its operators get activations and return what is added to them, so an autoencoder fits in as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

from steering_vectors import SteeringVector
from torch import Tensor

from benchmarks.contenders.generate import Generate
from benchmarks.contenders.stock_model import stock_model
from benchmarks.effects import autoencoder, replaced, vector
from benchmarks.workload import Intervention, Request


def make(model: str, threads: int) -> Generate:
    """The stock model; each request's interventions are put on for its own call."""
    loaded, resident = stock_model(model, threads)
    width = loaded.config.hidden_size

    @cache
    def prepared(spec: Intervention) -> tuple[SteeringVector, Any]:
        if spec.kind == "vector":
            return SteeringVector({spec.layer: vector(spec, width)}), None
        weights = autoencoder(spec, width)

        def operator(h_BTD: Tensor, _vector: Tensor) -> Tensor:
            return replaced(h_BTD, weights) - h_BTD

        return SteeringVector({spec.layer: weights[1]}), operator

    @contextmanager
    def around(request: Request) -> Iterator[None]:
        with ExitStack() as stack:
            for spec in request.interventions:
                steering, operator = prepared(spec)
                stack.enter_context(steering.apply(loaded, operator=operator))
            yield

    return Generate(loaded, resident, 1, around)
