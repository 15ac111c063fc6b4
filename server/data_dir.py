"""The folder that holds all a server keeps, owned by one server at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.settings import ConfigurationError

DATABASE_FILE = "interlock.db"
ARTIFACTS_FOLDER = "artifacts"
JOBS_FOLDER = "jobs"
CANARIES_FOLDER = "canaries"
RECEIPT_KEY_FILE = "receipt.key"
LOCK_FILE = "lock"


@contextmanager
def owned(data_dir: Path) -> Iterator[Path]:
    """Makes ``data_dir`` (readable by its owner only) and holds it until the end of the block.

    The lock is the operating system's and ends with the process, however that ends. Raises ConfigurationError where
    another server holds the folder or it cannot be written.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(data_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"data_dir: cannot write to {data_dir}: {error.strerror}") from None
    try:
        _lock(descriptor, data_dir)
        yield data_dir
    finally:
        os.close(descriptor)


def _lock(descriptor: int, data_dir: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 20).decode(errors="replace").strip()
        raise ConfigurationError(
            f"data_dir: {data_dir} is in use by another server (process {holder or 'unknown'}): stop it, or give this "
            "one a --data-dir of its own"
        ) from None
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
