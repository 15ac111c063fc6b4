"""``python -m server.jobs.worker``: the process of one attempt of one job.

Standard input brings the order, and then nothing until the server is gone; standard output carries the messages of
:mod:`server.jobs.protocol` and nothing else: whatever libraries print goes to standard error, the job's log.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mappers.errors import DataError, InterlockError, OutOfMemory, TrainingError
from server.jobs.channel import Channel, StopRequested
from server.jobs.folder import JobFolder
from server.jobs.protocol import Done, Failed, Heartbeat, WorkOrder

_PR_SET_PDEATHSIG = 1
_AUTOGROUP = Path("/proc/self/autogroup")
_LOCK_PATIENCE_S = 60.0


def main() -> int:
    """Runs the order on standard input; 0 if the server was told how it ended, 1 otherwise."""
    _die_with_server()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    channel = Channel(_take_over_output(), stop)
    order = WorkOrder.model_validate_json(sys.stdin.buffer.readline())
    if os.getppid() != order.server:
        return 1
    _step_back(order.execution.nice)
    threading.Thread(target=_exit_without_server, daemon=True).start()
    threading.Thread(target=_beat, args=(channel, order.execution.heartbeat_s), daemon=True).start()
    with _only_worker(JobFolder(Path(order.folder)).lock):
        return work(order, channel)


def work(order: WorkOrder, channel: Channel) -> int:
    """Carries out the order and says how it ended; returns the exit status."""
    try:
        # torch takes seconds to import: by now the worker already dies with the server and shows signs of life
        from server.jobs.execution import execute

        execute(order, channel)
    except StopRequested:
        return 1
    except InterlockError as error:
        traceback.print_exc()
        channel.send(Failed(code=_code(error), message=_without_places(error.message, order)))
    except Exception as error:  # noqa: BLE001  whatever it was, the server has to know that trying again is no use
        traceback.print_exc()
        reason = f"it failed unexpectedly ({type(error).__name__}): the job's log says where"
        channel.send(Failed(code="internal", message=reason))
    else:
        channel.send(Done())
    return 0


def _code(error: InterlockError) -> str:
    if isinstance(error, DataError):
        return "bad_data"
    if isinstance(error, OutOfMemory):
        return "out_of_memory"
    return "training_failed" if isinstance(error, TrainingError) else "refused"


def _without_places(message: str, order: WorkOrder) -> str:
    """The message with the operator's names of models in place of folders, which are nobody else's business."""
    for name, location in order.models.items():
        message = message.replace(location, name)
    return message[:4096]


def _die_with_server() -> None:
    """Linux kills this process when the thread that started it ends; elsewhere the end of standard input does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _step_back(increment: int) -> None:
    """Takes the processor only as far as the server leaves it.

    Linux weighs processes by niceness within a session only, and sessions alike, where it groups them (autogroups):
    the worker leads a session of its own, whose niceness has to be that of the process. Without that the server's two
    threads wait for each other's time slice at every product, and answers come fifty times more slowly.
    """
    nice = os.nice(increment)
    with suppress(OSError):
        _AUTOGROUP.write_text(str(nice))


def _take_over_output() -> int:
    """A descriptor of the real standard output, which from now on is standard error for everybody else."""
    descriptor = os.dup(1)
    os.dup2(2, 1)
    return descriptor


def _exit_without_server() -> None:
    """Ends the process when nobody holds the other end of standard input any more."""
    while os.read(0, 4096):
        pass
    os._exit(1)


def _beat(channel: Channel, interval_s: float) -> None:
    while True:
        channel.send(Heartbeat())
        time.sleep(interval_s)


@contextmanager
def _only_worker(lock: Path) -> Iterator[None]:
    """Waits until no worker of an earlier attempt is left: the system drops a dead process's lock."""
    with lock.open("wb") as file:
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield


if __name__ == "__main__":
    sys.exit(main())
