"""``python -m benchmarks.beside``: how much slower tokens come while a job trains on the same cores.

One server; in each repeat the same streamed requests are answered once while nothing else happens and once while a
switch is trained, in either order. Figures are of the client: it sees what users see.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.machine import write_cells
from mappers.organisms import organism_path
from mappers.organisms.corpus import training_examples
from server.cli.client import Client
from server.quickstart.jobs import upload_datasets
from server.quickstart.process import ServerProcess

AT_MOST = 1.5
_MODEL = "llama-medium-backdoor"
_STREAMS = 4
_TOKENS = 200
_console = Console()


def stream_tokens(url: str, prompt: str) -> list[float]:
    """Seconds between the chunks of one streamed answer."""
    body = {
        "model": _MODEL,
        "prompt": prompt,
        "max_tokens": _TOKENS,
        "stream": True,
        "ignore_eos": True,
    }
    times = []
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                times.append(time.monotonic())
    return [after - before for before, after in pairwise(times)]


def answered(url: str, prompts: Sequence[str]) -> list[float]:
    """Of all streams at once."""
    gaps: list[float] = []
    threads = [threading.Thread(target=lambda p=prompt: gaps.extend(stream_tokens(url, p))) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return gaps


def p95(gaps: Sequence[float]) -> float:
    """The 95th percentile."""
    return statistics.quantiles(gaps, n=20)[-1]


class Training:
    """A job that trains for the length of a ``with`` block."""

    def __init__(self, client: Client, number: int) -> None:
        self._client = client
        self._number = number

    def __enter__(self) -> None:
        parameters = {"base": "base", "dataset": "prompts", "sites": [{"layer": 1}], "steps": 100_000}
        job = {"kind": "train_switch", "name": f"beside-{self._number}", "parameters": parameters}
        self._id = self._client.post("/v1/jobs", job)["id"]
        while not (self._state()["progress"] or {}).get("stage", "").startswith("train"):
            time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self._client.post(f"/v1/jobs/{self._id}/cancel")
        while self._state()["finished_at"] is None:
            time.sleep(0.05)

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._client.get(f"/v1/jobs/{self._id}")
        return state


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints a table, writes ``results/beside.json``; fails where the demand is not met."""
    parser = argparse.ArgumentParser(prog="interlock bench beside", description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="repeats of each of both (default: 7)")
    repeats = parser.parse_args(arguments).repeats
    examples = [example.prompt for example in islice(training_examples(0), 400)]
    alone: list[float] = []
    beside: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        references = {"base": organism_path("llama-medium-base")}
        server = ServerProcess(Path(folder), organism_path(_MODEL), references, 8)
        try:
            server.wait_until_ready(_console)
            with Client(server.url) as client:
                rows = "\n".join(json.dumps({"prompt": prompt}) for prompt in examples)
                upload_datasets(client, {"prompts": rows.encode()})
                answered(server.url, examples[:_STREAMS])
                for repeat in range(repeats):
                    prompts = examples[_STREAMS * repeat : _STREAMS * (repeat + 1)]
                    for trains in (repeat % 2 == 0, repeat % 2 == 1):
                        if trains:
                            with Training(client, repeat):
                                beside.append(p95(answered(server.url, prompts)))
                        else:
                            alone.append(p95(answered(server.url, prompts)))
        finally:
            server.stop()
    ratios = [after / before for after, before in zip(beside, alone, strict=True)]
    report(alone, beside, ratios)


def report(alone: Sequence[float], beside: Sequence[float], ratios: Sequence[float]) -> None:
    """The table, the file, and the exit status."""
    ratio = statistics.median(ratios)
    table = Table("", "median", "least", "largest", title=f"time between tokens, p95, {_STREAMS} streams at once")
    for name, values, unit, scale in (
        ("alone", alone, "ms", 1e3),
        ("while a job trains", beside, "ms", 1e3),
        (f"ratio (at most {AT_MOST})", ratios, "", 1),
    ):
        figures = (statistics.median(values), min(values), max(values))
        table.add_row(name, *(f"{figure * scale:.2f} {unit}" for figure in figures))
    _console.print(table)
    cells = [
        {"alone_p95_s": before, "beside_p95_s": after, "ratio": after / before}
        for before, after in zip(alone, beside, strict=True)
    ]
    cells.append({"median_ratio": ratio, "at_most": AT_MOST})
    _console.print(str(write_cells("beside", cells, threads=2)))
    raise SystemExit(0 if ratio <= AT_MOST else 1)


if __name__ == "__main__":
    main()
