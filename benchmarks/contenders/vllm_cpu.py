"""vLLM on a CPU, stepped in this process, without compilation."""

from __future__ import annotations

from vllm import EngineArgs, LLMEngine, SamplingParams

from benchmarks.contenders.clock import Run
from benchmarks.workload import RequestTrace, Work

MOST_ROWS = 128


class Vllm:
    """One engine, which is kept from run to run. Prefixes are not shared."""

    def __init__(self, engine: LLMEngine) -> None:
        self._engine = engine
        self._runs = 0

    def run(self, work: Work) -> list[RequestTrace]:
        """Adds requests as they arrive, and steps."""
        self._runs += 1
        requests, run = work.requests, Run(work.requests)
        done = 0
        while done < len(requests):
            for index in run.arrived(len(requests), wait=not self._engine.has_unfinished_requests()):
                sampling = SamplingParams(
                    max_tokens=requests[index].new_tokens, temperature=0.0, ignore_eos=True, detokenize=False
                )
                prompt = {"prompt_token_ids": list(requests[index].prompt)}
                self._engine.add_request(f"{self._runs}-{index}", prompt, sampling)
            for output in self._engine.step():
                index = int(output.request_id.rpartition("-")[2])
                for token in output.outputs[0].token_ids[len(run.tokens[index]) :]:
                    done += run.add(index, token)
        return run.traces()


def make(model: str, _threads: int, *, dtype: str) -> Vllm:
    """An eager engine; the pool takes its size from OMP_NUM_THREADS."""
    arguments = EngineArgs(
        model=model,
        dtype=dtype,
        skip_tokenizer_init=True,
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=2048,
        max_num_seqs=MOST_ROWS,
    )
    return Vllm(LLMEngine.from_engine_args(arguments))
