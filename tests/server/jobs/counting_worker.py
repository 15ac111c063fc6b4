"""The real worker with a handler that needs no torch: it counts, and keeps its count in the job's folder."""

from __future__ import annotations

import os
import sys
import time
import types
from pathlib import Path

from mappers.artifact import Manifest, seal, staged_file
from server.jobs import worker
from server.jobs.channel import Channel
from server.jobs.folder import JobFolder
from server.jobs.protocol import WorkOrder

STEPS = 25


def execute(order: WorkOrder, channel: Channel) -> None:
    folder = JobFolder(Path(order.folder))
    count = folder.path / "count"
    done = int(count.read_text()) if count.exists() else 0
    with (folder.path / "steps").open("a", buffering=1) as steps:
        for step in range(done + 1, STEPS + 1):
            channel.check()
            time.sleep(0.02)
            steps.write(f"{order.attempt} {os.getpid()} {step}\n")
            with staged_file(folder.path, "count") as path:
                path.write_text(str(step))
            channel.progress("counting", step, STEPS)
    staging = folder.staging(order.attempt)
    (staging / "rows.jsonl").write_text('{"text": "counted"}\n')
    seal(staging, Manifest(kind="dataset", name=order.spec.name, created_at=order.created_at))


if __name__ == "__main__":
    handlers = types.ModuleType("server.jobs.execution")
    handlers.execute = execute  # type: ignore[attr-defined]
    sys.modules["server.jobs.execution"] = handlers
    sys.exit(worker.main())
