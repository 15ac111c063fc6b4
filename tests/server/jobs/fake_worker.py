"""A worker without torch for tests of the supervisor: does what the job's name says.

Run as a script with the file to write its process id to as the only argument.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from mappers.artifact import Manifest, seal


def say(**message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def stage(order: dict) -> None:
    folder = Path(order["folder"]) / f"staging-{order['attempt']}"
    (folder / "rows.jsonl").write_bytes(b'{"text":"a"}\n')
    seal(folder, Manifest(kind="dataset", name="made", created_at=order["created_at"]))


def main() -> None:
    order = json.loads(sys.stdin.readline())
    with Path(sys.argv[1]).open("a") as file:
        file.write(f"{os.getpid()}\n")
    sys.stderr.write(f"attempt {order['attempt']}\n")
    say(type="progress", stage="working", step=order["attempt"], total=9, metrics={"loss": 0.5})
    match order["spec"]["name"]:
        case "succeeds":
            stage(order)
            say(type="done")
        case "fails":
            say(type="failed", code="bad_data", message="line 3 is not JSON")
        case "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        case "dies-once" if order["attempt"] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        case "dies-once":
            stage(order)
            say(type="done")
        case "lies":
            say(type="done")
        case "babbles":
            sys.stdout.write("Loading checkpoint shards: 100%\n")
            sys.stdout.flush()
            time.sleep(60)
        case "hangs":
            time.sleep(60)
        case "ignores-sigterm":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            with Path(sys.argv[1]).open("a") as file:
                file.write(f"{child.pid}\n")
            say(type="progress", stage="ignoring")
            time.sleep(60)


main()
