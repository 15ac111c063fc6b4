"""As much of a server as jobs need, to be killed by a test: ``counting_server.py FOLDER JOBS``."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from server.jobs.directory import ModelDirectory
from server.jobs.queue import JobQueue, NewJob
from server.jobs.supervisor import Supervisor, SupervisorConfig
from server.registry.artifacts import ArtifactStore
from server.registry.database import Database
from server.types import ModelInfo

PARAMETERS = {"base": "base", "dataset": "d", "sites": [{"layer": 1}]}


def main(folder: Path, jobs: int) -> None:
    database = Database(f"sqlite:///{folder / 'test.sqlite3'}")
    database.upgrade()
    artifacts = ArtifactStore(folder / "artifacts", database, clock=time.time)
    artifacts.reconcile()
    queue = JobQueue(database, clock=time.time, attempts=1000)
    served = ModelInfo("tuned", "Llama", 3, 32, 100, 128, "float32", "cpu", "1" * 64)
    command = (sys.executable, str(Path(__file__).with_name("counting_worker.py")))
    config = SupervisorConfig(command=command, environment={"PYTHONPATH": os.environ["PYTHONPATH"]})
    if not queue.list():
        for number in range(jobs):
            new = NewJob(kind="train_switch", name=f"count-{number}", parameters=PARAMETERS, inputs={})
            queue.submit(f"job_{number}", new)
    Supervisor(queue, artifacts, ModelDirectory(served, "nowhere", {}), folder / "jobs", config).start()
    threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
