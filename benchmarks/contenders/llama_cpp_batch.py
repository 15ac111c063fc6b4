"""llama.cpp through the batch interface of llama-cpp-python: one sequence a request, continuous batching."""

from __future__ import annotations

import ctypes
from collections import deque
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np

from benchmarks.contenders.clock import Run
from benchmarks.contenders.gguf_weights import gguf_file
from benchmarks.workload import RequestTrace, Work

STEP_TOKENS = 2048
MOST_SEQUENCES = 128


class LlamaCpp:
    """A loaded model, and a context for the number and length of sequences that a run needs."""

    def __init__(self, file: Path, threads: int) -> None:
        lib.llama_backend_init()
        parameters = lib.llama_model_default_params()
        self._model = lib.llama_model_load_from_file(str(file).encode(), parameters)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {file.name}")
        self._vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self._batch = lib.llama_batch_init(STEP_TOKENS, 0, 1)
        self._threads = threads
        self._context: Any = None
        self._shape = (0, 0)

    def run(self, work: Work) -> list[RequestTrace]:
        """Each step decodes a token of every live sequence and reads prompts of those that have arrived."""
        requests = work.requests
        sequences = min(len(requests), MOST_SEQUENCES)
        self._prepare(sequences, max(len(r.prompt) + r.new_tokens for r in requests))
        run = Run(requests)
        free, waiting = deque(range(sequences)), deque[int]()
        live: dict[int, int] = {}
        done = 0
        while done < len(requests):
            waiting += run.arrived(len(requests), wait=not live and not waiting)
            ends = self._fill(run, live, waiting, free)
            if lib.llama_decode(self._context, self._batch) != 0:
                raise RuntimeError("llama_decode failed")
            rows = np.ctypeslib.as_array(lib.llama_get_logits(self._context), (len(ends), self._vocab))
            for index, token in zip(ends, rows.argmax(-1).tolist(), strict=True):
                if run.add(index, token):
                    sequence = live.pop(index)
                    lib.llama_memory_seq_rm(lib.llama_get_memory(self._context), sequence, -1, -1)
                    free.append(sequence)
                    done += 1
        return run.traces()

    def _fill(self, run: Run, live: dict[int, int], waiting: deque[int], free: deque[int]) -> list[int]:
        """Puts a step's tokens into the batch; returns the requests that get a token from it, in order."""
        self._batch.n_tokens = 0
        ends = list(live)
        for index, sequence in live.items():
            self._add(
                run.tokens[index][-1], len(run.requests[index].prompt) + len(run.tokens[index]) - 1, sequence, True
            )
        while waiting and free and self._batch.n_tokens + len(run.requests[waiting[0]].prompt) <= STEP_TOKENS:
            index = waiting.popleft()
            live[index] = free.popleft()
            prompt = run.requests[index].prompt
            for position, token in enumerate(prompt):
                self._add(token, position, live[index], position == len(prompt) - 1)
            ends.append(index)
        return ends

    def _add(self, token: int, position: int, sequence: int, wants_logits: bool) -> None:
        batch = self._batch
        n = batch.n_tokens
        batch.token[n], batch.pos[n], batch.n_seq_id[n] = token, position, 1
        batch.seq_id[n][0], batch.logits[n] = sequence, wants_logits
        batch.n_tokens = n + 1

    def _prepare(self, sequences: int, longest: int) -> None:
        """A context of its own for each shape: room that is not needed would slow attention."""
        if self._shape == (sequences, longest):
            lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
            return
        if self._context is not None:
            lib.llama_free(self._context)
        parameters = lib.llama_context_default_params()
        parameters.n_seq_max = sequences
        parameters.n_ctx = sequences * -(-longest // 256) * 256
        parameters.n_batch = STEP_TOKENS
        parameters.n_threads = parameters.n_threads_batch = self._threads
        self._context = lib.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError("llama.cpp cannot make a context")
        self._shape = (sequences, longest)


def make(model: str, threads: int, *, weights: str) -> LlamaCpp:
    """The model as GGUF with these weights, converted at the first use."""
    lib.llama_log_set(_silent, ctypes.c_void_p(0))
    return LlamaCpp(gguf_file(Path(model), weights), threads)


@lib.llama_log_callback
def _silent(_level: int, _text: bytes, _data: Any) -> None:
    """Throws llama.cpp's own log away."""
