"""``model.generate`` of transformers: each request alone, or all that have arrived as one left-padded batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from benchmarks.contenders.clock import Run
from benchmarks.contenders.stock_model import stock_model
from benchmarks.workload import Request, RequestTrace, Work

MOST_ROWS = 128

Around = Callable[[Request], AbstractContextManager[Any]]


def _nothing_around(_request: Request) -> AbstractContextManager[Any]:
    return nullcontext()


class Generate:
    """Static batching: what arrives during a batch waits for its end.

    ``around`` is entered for each batch with its first request.
    """

    def __init__(self, model: Any, loaded_rss_mib: float, rows: int, around: Around = _nothing_around) -> None:
        self._model = model
        self._rows = rows
        self._around = around
        self.loaded_rss_mib = loaded_rss_mib

    def run(self, work: Work) -> list[RequestTrace]:
        """Batches in the order of arrival; a batch runs as long as its longest answer."""
        requests, run = work.requests, Run(work.requests)
        while rows := run.arrived(self._rows, wait=True):
            width = max(len(requests[i].prompt) for i in rows)
            ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
            mask_BT = torch.zeros_like(ids_BT)
            for row, i in enumerate(rows):
                prompt = requests[i].prompt
                ids_BT[row, width - len(prompt) :] = torch.tensor(prompt)
                mask_BT[row, width - len(prompt) :] = 1
            with self._around(requests[rows[0]]):
                self._model.generate(
                    ids_BT,
                    attention_mask=mask_BT,
                    max_new_tokens=max(requests[i].new_tokens for i in rows),
                    streamer=Steps(run, rows),
                )
        return run.traces()


class Steps(BaseStreamer):
    """Takes each step's tokens, the prompt first, and keeps those that a request still wants."""

    def __init__(self, run: Run, rows: Sequence[int]) -> None:
        self._run = run
        self._rows = rows
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        """One step of the batch."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        now = self._run.now()
        for index, token in zip(self._rows, value.flatten().tolist(), strict=True):
            if len(self._run.tokens[index]) < self._run.requests[index].new_tokens:
                self._run.add(index, token, now)

    def end(self) -> None:
        """Nothing is left to do."""


def make(model: str, threads: int, *, batched: bool, dtype: str = "float32") -> Generate:
    """The stock model with static batches, or with one request a call."""
    return Generate(*stock_model(model, threads, dtype), MOST_ROWS if batched else 1)
