"""One worker process: started in its own session, read line by line, and ended with everything it started."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import Enum, auto
from typing import IO

from server.jobs.protocol import MAX_LINE


class Interruption(Enum):
    """What can come instead of a line from the worker."""

    ENDED = auto()
    """The worker closed its output; nothing more will come."""
    CANCEL = auto()
    """Somebody cancelled the job."""
    STOP = auto()
    """The server stops."""


Inbox = queue.SimpleQueue[bytes | Interruption]


class WorkerProcess:
    """A running worker. Its lines arrive in ``inbox``, followed by ``Interruption.ENDED``; its errors go to ``log``.

    The order is written to its standard input, which stays open until :meth:`close`: a worker that reads the end of it
    knows that its server is gone.
    """

    def __init__(
        self,
        command: Sequence[str],
        order: bytes,
        *,
        inbox: Inbox,
        log: Callable[[bytes], None],
        environment: Mapping[str, str] | None,
    ) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=_read_lines, args=(self._stream("stdout"), inbox), name="job-output", daemon=True),
            threading.Thread(target=_copy, args=(self._stream("stderr"), log), name="job-log", daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        try:
            self._stream("stdin").write(order + b"\n")
            self._stream("stdin").flush()
        except BrokenPipeError:
            pass  # it died at once: the reader tells

    def terminate(self) -> None:
        """Asks the worker and all it started to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the worker and all it started."""
        self._signal(signal.SIGKILL)

    def close(self) -> int:
        """Kills what is left and gives the exit status (negative: the signal that ended it)."""
        try:
            status = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.kill()
            status = self._process.wait()
        self._signal(signal.SIGKILL)
        for reader in self._readers:
            reader.join(timeout=5)
        for name in ("stdin", "stdout", "stderr"):
            _close(self._stream(name))
        return status

    def _signal(self, number: signal.Signals) -> None:
        """Signals the whole group, which bears the worker's id; it may be gone already."""
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            return

    def _stream(self, name: str) -> IO[bytes]:
        stream = getattr(self._process, name)
        assert stream is not None
        return stream  # type: ignore[no-any-return]


def _read_lines(stream: IO[bytes], inbox: Inbox) -> None:
    while line := stream.readline(MAX_LINE):
        inbox.put(line)
    inbox.put(Interruption.ENDED)


def _copy(stream: IO[bytes], log: Callable[[bytes], None]) -> None:
    while data := stream.readline(MAX_LINE):
        with suppress(OSError):  # a full disk: read on all the same, or the worker would wait for ever
            log(data)


def _close(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        return  # an order that was never read is still in the buffer
