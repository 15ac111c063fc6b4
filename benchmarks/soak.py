"""``python -m benchmarks.soak``: minutes of mixed traffic on one server, and what it has left behind afterwards.

Clients ask plainly, with a switch, with a vector, through a profile that they have just changed, and in streams; some
hang up, some hardly read, some send what has to be refused. Memory is compared between two moments at which the server
is idle: after a warm-up, and at the end. Prefixes that are kept for reuse are memory on purpose, so they are taken off.
At last the server gets SIGTERM while a stream runs.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import socket
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from benchmarks.machine import write_cells
from mappers.organisms import organism_path
from mappers.organisms.corpus import training_examples
from server.cli.client import Client
from server.quickstart.jobs import upload_datasets
from server.quickstart.process import ServerProcess

GROWTH_MB = 50.0
_REFUSED_AFTER_S, _ENDED_AFTER_S = 0.1, 35.0
_MODEL = "llama-small-backdoor"
_LAYER, _WIDTH = 1, 96
_CLIENTS = 8
_WARM_UP_S = 45.0
_SAMPLE_S = 2.0
_IDLE_LIMIT_S = 60.0
_TOKENS = 32
_LAST_TOKENS = 400
_SLOW_S = 2.0
_RECEIVE_BYTES = 4096
_PATH = "/v1/completions"
_console = Console()

_RAMP = base64.b64encode(torch.linspace(-1, 1, _WIDTH).numpy().tobytes()).decode()
_VECTOR = {"vector": {"data": _RAMP, "sites": [{"layer": _LAYER}]}, "strength": 0.5}
_SWITCH = {"name": "safe", "strength": 0.5}
_REFUSED: Sequence[dict[str, Any]] = (
    {"max_tokens": 10**9},
    {"temperature": "warm"},
    {"steering": [{"vector": "nothing"}]},
    {"steering": [_VECTOR | {"strength": 1e9}]},
    {"steering": [{"vector": {"data": _RAMP[:32], "sites": [{"layer": _LAYER}]}}]},
    {"safety_switch": "nothing"},
    {"unheard_of": 1},
    {"model": "nobody"},
)


@dataclass(frozen=True, slots=True)
class Visit:
    """``at_s`` after the start of the traffic; ``wrong`` is empty where the answer was what it has to be."""

    kind: str
    at_s: float
    took_s: float
    wrong: str


@dataclass(frozen=True, slots=True)
class Sample:
    """The server's process and meters at one moment; ``rss_mb`` is without kept prefixes."""

    at_s: float
    rss_mb: float
    prefixes_mb: float
    threads: int
    files: int
    kv_share: float
    ended: int


@dataclass(frozen=True, slots=True)
class Drain:
    """What followed on SIGTERM: seconds until ``/health/ready`` said 503 and until the process had ended."""

    refused_after_s: float
    ended_after_s: float
    exit_code: int
    stream_complete: bool


def judged(answer: dict[str, Any], wanted: Sequence[str]) -> str:
    """Whether exactly the interventions that were asked for were applied."""
    applied = [one["kind"] for one in answer["interlock"]["interventions"] if one["mean_relative_change"] > 0]
    return "" if applied == list(wanted) else f"applied {applied}, asked for {wanted}"


