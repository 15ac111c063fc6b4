"""Workers and servers killed at random points: no job lost, none run twice, no step lost but the one in flight."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from server.jobs.model import JobState
from server.jobs.queue import JobQueue
from server.registry.artifacts import ArtifactStore

HERE = Path(__file__).parent
JOBS, STEPS, KILLS = 2, 25, 6


class Server:
    """A server process that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, str(HERE / "counting_server.py"), str(self._folder), str(JOBS)]
        environment = {"PYTHONPATH": str(HERE.parents[2]), "PATH": os.defpath}
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)

    def worker(self) -> psutil.Process | None:
        assert self._process is not None
        found = psutil.Process(self._process.pid).children()
        return found[0] if found else None

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


def steps_done(folder: Path) -> list[tuple[str, int, int, int]]:
    """(job, attempt, process, step) in the order in which they were done."""
    done = []
    for file in sorted(folder.glob("jobs/*/steps")):
        done += [(file.parent.name, *map(int, line.split())) for line in file.read_text().splitlines()]
    return done


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_kills_at_random_points_lose_nothing(tmp_path, queue: JobQueue, artifacts: ArtifactStore):
    def wait_for_steps(count: int) -> None:
        wait(lambda: len(steps_done(tmp_path)) >= count)

    chance = random.Random(7)
    server = Server(tmp_path)
    server.start()
    kills = 0
    try:
        while kills < KILLS:
            wait_for_steps(min(len(steps_done(tmp_path)) + chance.randint(1, 8), JOBS * STEPS))
            time.sleep(chance.random() * 0.03)
            victim = chance.choice(("worker", "server", "both"))
            worker = server.worker()
            if worker is not None and victim != "server":
                worker.kill()
            if victim != "worker":
                server.kill()
                server.start()
            kills += 1
        wait(lambda: bool(queue.list()) and all(job.state.terminal for job in queue.list()))
    finally:
        server.kill()
    jobs = {job.name: job for job in queue.list()}
    assert {job.state for job in jobs.values()} == {JobState.SUCCEEDED}
    assert {record.name: record.id for record in artifacts.list()} == {
        name: job.artifacts[0] for name, job in jobs.items()
    }
    for job in jobs.values():
        ends = [event for event in queue.events(job.id, 0)[0] if event.data.get("state") == "succeeded"]
        assert len(ends) == 1
        steps = [step for name, _, _, step in steps_done(tmp_path) if name == job.id]
        assert set(steps) == set(range(1, STEPS + 1))
        assert steps == sorted(steps), "two workers counted at once"
    assert len(steps_done(tmp_path)) <= JOBS * STEPS + kills
