"""A process that is killed, or a disk that is full, at any point of a registration: the old artifact or the new."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mappers.artifact import Manifest, artifact_id, read_manifest, seal, verify
from server.registry.artifacts import ArtifactStore
from server.registry.database import Database

OLD, NEW = b'{"text":"old"}\n', b'{"text":"new"}\n'
WATCHED = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "sqlite3.connect")
MOST_POINTS = 60

CHILD = """
import os, sys
from pathlib import Path
from tests.server.registry.test_interrupted import WATCHED, opened, staged, NEW
root, url, at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
store = opened(root, url)
folder = staged(store, NEW)
seen = 0
def die(event, arguments):
    global seen
    if event in WATCHED:
        seen += 1
        if seen == at:
            os._exit(9)
sys.addaudithook(die)
store.register(folder, name="facts", owner=None)
"""


class _Disk:
    """Is full at one of the points at which something is written, synced, made or renamed."""

    def __init__(self) -> None:
        self._left = 0
        self._sync = os.fsync
        sys.addaudithook(self._watch)

    def _watch(self, event: str, arguments: tuple[object, ...]) -> None:
        writes = event == "open" and int(str(arguments[2] or 0)) & (os.O_WRONLY | os.O_RDWR)
        if self._left and (writes or event in ("os.rename", "os.mkdir")):
            self._count()

    def _count(self) -> None:
        self._left -= 1
        if not self._left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fsync(self, descriptor: int) -> None:
        """In place of :func:`os.fsync`, where delayed allocation finds out."""
        if self._left:
            self._count()
        self._sync(descriptor)

    @contextmanager
    def full_at(self, point: int) -> Iterator[None]:
        self._left = point
        try:
            yield
        finally:
            self._left = 0


@pytest.fixture(scope="module")
def disk() -> _Disk:
    return _Disk()  # an audit hook stays for the life of the process


@pytest.fixture
def backend() -> str:
    """Folders are the same for every database."""
    return "sqlite"


def opened(root: Path, url: str) -> ArtifactStore:
    return ArtifactStore(root, Database(url), clock=lambda: 1.0)


def staged(store: ArtifactStore, content: bytes) -> Path:
    folder = store.new_staging()
    (folder / "rows.jsonl").write_bytes(content)
    seal(folder, Manifest(kind="dataset", name="facts", created_at="2026-01-02T03:04:05+00:00"))
    return folder


def check(root: Path, url: str) -> bytes:
    """What ``facts`` is after a restart, once everything in the store was found whole."""
    store = opened(root, url)
    assert not store.reconcile().rejected
    for record in store.list():
        assert artifact_id(verify(record.path)) == record.id
    assert {path.name for path in root.iterdir() if not path.name.startswith(".")} == {one.id for one in store.list()}
    assert not list((root / ".staging").glob("*"))
    found = (store.get("facts").path / "rows.jsonl").read_bytes()
    again = store.register(staged(store, NEW), name="facts", owner=None)
    assert store.get("facts").id == again.id == artifact_id(read_manifest(again.path))
    return found


def test_killed_at_every_point(tmp_path, store, database_url):
    """``store`` is what the fixtures made; every attempt gets a fresh one over the same database file's copy."""
    store.register(staged(store, OLD), name="facts", owner=None)
    outcomes = []
    for point in range(1, MOST_POINTS):
        root, url = _copy(tmp_path, database_url, point)
        command = [sys.executable, "-c", CHILD, str(root), url, str(point)]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False)
        assert ran.returncode in (0, 9), ran.stderr
        outcomes.append(check(root, url))
        if ran.returncode == 0:
            break
    assert ran.returncode == 0, "more points than expected"
    assert len(outcomes) > 4
    assert (outcomes[0], outcomes[-1]) == (OLD, NEW)
    assert set(outcomes) == {OLD, NEW}


def test_a_full_disk_at_every_point(tmp_path, store, database_url, disk, monkeypatch):
    monkeypatch.setattr(os, "fsync", disk.fsync)
    store.register(staged(store, OLD), name="facts", owner=None)
    outcomes = []
    for point in range(1, MOST_POINTS):
        root, url = _copy(tmp_path, database_url, point)
        full = opened(root, url)
        folder = staged(full, NEW)
        with disk.full_at(point):
            try:
                full.register(folder, name="facts", owner=None)
                break
            except OSError as error:
                reason = error.errno
        assert reason == errno.ENOSPC
        outcomes.append(check(root, url))
    else:
        pytest.fail("more points than expected")
    assert len(outcomes) > 2
    assert outcomes[0] == OLD
    assert check(root, url) == NEW


def _copy(folder: Path, url: str, point: int) -> tuple[Path, str]:
    """The store and its database as they were before, for one attempt."""
    place = folder / f"point-{point}"
    shutil.copytree(folder / "artifacts", place / "artifacts")
    with sqlite3.connect(url.removeprefix("sqlite:///")) as source, sqlite3.connect(place / "copy.db") as target:
        source.backup(target)
    source.close()
    target.close()
    return place / "artifacts", f"sqlite:///{place / 'copy.db'}"
