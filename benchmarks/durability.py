"""``python -m benchmarks.durability``: a training job whose worker, server or both are killed at random points.

Every job has the same parameters and seed, so whatever was killed, its tensors have to be those of a run that nobody
disturbed. A job has three attempts, hence two kills each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import psutil
from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from benchmarks.machine import write_cells
from mappers.organisms import organism_path
from mappers.organisms.corpus import training_examples
from server.cli.client import Client, CommandFailed
from server.quickstart.jobs import upload_datasets
from server.quickstart.process import ServerProcess

KILLS_A_JOB = 2
CHECKPOINT_S = 10.0
RESUME_S = 10.0
_LIMIT_S = 600.0

Victim = Literal["worker", "server", "both"]
_console = Console()


@dataclass(frozen=True, slots=True)
class Kill:
    """``resumed_s`` from the new server's readiness, or from the kill where the server lived, to a running attempt.

    ``repeated_s`` is the work done twice: steps from where the new attempt began to where the old one ended, at the
    undisturbed rate.
    """

    job: int
    victim: Victim
    after_step: int
    resumed_s: float
    repeated_s: float


class Running:
    """One data directory and the server that owns it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.server = self._start()

    def _start(self) -> ServerProcess:
        references = {"base": organism_path("llama-small-base")}
        server = ServerProcess(self._folder, organism_path("llama-small-backdoor"), references, 8)
        server.wait_until_ready(Console(quiet=True))
        return server

    def kill(self, victim: Victim) -> float:
        """Seconds on the clock from which the job may run again."""
        process = psutil.Process(self.server.pid)
        workers = process.children(recursive=True)
        if victim != "server":
            for worker in workers:
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
        if victim == "worker":
            return time.monotonic()
        process.kill()
        process.wait()
        psutil.wait_procs(workers, timeout=10)
        self.server = self._start()
        return time.monotonic()


@contextmanager
def running() -> Iterator[Running]:
    """A server over a fresh folder."""
    with tempfile.TemporaryDirectory() as folder:
        one = Running(Path(folder))
        try:
            yield one
        finally:
            one.server.stop()


def submit(client: Client, number: int, steps: int) -> str:
    """The id of a new job."""
    parameters = {"base": "base", "dataset": "prompts", "sites": [{"layer": 1}], "steps": steps, "seed": 3}
    job = client.post("/v1/jobs", {"kind": "train_switch", "name": f"switch-{number}", "parameters": parameters})
    return str(job["id"])


