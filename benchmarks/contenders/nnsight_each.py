"""``nnsight``: a trace around ``generate``, one request at a time."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from nnsight import TransformersModel
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.contenders.clock import Run
from benchmarks.contenders.generate import Steps
from benchmarks.contenders.stock_model import stock_model
from benchmarks.effects import autoencoder, replaced, vector
from benchmarks.workload import Intervention, RequestTrace, Work


class Nnsight:
    """A wrapped model; each request is a trace of its own."""

    def __init__(self, model: Any, tokenizer: Any, width: int, loaded_rss_mib: float) -> None:
        self._model = TransformersModel(model, task="text-generation", tokenizer=tokenizer)
        self._tensors = cache(lambda spec: (vector if spec.kind == "vector" else autoencoder)(spec, width))
        self.loaded_rss_mib = loaded_rss_mib

    def run(self, work: Work) -> list[RequestTrace]:
        """In the order of arrival. Every step of a trace sets the block's output."""
        run = Run(work.requests)
        while rows := run.arrived(1, wait=True):
            self._answer(run, rows)
        return run.traces()

    def _answer(self, run: Run, rows: list[int]) -> None:
        request = run.requests[rows[0]]
        ids_BT = torch.tensor([request.prompt])
        (spec,) = request.interventions
        tensors = self._tensors(spec)
        block = self._model.model.layers[spec.layer]
        with self._model.generate(ids_BT, max_new_tokens=request.new_tokens, streamer=Steps(run, rows)) as tracer:
            for _ in tracer.iter[: request.new_tokens]:
                block.output = changed(spec, tensors, block.output)


def changed(spec: Intervention, tensors: Any, h_BTD: Tensor) -> Tensor:
    """A block's output with the intervention."""
    return h_BTD + tensors if spec.kind == "vector" else replaced(h_BTD, tensors)


def make(model: str, threads: int) -> Nnsight:
    """The stock model, wrapped."""
    loaded, resident = stock_model(model, threads)
    return Nnsight(loaded, AutoTokenizer.from_pretrained(model), loaded.config.hidden_size, resident)
