"""A server of the quickstart's own, in a process that outlives the command only if it is asked to."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from server.cli.client import Client, CommandFailed
from server.settings import plain_environment

_START_LIMIT_S = 120.0
_STOP_LIMIT_S = 40.0


class ServerProcess:
    """``interlock serve`` on a free port of this machine; its output goes to ``<data_dir>/server.log``."""

    def __init__(self, data_dir: Path, model: Path, references: dict[str, Path], max_batch: int) -> None:
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = data_dir / "server.log"
        options: Sequence[str] = (
            *("--model", str(model), "--port", str(self.port), "--data-dir", str(data_dir / "server")),
            *("--max-batch", str(max_batch), "--max-waiting", "1024"),
            *(part for name, place in references.items() for part in ("--reference", f"{name}={place}")),
        )
        # Settings meant for another server must not reach this one.
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "server.cli", "serve", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=plain_environment(),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def wait_until_ready(self, console: Console) -> None:
        """Returns once the server answers; raises CommandFailed with the end of its log where it does not."""
        deadline = time.monotonic() + _START_LIMIT_S
        with console.status("starting the server"), Client(self.url) as client:
            while time.monotonic() < deadline and self._process.poll() is None:
                with suppress(CommandFailed):
                    client.get("/health/ready")
                    return
                time.sleep(0.2)
        tail = self.log.read_text(errors="replace")[-2000:]
        raise CommandFailed(f"the server did not become ready; its log says:\n{tail}")

    def terminate(self) -> None:
        """Asks the server to drain and end."""
        self._process.terminate()

    def wait(self) -> int:
        """Waits for the end, insists on it after a while, and returns the exit code."""
        try:
            return self._process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def stop(self) -> None:
        """Both, unless it has ended already."""
        if self._process.poll() is None:
            self.terminate()
            self.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
