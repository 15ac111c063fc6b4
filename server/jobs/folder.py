"""What a job keeps on disk: its log and checkpoints for as long as it is remembered, one attempt's staging folder."""

from __future__ import annotations

import shutil
from pathlib import Path

LOG_BYTES = 512 * 1024


class JobFolder:
    """The folder of one job."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def log(self) -> JobLog:
        """What its processes wrote."""
        return JobLog(self.path)

    @property
    def lock(self) -> Path:
        """The file a worker locks for as long as it lives."""
        return self.path / "lock"

    def staging(self, attempt: int) -> Path:
        """Where an attempt builds its artifact."""
        return self.path / f"staging-{attempt}"

    @property
    def shards(self) -> Path:
        """Where a collection of activations grows; attempts go on with what is there."""
        return self.path / "shards"

    def checkpoint(self, part: str) -> Path:
        """The file that holds one part of the state to go on from."""
        return self.path / f"checkpoint-{part}.safetensors"

    def prepare(self, attempt: int) -> None:
        """Makes the folder with an empty staging folder; what earlier attempts staged is dropped."""
        self.drop_staging()
        self.staging(attempt).mkdir(parents=True)

    def drop_staging(self) -> None:
        """Removes what any attempt has staged."""
        for staging in self.path.glob("staging-*"):
            shutil.rmtree(staging)

    def drop_checkpoints(self) -> None:
        """Removes the state to go on from: the job has succeeded."""
        for checkpoint in self.path.glob("checkpoint-*"):
            checkpoint.unlink()
        if self.shards.exists():
            shutil.rmtree(self.shards)


class JobLog:
    """Two files in a folder: when ``log.txt`` is full it becomes ``log.old.txt``, and what was that is dropped."""

    def __init__(self, folder: Path, *, limit: int = LOG_BYTES) -> None:
        self._current = folder / "log.txt"
        self._old = folder / "log.old.txt"
        self._limit = limit

    def append(self, data: bytes) -> None:
        """Adds bytes at the end."""
        with self._current.open("ab") as file:
            file.write(data)
            full = file.tell() >= self._limit
        if full:
            self._current.replace(self._old)

    def read(self) -> str:
        """All that is kept, undecodable bytes replaced; empty before the first start."""
        parts = [path.read_bytes() for path in (self._old, self._current) if path.exists()]
        return b"".join(parts).decode("utf-8", errors="replace")