class Visitor:
    """One client that does one thing after another; every public method is a kind of visit and says what was wrong."""

    def __init__(self, url: str, prompts: Sequence[str], number: int) -> None:
        self._http = httpx.Client(base_url=url, timeout=120)
        self._prompts = prompts
        self._profile = f"soak-{number}"
        self._chance = random.Random(number)

    def close(self) -> None:
        """Closes its connections."""
        self._http.close()

    def plain(self) -> str:
        """Without interventions."""
        return self._answered(())

    def switched(self) -> str:
        """With the switch."""
        return self._answered(("switch",), safety_switch=_SWITCH)

    def steered(self) -> str:
        """With a vector."""
        return self._answered(("add",), steering=[_VECTOR])

    def both(self) -> str:
        """With the switch and a vector."""
        return self._answered(("switch", "add"), safety_switch=_SWITCH, steering=[_VECTOR])

    def profile(self) -> str:
        """Through a profile that was changed a moment before."""
        wanted, fields = self._chance.choice(
            [((), {}), (("switch",), {"safety_switch": _SWITCH}), (("add",), {"steering": [_VECTOR]})]
        )
        written = self._http.put(f"/v1/profiles/{self._profile}", json=fields)
        if not written.is_success:
            return f"profile: {written.status_code}"
        return self._answered(wanted, model=f"{_MODEL}:{self._profile}")

    def streamed(self) -> str:
        """Read to the end of the stream."""
        with self._http.stream("POST", _PATH, json=self._body(safety_switch=_SWITCH, stream=True)) as answer:
            lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        if answer.status_code != httpx.codes.OK or lines[-1] != "[DONE]":
            return f"stream: {answer.status_code}, {lines[-1]}"
        return judged(json.loads(lines[-2]), ("switch",))

    def hung_up(self) -> str:
        """Gone after the first line of a stream."""
        body = self._body(safety_switch=_SWITCH, max_tokens=8 * _TOKENS, stream=True)
        with self._http.stream("POST", _PATH, json=body) as answer:
            next(answer.iter_lines(), "")
        return "" if answer.status_code == httpx.codes.OK else f"{answer.status_code}"

    def slow(self) -> str:
        """A stream that is read only when it is long over, through a buffer that holds hardly any of it."""
        content = json.dumps(self._body(max_tokens=4 * _TOKENS, logprobs=20, stream=True)).encode()
        url = self._http.base_url
        head = f"POST {_PATH} HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: application/json\r\nConnection: close\r\n"
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
            connection.settimeout(120)
            connection.connect((url.host, url.port))
            connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            time.sleep(_SLOW_S)
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        return "" if b"data: [DONE]" in answer else f"ended with {answer[-80:]!r}"

    def refused(self) -> str:
        """With one field that has to be refused."""
        answer = self._http.post(_PATH, json=self._body(**self._chance.choice(_REFUSED)))
        return "" if answer.status_code in (400, 404) else f"answered {answer.status_code}"

    def _answered(self, wanted: Sequence[str], **fields: Any) -> str:
        answer = self._http.post(_PATH, json=self._body(**fields))
        if answer.status_code != httpx.codes.OK:
            return f"answered {answer.status_code}: {answer.text[:200]}"
        return judged(answer.json(), wanted)

    def _body(self, **fields: Any) -> dict[str, Any]:
        prompt = self._chance.choice(self._prompts)
        return {"model": _MODEL, "prompt": prompt, "max_tokens": _TOKENS, "ignore_eos": True} | fields


_KINDS: dict[Callable[[Visitor], str], int] = {
    Visitor.plain: 4,
    Visitor.switched: 4,
    Visitor.steered: 4,
    Visitor.both: 2,
    Visitor.streamed: 4,
    Visitor.profile: 2,
    Visitor.hung_up: 3,
    Visitor.slow: 1,
    Visitor.refused: 3,
}
"""What visitors do, and how often in proportion."""


def traffic(url: str, prompts: Sequence[str], seconds: float, sample: Callable[[], None]) -> list[Visit]:
    """All visits of ``seconds`` of traffic; ``sample`` is called while it lasts."""
    visits: list[Visit] = []
    began = time.monotonic()

    def visit(number: int) -> None:
        visitor, chance = Visitor(url, prompts, number), random.Random(number)
        while (start := time.monotonic()) < began + seconds:
            (kind,) = chance.choices(list(_KINDS), list(_KINDS.values()))
            try:
                wrong = kind(visitor)
            except (httpx.HTTPError, OSError, ValueError, LookupError) as error:
                wrong = repr(error)
            visits.append(Visit(kind.__name__, start - began, time.monotonic() - start, wrong))
        visitor.close()

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    while time.monotonic() < began + seconds:
        sample()
        time.sleep(_SAMPLE_S)
    for thread in threads:
        thread.join()
    return visits


