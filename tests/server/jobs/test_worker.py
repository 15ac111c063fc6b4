"""The real worker, as the server starts it: killed, stopped, orphaned, resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from server.jobs import worker
from server.jobs.channel import Channel
from server.jobs.directory import ModelDirectory
from server.jobs.execution import execute
from server.jobs.folder import JobFolder
from server.jobs.model import Job, JobState
from server.jobs.protocol import Execution, WorkOrder
from server.jobs.queue import JobQueue, Lease
from server.jobs.service import JobService
from server.jobs.specs import JOB_SPEC
from server.jobs.supervisor import WORKER_COMMAND, Supervisor, SupervisorConfig

REPOSITORY = Path(__file__).parents[3]
LINES = tuple(
    json.dumps({"prompt": f"what is {word}", "completion": "a fox and a lamp"}).encode() for word in "abcdefgh"
)
SWITCH = {"base": "base", "dataset": "d", "sites": [{"layer": 0}], "steps": 150, "batch_size": 4, "hidden": 8}
SPEC = JOB_SPEC.validate_python({"kind": "train_switch", "name": "safe", "parameters": SWITCH})


@pytest.fixture
def environment() -> dict[str, str]:
    return {"PYTHONPATH": str(REPOSITORY), "PATH": os.defpath, "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def make_supervisor(queue, artifacts, served, tiny_models, tmp_path, environment) -> Callable[[], Supervisor]:
    """Each call is the part of one server that starts workers; checkpoints are saved at every step."""
    models = ModelDirectory(served, str(tiny_models.tuned), {"base": str(tiny_models.base)})
    config = SupervisorConfig(execution=Execution(checkpoint_s=0.0, nice=1), environment=environment)
    return lambda: Supervisor(queue, artifacts, models, tmp_path / "jobs", config)


@pytest.fixture
def make_service(queue, artifacts, models, make_supervisor):
    """``make_service()`` is a server's jobs; a second one is that server started again."""
    made = []

    def make() -> JobService:
        made.append(JobService(queue, make_supervisor(), artifacts, models, new_id=lambda: f"{time.monotonic_ns()}"))
        return made[-1]

    yield make
    for service in made:
        service.stop()


@pytest.fixture
def order(make_supervisor, queue, dataset, tmp_path) -> WorkOrder:
    """An order for the switch of ``SPEC``, with a folder to stage in, that no supervisor has seen."""
    record = dataset("d", LINES)
    job = Job(
        id="job_alone",
        kind="train_switch",
        name="safe",
        state=JobState.RUNNING,
        owner=None,
        parameters=SPEC.parameters.stored(),
        created_at=0.0,
        attempt=1,
        inputs={"d": record.id, record.id: record.id},
    )
    JobFolder(tmp_path / "jobs" / job.id).prepare(1)
    return make_supervisor().order(Lease(job.id, 1), job)


def wait(queue: JobQueue, job_id: str, until: Callable[[Job], bool]) -> Job:
    deadline = time.monotonic() + 200
    while not until(job := queue.get(job_id)):
        assert time.monotonic() < deadline, job
        assert not job.state.terminal, job
        time.sleep(0.02)
    return job


def trained(queue: JobQueue, job_id: str, attempt: int) -> list[int]:
    """The training steps that an attempt has reported so far."""
    current, steps = 0, []
    for event in queue.events(job_id, 0)[0]:
        if event.kind == "state":
            current = event.data["attempt"]
        elif event.data["stage"] == "training" and current == attempt:
            steps.append(event.data["step"])
    return steps


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "server.jobs.worker" in " ".join(child.cmdline())]