def wait(one: Running, job: str, until: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Polls until the job is as wanted or has ended."""
    deadline = time.monotonic() + _LIMIT_S
    with Client(one.server.url) as client:
        while time.monotonic() < deadline:
            with suppress(CommandFailed):
                seen = client.get(f"/v1/jobs/{job}")
                if until(seen) or seen["finished_at"]:
                    return seen
            time.sleep(0.05)
    raise TimeoutError(f"job {job} did not get there in {_LIMIT_S:.0f} s")


def step_of(job: dict[str, Any]) -> int:
    """Training steps that the job has reported; 0 before the first."""
    progress = job["progress"] or {}
    return int(progress["step"]) if str(progress.get("stage", "")).startswith("train") else 0


def disturb(one: Running, job: str, number: int, at: int, victim: Victim, rate: float) -> Kill | None:
    """Kills once the job has done ``at`` steps; None where it ended before."""
    seen = wait(one, job, lambda job: step_of(job) >= at)
    if seen["finished_at"]:
        return None
    free = one.kill(victim)
    wait(one, job, lambda job: job["attempt"] > seen["attempt"] and job["state"] == "running")
    resumed = time.monotonic() - free
    # Until the new worker speaks, progress is what the old one said last.
    wait(one, job, lambda job: job["attempt"] > seen["attempt"] and step_of(job) == 0)
    first = wait(one, job, lambda job: step_of(job) > 0)
    repeated = max(0, step_of(seen) - step_of(first) + 1) / rate
    return Kill(number, victim, step_of(seen), round(resumed, 2), round(repeated, 2))


def tensors_digest(one: Running, job: dict[str, Any]) -> str:
    """sha256 over names and bytes of what the job made; metadata tell of names and times."""
    total = hashlib.sha256()
    with Client(one.server.url) as client, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "switch.safetensors"
        artifact = client.get(f"/v1/artifacts/{job['artifacts'][0]}")
        (name,) = [name for name in artifact["manifest"]["files"] if name.endswith(".safetensors")]
        client.download(f"/v1/artifacts/{artifact['id']}/download", file, file=name)
        with safe_open(file, framework="pt") as tensors:
            for key in sorted(tensors.keys()):
                total.update(key.encode() + tensors.get_tensor(key).numpy().tobytes())
    return total.hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the jobs, prints a table, writes ``results/durability.json``; fails where a demand is not met."""
    parser = argparse.ArgumentParser(prog="interlock bench durability", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="how many points (default: 50)")
    parser.add_argument("--steps", type=int, default=400, help="training steps of a job (default: 400)")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    chance = random.Random(chosen.seed)
    kills: list[Kill] = []
    digests, states = [], []
    with running() as one:
        rows = [json.dumps({"prompt": example.prompt}) for example in islice(training_examples(0), 400)]
        with Client(one.server.url) as client:
            upload_datasets(client, {"prompts": "\n".join(rows).encode()})
            first = submit(client, 0, chosen.steps)
        wait(one, first, lambda job: step_of(job) > 0)
        began = time.monotonic()
        undisturbed = wait(one, first, lambda _job: False)
        rate = chosen.steps / (time.monotonic() - began)
        expected = tensors_digest(one, undisturbed)
        number = 0
        while len(kills) < chosen.kills:
            number += 1
            with Client(one.server.url) as client:
                job = submit(client, number, chosen.steps)
            for at in sorted(chance.sample(range(1, chosen.steps), KILLS_A_JOB)):
                victim: Victim = chance.choice(("worker", "server", "both"))
                kill = disturb(one, job, number, at, victim, rate)
                if kill is not None:
                    kills.append(kill)
                    _console.print(f"{len(kills):3} of {chosen.kills}: {kill}", highlight=False)
            ended = wait(one, job, lambda _job: False)
            states.append(ended["state"])
            digests.append(tensors_digest(one, ended) if ended["artifacts"] else "")
        with Client(one.server.url) as client:
            made = Counter(artifact["kind"] for artifact in client.get("/v1/artifacts")["data"])
    report(kills, states, [digest == expected for digest in digests], made, rate)


def report(kills: list[Kill], states: list[str], same: list[bool], made: Counter[str], rate: float) -> None:
    """The table, the file, and the exit status."""
    demands = {
        "jobs that succeeded": (f"{states.count('succeeded')} of {len(states)}", set(states) == {"succeeded"}),
        "artifacts, one a job and one undisturbed": (str(made["switch"]), made["switch"] == len(states) + 1),
        "same tensors as undisturbed": (f"{sum(same)} of {len(same)}", all(same)),
        f"running again within {RESUME_S:.0f} s, slowest": (
            f"{max(kill.resumed_s for kill in kills):.1f} s",
            max(kill.resumed_s for kill in kills) <= RESUME_S,
        ),
        f"work done twice, at most {CHECKPOINT_S:.0f} s and a step": (
            f"{max(kill.repeated_s for kill in kills):.1f} s",
            max(kill.repeated_s for kill in kills) <= CHECKPOINT_S + 2 / rate + 1,
        ),
    }
    victims = Counter(kill.victim for kill in kills)
    table = Table("demand", "measured", "met", title=f"{len(kills)} kills: {dict(victims)}")
    for name, (measured, met) in demands.items():
        table.add_row(name, measured, "yes" if met else "NO")
    _console.print(table)
    cells: list[dict[str, Any]] = [asdict(kill) for kill in kills]
    cells.append({"demands": {name: {"measured": m, "met": met} for name, (m, met) in demands.items()}})
    _console.print(str(write_cells("durability", cells, threads=1)))
    raise SystemExit(0 if all(met for _, met in demands.values()) else 1)


if __name__ == "__main__":
    main()