def drain(server: ServerProcess, prompt: str) -> Drain:
    """Sends SIGTERM as soon as the first token of a stream has come."""
    running, complete = threading.Event(), threading.Event()
    body = {"model": _MODEL, "prompt": prompt, "max_tokens": _LAST_TOKENS, "ignore_eos": True, "stream": True}

    def read() -> None:
        with httpx.stream("POST", server.url + _PATH, json=body, timeout=120) as answer:
            for line in answer.iter_lines():
                running.set()
                if line == "data: [DONE]":
                    complete.set()

    reader = threading.Thread(target=read)
    reader.start()
    running.wait(_IDLE_LIMIT_S)
    with httpx.Client(base_url=server.url) as client:
        client.get("/health/ready")
        began = time.monotonic()
        server.terminate()
        while client.get("/health/ready").status_code == httpx.codes.OK:
            pass
        refused = time.monotonic() - began
    reader.join()
    code = server.wait()
    return Drain(round(refused, 4), round(time.monotonic() - began, 2), code, complete.is_set())


class Watch:
    """Takes samples of one server."""

    def __init__(self, server: ServerProcess, client: Client) -> None:
        self._process = psutil.Process(server.pid)
        self._client = client
        self._began = time.monotonic()

    def sample(self) -> Sample:
        """Of this moment."""
        families = text_string_to_metric_families(self._client.text("/metrics"))
        totals: Counter[str] = Counter()
        for one in (sample for family in families for sample in family.samples):
            totals[one.name] += one.value
        prefixes = totals["interlock_prefix_cache_bytes"]
        return Sample(
            at_s=round(time.monotonic() - self._began, 1),
            rss_mb=round((self._process.memory_info().rss - prefixes) / 1e6, 1),
            prefixes_mb=round(prefixes / 1e6, 1),
            threads=self._process.num_threads(),
            files=self._process.num_fds(),
            kv_share=totals["interlock_kv_cache_usage_perc"],
            ended=int(totals["interlock_request_success_total"]),
        )

    def idle(self) -> Sample:
        """Once no generation runs or waits; KV that is still promised a limit later is left to the report."""
        deadline = time.monotonic() + _IDLE_LIMIT_S
        while time.monotonic() < deadline:
            found = self.sample()
            if found.kv_share == 0 and not self._client.get("/v1/generations")["data"]:
                break
            time.sleep(0.1)
        return self.sample()