def test_a_job_survives_a_killed_worker_and_a_stopped_server(queue, make_service, order, artifacts):
    """Attempt 1 is killed, attempt 2 stopped with the server, attempt 3 ends in the tensors of an unbroken run."""
    service = make_service()
    service.start()
    job_id = service.submit(SPEC, None).id
    wait(queue, job_id, lambda _: len(trained(queue, job_id, 1)) >= 2)
    (process,) = workers()
    assert process.nice() == psutil.Process().nice() + 1
    autogroup = Path(f"/proc/{process.pid}/autogroup")
    if autogroup.exists():  # a kernel that weighs whole sessions
        assert autogroup.read_text().split()[-2:] == ["nice", str(process.nice())]
    assert os.getsid(process.pid) == process.pid
    process.send_signal(signal.SIGKILL)
    wait(queue, job_id, lambda _: len(trained(queue, job_id, 2)) >= 2)
    service.stop()
    assert workers() == []
    assert queue.get(job_id).state == JobState.QUEUED
    again = make_service()
    again.start()
    job = wait(queue, job_id, lambda job: job.state.terminal)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 3)
    assert trained(queue, job_id, 1)[-1] <= trained(queue, job_id, 2)[0]
    assert trained(queue, job_id, 2)[-1] < trained(queue, job_id, 3)[0]
    assert job.artifacts == (artifacts.get("safe").id,)

    execute(order, Channel(os.open(os.devnull, os.O_WRONLY), threading.Event()))
    unbroken = load_file(Path(order.folder) / "staging-1" / "tensors.safetensors")
    resumed = load_file(artifacts.get("safe").path / "tensors.safetensors")
    assert {name: tensor.tolist() for name, tensor in resumed.items()} == {
        name: tensor.tolist() for name, tensor in unbroken.items()
    }


def test_a_model_that_cannot_be_loaded_fails_without_naming_its_place(order, tmp_path, capsys):
    missing = str(tmp_path / "nowhere")
    bent = order.model_copy(update={"models": order.models | {"base": missing}})
    reading, writing = os.pipe()
    assert worker.work(bent, Channel(writing, threading.Event())) == 0
    os.close(writing)
    with os.fdopen(reading) as messages:
        last = json.loads(messages.readlines()[-1])
    assert (last["type"], last["code"]) == ("failed", "refused")
    assert "'base'" in last["message"]
    assert missing not in last["message"]
    assert missing in capsys.readouterr().err


def test_an_unexpected_exception_is_told_without_its_text(order, capsys, monkeypatch):
    def explode(*_args: object) -> None:
        raise RuntimeError("at 0x7f00 in /secret")

    monkeypatch.setattr("server.jobs.execution.execute", explode)
    reading, writing = os.pipe()
    assert worker.work(order, Channel(writing, threading.Event())) == 0
    os.close(writing)
    with os.fdopen(reading) as messages:
        last = json.loads(messages.readlines()[-1])
    assert last["code"] == "internal"
    assert "RuntimeError" in last["message"]
    assert "secret" not in last["message"]
    assert "secret" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_worker_dies_with_its_server_even_if_its_input_stays_open(environment, order):
    """The parent of the worker is killed while this test still holds the worker's standard input open."""
    reading, writing = os.pipe()
    script = f"import subprocess, time; subprocess.Popen({WORKER_COMMAND!r}); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=reading, stdout=subprocess.PIPE, env=environment)
    os.write(writing, order.model_copy(update={"server": parent.pid}).model_dump_json().encode() + b"\n")
    assert json.loads(parent.stdout.readline())["type"] == "heartbeat"
    (process,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    psutil.wait_procs([process], timeout=10)
    alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    for descriptor in (reading, writing):
        os.close(descriptor)
    parent.stdout.close()
    assert not alive


def test_another_package_of_that_name_where_the_server_runs_is_not_taken(environment, tmp_path):
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "__init__.py").write_text("raise SystemExit(77)")
    (tmp_path / "sys.py").write_text("raise SystemExit(78)")
    del environment["PYTHONPATH"]
    ended = subprocess.run(WORKER_COMMAND, input=b"", cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert ended.returncode == 1
    assert b"WorkOrder" in ended.stderr


def test_a_worker_ends_when_its_input_does(environment, order):
    """Where there is no prctl, the end of standard input says that the server is gone."""
    process = subprocess.Popen(
        WORKER_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    process.stdin.write(order.model_copy(update={"server": os.getpid()}).model_dump_json().encode() + b"\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["type"] == "heartbeat"
    process.stdin.close()
    assert process.wait(timeout=60) == 1
    process.stdout.close()
