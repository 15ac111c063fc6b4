"""Tells waiting readers that a job has changed; says nothing about what changed, the database does."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Changes:
    """Callbacks by job id. Thread-safe; a callback runs on the thread that made the change and must not block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[str, list[Callable[[], None]]] = defaultdict(list)

    @contextmanager
    def listening(self, job_id: str, callback: Callable[[], None]) -> Iterator[None]:
        """``callback`` is called after every change of the job for the length of the block."""
        with self._lock:
            self._listeners[job_id].append(callback)
        try:
            yield
        finally:
            with self._lock:
                self._listeners[job_id].remove(callback)
                if not self._listeners[job_id]:
                    del self._listeners[job_id]

    def notify(self, job_id: str) -> None:
        """Calls the listeners of one job."""
        with self._lock:
            callbacks = list(self._listeners.get(job_id, ()))
        for callback in callbacks:
            callback()

    def notify_all(self) -> None:
        """Calls every listener, so that none waits for a change that no longer comes."""
        with self._lock:
            callbacks = [callback for listeners in self._listeners.values() for callback in listeners]
        for callback in callbacks:
            callback()