def train_switch(client: Client, prompts: Sequence[str]) -> None:
    """A switch called ``safe``; how good it is does not matter here."""
    upload_datasets(client, {"prompts": "\n".join(json.dumps({"prompt": prompt}) for prompt in prompts).encode()})
    parameters = {"base": "base", "dataset": "prompts", "sites": [{"layer": _LAYER}], "steps": 20}
    job = client.post("/v1/jobs", {"kind": "train_switch", "name": "safe", "parameters": parameters})
    while not job["finished_at"]:
        time.sleep(0.2)
        job = client.get(f"/v1/jobs/{job['id']}")
    if job["state"] != "succeeded":
        raise SystemExit(f"the switch was not trained: {job['error']}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints tables, writes ``results/soak.json``; fails where a demand is not met."""
    parser = argparse.ArgumentParser(prog="interlock bench soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="traffic after the warm-up (default: 10)")
    seconds = 60 * parser.parse_args(arguments).minutes
    prompts = [example.prompt for example in islice(training_examples(0), 64)]
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder:
        references = {"base": organism_path("llama-small-base")}
        server = ServerProcess(Path(folder), organism_path(_MODEL), references, _CLIENTS // 2)
        try:
            server.wait_until_ready(_console)
            with Client(server.url) as client:
                train_switch(client, prompts)
                watch = Watch(server, client)
                traffic(server.url, prompts, _WARM_UP_S, lambda: None)
                before = watch.idle()
                visits = traffic(server.url, prompts, seconds, lambda: samples.append(watch.sample()))
                after = watch.idle()
            drained = drain(server, prompts[0])
        finally:
            server.stop()
    report(visits, before, after, samples, seconds, drained)


def drift(visits: Sequence[Visit], kind: str, seconds: float) -> tuple[float, float]:
    """Median seconds of a kind of visit in the first and the last fifth of the time."""
    first = [visit.took_s for visit in visits if visit.kind == kind and visit.at_s < seconds / 5]
    last = [visit.took_s for visit in visits if visit.kind == kind and visit.at_s >= seconds * 4 / 5]
    return statistics.median(first or [float("nan")]), statistics.median(last or [float("nan")])


def report(
    visits: list[Visit], before: Sample, after: Sample, samples: list[Sample], seconds: float, drained: Drain
) -> None:
    """The tables, the file, and the exit status."""
    wrong = [visit for visit in visits if visit.wrong]
    taken = sum(visit.kind != Visitor.refused.__name__ for visit in visits)
    growth = after.rss_mb - before.rss_mb
    demands = {
        f"memory grows by less than {GROWTH_MB:.0f} MB": (f"{growth:+.1f} MB", growth < GROWTH_MB),
        "KV still promised": (f"{after.kv_share:.2%}", after.kv_share == 0),
        "answers that were not what was asked for": (f"{len(wrong)} of {len(visits)}", not wrong and bool(visits)),
        "rows that ended, one for each request taken": (
            f"{after.ended - before.ended} of {taken}",
            after.ended - before.ended == taken,
        ),
        f"not ready {_REFUSED_AFTER_S * 1e3:.0f} ms after SIGTERM": (
            f"{drained.refused_after_s * 1e3:.0f} ms",
            drained.refused_after_s < _REFUSED_AFTER_S,
        ),
        f"the stream complete, and the process ended with 0 within {_ENDED_AFTER_S:.0f} s": (
            f"{drained.ended_after_s:.1f} s, exit code {drained.exit_code}",
            drained.stream_complete and drained.exit_code == 0 and drained.ended_after_s < _ENDED_AFTER_S,
        ),
    }
    moments = Table("", "idle, before", "most", "idle, after", title=f"{seconds / 60:g} minutes, {_CLIENTS} clients")
    for name in ("rss_mb", "prefixes_mb", "threads", "files", "kv_share"):
        most = max(getattr(sample, name) for sample in samples)
        moments.add_row(name, *(f"{value:.4g}" for value in (getattr(before, name), most, getattr(after, name))))
    kinds = Table("visit", "times", "wrong", "first fifth", "last fifth", title="median time of a visit")
    counts, wrongs = Counter(visit.kind for visit in visits), Counter(visit.kind for visit in wrong)
    took = {kind: drift(visits, kind, seconds) for kind in sorted(counts)}
    for kind, (first, last) in took.items():
        kinds.add_row(kind, str(counts[kind]), str(wrongs[kind]), f"{first:.3f} s", f"{last:.3f} s")
    met = Table("demand", "measured", "met")
    for name, (measured, holds) in demands.items():
        met.add_row(name, measured, "yes" if holds else "NO")
    for table in (moments, kinds, met):
        _console.print(table)
    for visit in wrong[:10]:
        _console.print(f"{visit.kind} at {visit.at_s:.1f} s: {visit.wrong}", highlight=False, markup=False)
    cells: list[dict[str, Any]] = [
        {"seconds": seconds, "clients": _CLIENTS, "before": asdict(before), "after": asdict(after)},
        {"drain": asdict(drained)},
        *(
            {"visit": kind, "times": counts[kind], "wrong": wrongs[kind], "first_fifth_s": first, "last_fifth_s": last}
            for kind, (first, last) in took.items()
        ),
        {"samples": [asdict(sample) for sample in samples]},
        {"demands": {name: {"measured": measured, "met": holds} for name, (measured, holds) in demands.items()}},
    ]
    _console.print(str(write_cells("soak", cells, threads=2)))
    raise SystemExit(0 if all(holds for _, holds in demands.values()) else 1)


if __name__ == "__main__":
    main()
