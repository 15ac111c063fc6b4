"""From the command line to a server that answers, against a process that only imports and loads."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.figures import Figures
from benchmarks.models import Model
from benchmarks.pool import CHECKOUT, ContenderFailed
from benchmarks.report import Limits

READY_S = 120.0
LOAD = """
import sys, torch, transformers
transformers.AutoTokenizer.from_pretrained(sys.argv[1])
transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
"""


def run(bench: Bench) -> None:
    """``interlock serve`` with stories260K; ready is when ``/health/ready`` says so."""
    model = bench.trained("stories260K")
    if model is None:
        return
    threads = bench.options.threads
    serve, load = "interlock serve to ready", "import torch, transformers, and load"
    contenders = {serve: lambda _: _serve(model, threads), load: lambda _: _load(model, threads)}
    for contender in contenders.values():
        contender(-1)
    cell = bench.timed("start", model.name, contenders)
    demand = "interlock serve to ready, stories260K, against import + load"
    bench.compare(demand, cell, [serve], [load], Limits(1.3, 1.1, "less"), "ready_s")


def _load(model: Model, threads: int) -> Figures:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", LOAD, model.path], check=True, capture_output=True, env=_environment(threads))
    return {"ready_s": time.perf_counter() - began}


def _serve(model: Model, threads: int) -> Figures:
    with tempfile.TemporaryDirectory() as data, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [sys.executable, "-m", "server.cli", "serve", "--model", model.path, "--port", str(port)]
        began = time.perf_counter()
        with (Path(data) / "log").open("w") as log:
            process = subprocess.Popen(
                [*command, "--data-dir", data], stdout=log, stderr=log, cwd=data, env=_environment(threads)
            )
        try:
            while not _ready(port):
                if process.poll() is not None or time.perf_counter() - began > READY_S:
                    raise ContenderFailed(f"interlock serve was not ready: {(Path(data) / 'log').read_text()[-500:]}")
                time.sleep(0.01)
            return {"ready_s": time.perf_counter() - began}
        finally:
            process.terminate()
            process.wait()


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=1) as answer:
            return answer.status == 200
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
