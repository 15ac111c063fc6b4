"""``python -m benchmarks.lag``: how long the event loop is held up while prompts of maximal size come in.

The server runs in this process as it does in earnest, with one more task on its loop: it sleeps 5 ms again and again
and notes how much longer that took. Clients are a process of their own, which shares the two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table
from starlette.types import ASGIApp, Receive, Scope, Send
from transformers import AutoTokenizer

from benchmarks.figures import percentile
from benchmarks.machine import write_cells
from mappers.organisms import organism_path
from mappers.organisms.corpus import training_examples
from server.api.app import create_app
from server.data_dir import owned
from server.listener import DrainingServer, bind, url_of
from server.serve import SWITCH_INTERVAL_S, running_services
from server.settings import read_settings

AT_MOST_S = 0.050
_PROBE_S = 0.005
_CONTEXT = 16_384
_BODY_BYTES = 2_000_000
_MODEL = "long"
_BASE = "llama-small-base"
_OK = (200,)
_STARTED = "started"
_PATIENCE_S = 150.0

Request = tuple[str, dict[str, Any], tuple[int, ...]]


def requests(place: Path) -> dict[str, Request]:
    """What clients send, one of each at a time: path, fields, and the answers that are right."""
    tokenizer: Any = AutoTokenizer.from_pretrained(place)
    text = " ".join(example.prompt for example in islice(training_examples(0), 4000))
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    full = text[: offsets[_CONTEXT - 64][0]]
    too_long = (text * (_BODY_BYTES // len(text) + 1))[: _BODY_BYTES - 4096]
    turn = full[: len(full) // 1200]
    messages = [{"role": "assistant" if number % 2 else "user", "content": turn} for number in range(1023)]
    streamed = {"prompt": "How much is 1 + 2?", "max_tokens": 500, "stream": True, "ignore_eos": True}
    return {
        "a full context": ("/v1/completions", {"prompt": full, "max_tokens": 2}, _OK),
        "2 MB of text": ("/v1/completions", {"prompt": too_long, "max_tokens": 2}, (400,)),
        "2 MB to count": ("/tokenize", {"prompt": too_long}, (200, 400)),
        "1,023 messages": ("/v1/chat/completions", {"messages": messages, "max_tokens": 2}, (200, 400)),
        "a stream": ("/v1/completions", streamed, _OK),
    }


class Probe:
    """Notes the lag of the loop that it runs on, in seconds."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.lags: list[float] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application's own interface; the probe begins with its lifespan."""
        if scope["type"] == "lifespan":
            self._task = asyncio.create_task(self._watch())
        await self._app(scope, receive, send)

    async def _watch(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            await asyncio.sleep(_PROBE_S)
            self.lags.append(clock() - began - _PROBE_S)


def send(url: str, kind: str, request: Request, seconds: float, answers: Any) -> None:
    """One client: the same request again and again; puts its kind and the number of answers, right and wrong."""
    path, fields, right = request
    content = json.dumps({"model": _MODEL, **fields})
    counted = [0, 0]
    until = time.monotonic() + seconds
    try:
        with httpx.Client(base_url=url, timeout=120, headers={"Content-Type": "application/json"}) as client:
            while time.monotonic() < until:
                counted[client.post(path, content=content).status_code not in right] += 1
    except httpx.HTTPError:
        counted[1] += 1
    finally:
        answers.put((kind, *counted))


def load(url: str, kinds: Mapping[str, Request], seconds: float, answers: Any) -> None:
    """All clients, each on a thread of this process."""
    threads = [threading.Thread(target=send, args=(url, *kind, seconds, answers)) for kind in kinds.items()]
    answers.put(_STARTED)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def long_model(folder: Path) -> Path:
    """An organism that takes longer prompts than it has learned to read."""
    place = folder / _MODEL
    shutil.copytree(organism_path(_BASE), place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"max_position_embeddings": _CONTEXT}))
    return place


def measure(seconds: float) -> tuple[list[float], list[float], list[tuple[str, int, int]]]:
    """Lags without and with the load, and what the clients were answered."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    with tempfile.TemporaryDirectory() as name:
        place = long_model(Path(name))
        kinds = requests(place)
        given = {"model": str(place), "data_dir": Path(name) / "data", "device": "cpu"}
        settings = read_settings(given, {})
        with owned(settings.data_dir), running_services(settings, threading.Event()) as services:
            probe = Probe(create_app(services))
            listener = bind("127.0.0.1", 0)
            parts: list[list[float]] = []

            def drive() -> None:
                try:
                    time.sleep(min(5.0, seconds))
                    idle = len(probe.lags)
                    clients = spawn.Process(target=load, args=(url_of(listener), kinds, seconds, answers))
                    clients.start()
                    assert answers.get(timeout=_PATIENCE_S) == _STARTED
                    began = len(probe.lags)
                    time.sleep(seconds)
                    parts.extend((probe.lags[:idle], probe.lags[began:]))
                    clients.join(_PATIENCE_S)
                finally:
                    server.should_exit = True

            started: Callable[[], None] = threading.Thread(target=drive).start
            server = DrainingServer(probe, started=started, drain=lambda: None)
            server.run([listener])
            listener.close()
    return parts[0], parts[1], [answers.get(timeout=_PATIENCE_S) for _ in kinds]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints tables, writes ``results/lag.json``; fails where the demand is not met."""
    parser = argparse.ArgumentParser(prog="interlock bench lag", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of load (default: 60)")
    idle, loaded, answers = measure(parser.parse_args(arguments).seconds)
    console = Console()
    table = Table("", "samples", "median", "p99", "largest", title="lag of the event loop, ms")
    cells: list[dict[str, Any]] = []
    for name, lags in (("idle", idle), ("under load", loaded)):
        cell = {"median_s": statistics.median(lags), "p99_s": percentile(lags, 99), "largest_s": max(lags)}
        table.add_row(name, str(len(lags)), *(f"{value * 1e3:.2f}" for value in cell.values()))
        cells.append({"load": name, "samples": len(lags), **cell})
    console.print(table)
    counted = Table("request", "answered rightly", "wrongly")
    for kind, right, wrong in answers:
        counted.add_row(kind, str(right), str(wrong))
    console.print(counted)
    met = percentile(loaded, 99) < AT_MOST_S and all(right and not wrong for _, right, wrong in answers)
    cells.append({"answers": {kind: {"right": right, "wrong": wrong} for kind, right, wrong in answers}})
    cells.append({"p99_at_most_s": AT_MOST_S, "met": met})
    console.print(str(write_cells("lag", cells, threads=2)))
    raise SystemExit(0 if met else 1)


if __name__ == "__main__":
    main()
