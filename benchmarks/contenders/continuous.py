"""Continuous batching of transformers. Its own choices for ``num_blocks``, ``max_batch_tokens`` and ``page_size`` take
gigabytes on a CPU, so all three are given.
"""

from __future__ import annotations

from threading import Thread
from time import sleep
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from benchmarks.contenders.clock import Run
from benchmarks.contenders.stock_model import stock_model
from benchmarks.workload import RequestTrace, Work

PAGE = 32
STEP_TOKENS = 2048
ANSWER_S = 300.0


class Continuous:
    """One manager, which is kept from run to run."""

    def __init__(self, model: Any, loaded_rss_mib: float, kv_tokens: int) -> None:
        self.loaded_rss_mib = loaded_rss_mib
        self._manager = model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE, num_blocks=-(-kv_tokens // PAGE), max_batch_tokens=STEP_TOKENS
            ),
        )
        self._manager.start()
        self._runs = 0

    def run(self, work: Work) -> list[RequestTrace]:
        """Feeds requests as they arrive. The manager stamps the tokens itself, which saves it the streaming."""
        self._runs += 1
        run = Run(work.requests)
        Thread(target=self._feed, args=(run,), daemon=True).start()
        for _ in work.requests:
            output = self._manager.get_result(timeout=ANSWER_S)
            if output is None or output.error is not None:
                raise RuntimeError(f"continuous batching failed: {getattr(output, 'error', 'no answer')}")
            index = int(output.request_id.rpartition("-")[2])
            for token, stamp in zip(output.generated_tokens, output.timestamps, strict=True):
                run.add(index, token, stamp - run.began)
        return run.traces()

    def _feed(self, run: Run) -> None:
        for index, request in enumerate(run.requests):
            sleep(max(0.0, request.arrival_s - run.now()))
            self._manager.add_request(
                list(request.prompt),
                request_id=f"{self._runs}-{index}",
                max_new_tokens=request.new_tokens,
                record_timestamps=True,
                eos_token_id=-1,
            )


def make(model: str, threads: int, *, dtype: str, kv_tokens: int = 16_384) -> Continuous:
    """The stock model with room for the keys and values of ``kv_tokens`` tokens."""
    torch.set_grad_enabled(False)
    return Continuous(*stock_model(model, threads, dtype), kv_tokens)
