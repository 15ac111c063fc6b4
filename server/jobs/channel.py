"""The worker's side of the conversation: messages out, the wish to stop in. No torch."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from math import isfinite

from server.jobs.protocol import Message, Progress

_INTERVAL_S = 0.15


class StopRequested(Exception):
    """The server asked the worker to stop: whoever sees this saves what can be saved and lets it pass."""


class Channel:
    """Writes messages to a file descriptor, one JSON object a line. Thread-safe.

    ``stop`` is set once the server wants the worker to end.
    """

    def __init__(self, descriptor: int, stop: threading.Event) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._stop = stop
        self._stage = ""
        self._reported_at = 0.0

    @property
    def stopping(self) -> bool:
        """Whether the server wants the worker to end."""
        return self._stop.is_set()

    def check(self) -> None:
        """Raises StopRequested once the server wants the worker to end."""
        if self._stop.is_set():
            raise StopRequested

    def send(self, message: Message) -> None:
        """Writes one message."""
        line = message.model_dump_json().encode() + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._descriptor, line) :]

    def progress(
        self, stage: str, step: int = 0, total: int | None = None, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Reports progress: the first and last step of a stage always, others a few times a second."""
        now = time.monotonic()
        if stage == self._stage and step != total and now - self._reported_at < _INTERVAL_S:
            return
        self._stage, self._reported_at = stage, now
        finite = {name: value for name, value in (metrics or {}).items() if isfinite(value)}
        self.send(Progress(stage=stage, step=step, total=total, metrics=finite))
