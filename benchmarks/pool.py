"""The processes of the contenders, seen from the one that leads them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.contenders import Spec
from benchmarks.workload import RequestTrace, Work

CHECKOUT = Path(__file__).resolve().parents[1]
PEERS = CHECKOUT / ".venv-peers"
ANSWER_S = 900.0


class ContenderFailed(Exception):
    """A contender that is not there, or that broke; the message says which and why."""


class Worker:
    """One contender with one model. It is stopped (SIGSTOP) while others are measured: no thread of it can spin."""

    def __init__(self, spec: Spec, model: str, threads: int, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        began = perf_counter()
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [_python(spec), "-m", "benchmarks.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=CHECKOUT,
                env=_environment(spec, threads),
                start_new_session=True,
            )
        setup = {"module": spec.module, "model": model, "threads": threads}
        self.hello = self._ask({**setup, "options": dict(spec.options), "packages": list(spec.packages)})
        self.start_s = perf_counter() - began
        self._signal(signal.SIGSTOP)

    def run(self, work: Work) -> tuple[list[RequestTrace], float]:
        """Traces of the requests and the peak memory in MiB. Raises ContenderFailed."""
        self._signal(signal.SIGCONT)
        answer = self._ask(asdict(work))
        self._signal(signal.SIGSTOP)
        traces = [RequestTrace(t["sent_s"], tuple(t["times_s"]), tuple(t["tokens"])) for t in answer["traces"]]
        return traces, answer["peak_rss_mib"]

    def close(self) -> None:
        """Ends the process and all that it started."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            self._fail("it has ended")
        ready, _, _ = select.select([stdout], [], [], ANSWER_S)
        if not ready:
            self._fail(f"no answer in {ANSWER_S:.0f} s")
        line = stdout.readline()
        if not line:
            self._fail("it has ended")
        answer: dict[str, Any] = json.loads(line)
        if "unavailable" in answer:
            self.close()
            raise ContenderFailed(str(answer["unavailable"]))
        if "error" in answer:
            self._fail(str(answer["error"]))
        return answer

    def _fail(self, reason: str) -> None:
        self.close()
        raise ContenderFailed(f"failed: {reason} (see {self._log.name})")

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return


def _python(spec: Spec) -> str:
    if spec.environment is None:
        return sys.executable
    python = PEERS / spec.environment / "bin" / "python"
    if not python.exists():
        raise ContenderFailed(f"not installed: run 'make bench-peers PEERS={spec.environment}'")
    return str(python)


def _environment(spec: Spec, threads: int) -> dict[str, str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(CHECKOUT),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    folder = str(PEERS / spec.environment) if spec.environment else ""
    return environment | {name: value.format(environment=folder) for name, value in spec.variables.items()}
