"""Real processes, each ended in another way; the job is always settled and no process is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from server.jobs.attempt import Patience
from server.jobs.model import Job, JobProgress, JobState
from server.jobs.queue import JobQueue, NewJob
from server.jobs.supervisor import Supervisor, SupervisorConfig

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def pids(tmp_path: Path) -> Callable[[], list[int]]:
    """Ids of every process the fake workers have started so far."""
    file = tmp_path / "pids"
    file.touch()
    return lambda: [int(line) for line in file.read_text().split()]


@pytest.fixture
def make_supervisor(queue, artifacts, models, tmp_path) -> Iterator[Callable[..., Supervisor]]:
    made = []

    def make(**patience: float) -> Supervisor:
        config = SupervisorConfig(
            patience=Patience(**{"silence_s": 90.0, "grace_s": 10.0, **patience}),
            command=(sys.executable, str(FAKE_WORKER), str(tmp_path / "pids")),
            environment={"PYTHONPATH": str(REPOSITORY)},
        )
        made.append(Supervisor(queue, artifacts, models, tmp_path / "jobs", config))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.stop()


def wait(queue: JobQueue, job_id: str, until: Callable[[Job], bool]) -> Job:
    deadline = time.monotonic() + 100
    while not until(job := queue.get(job_id)):
        assert time.monotonic() < deadline, job
        time.sleep(0.02)
    return job


def ended(job: Job) -> bool:
    return job.state.terminal


def working(job: Job) -> bool:
    return job.progress is not None


def test_success_registers_the_artifact_under_the_jobs_name_and_owner(
    queue, submit, make_supervisor, artifacts, tmp_path, pids
):
    job_id = submit(owner="alice", name="succeeds").id
    supervisor = make_supervisor()
    supervisor.start()
    job = wait(queue, job_id, ended)
    record = artifacts.get("succeeds")
    assert (job.state, job.artifacts, job.artifact_names) == (JobState.SUCCEEDED, (record.id,), ("succeeds",))
    assert record.owner == "alice"
    assert job.progress == JobProgress("working", 1, 9, {"loss": 0.5})
    assert supervisor.log_of(job_id).read() == "attempt 1\n"
    supervisor.stop()
    assert not list((tmp_path / "jobs" / job_id).glob("staging-*"))
    assert not any(map(psutil.pid_exists, pids()))


def test_a_job_submitted_while_running_is_picked_up_when_woken(queue, submit, make_supervisor):
    supervisor = make_supervisor()
    supervisor.start()
    job_id = submit(name="succeeds").id
    supervisor.wake()
    assert wait(queue, job_id, ended).state == JobState.SUCCEEDED


def test_a_failure_is_final_and_says_why(queue, submit, make_supervisor, pids):
    job_id = submit(name="fails").id
    make_supervisor().start()
    job = wait(queue, job_id, ended)
    assert job.state == JobState.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.message) == ("bad_data", "line 3 is not JSON")
    assert len(pids()) == 1


def test_a_killed_worker_is_replaced(queue, submit, make_supervisor, artifacts, pids):
    job_id = submit(name="dies-once").id
    make_supervisor().start()
    job = wait(queue, job_id, ended)
    assert (job.state, job.attempt, len(pids())) == (JobState.SUCCEEDED, 2, 2)
    assert len(artifacts.list()) == 1


def test_a_worker_that_always_dies_is_given_up_with_the_reason(queue, submit, make_supervisor, pids):
    job_id = submit(name="dies").id
    make_supervisor().start()
    job = wait(queue, job_id, ended)
    assert (job.state, job.attempt, len(pids())) == (JobState.INTERRUPTED, 3, 3)
    assert job.error is not None
    assert "ended by signal 9" in job.error.message


def test_a_worker_that_made_nothing_fails(queue, submit, make_supervisor, artifacts):
    job_id = submit(name="lies").id
    make_supervisor().start()
    job = wait(queue, job_id, ended)
    assert job.state == JobState.FAILED
    assert job.error is not None
    assert "manifest.json" in job.error.message
    assert artifacts.list() == []


@pytest.mark.parametrize(
    ("name", "reason", "silence_s"), [("hangs", "no sign of life", 1.0), ("babbles", "what no worker writes", 60.0)]
)
def test_silence_and_nonsense_end_a_worker(queue, submit, make_supervisor, pids, name, reason, silence_s):
    job_id = submit(name=name).id
    make_supervisor(silence_s=silence_s).start()
    job = wait(queue, job_id, ended)
    assert job.state == JobState.INTERRUPTED
    assert job.error is not None
    assert reason in job.error.message
    assert not any(map(psutil.pid_exists, pids()))


def test_cancel_ends_the_worker(queue, submit, make_supervisor, pids):
    supervisor = make_supervisor()
    supervisor.start()
    job_id = submit(name="hangs").id
    supervisor.wake()
    wait(queue, job_id, working)
    queue.cancel(job_id)
    supervisor.cancel(job_id)
    job = wait(queue, job_id, ended)
    assert (job.state, job.error) == (JobState.CANCELLED, None)
    assert not any(map(psutil.pid_exists, pids()))


def test_a_worker_that_ignores_sigterm_is_killed_with_its_children(queue, submit, make_supervisor, pids):
    supervisor = make_supervisor(grace_s=0.3)
    supervisor.start()
    job_id = submit(name="ignores-sigterm").id
    supervisor.wake()
    wait(queue, job_id, lambda job: job.progress is not None and job.progress.stage == "ignoring")
    queue.cancel(job_id)
    supervisor.cancel(job_id)
    assert wait(queue, job_id, ended).state == JobState.CANCELLED
    assert len(pids()) == 2
    assert not any(_alive(pid) for pid in pids())


def _alive(pid: int) -> bool:
    """A killed grandchild stays a zombie until its new parent collects it, which may be never in a container."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_stop_gives_the_job_back_and_the_next_server_runs_it_once(queue, submit, make_supervisor, pids):
    job_id = submit(name="hangs").id
    supervisor = make_supervisor()
    supervisor.start()
    wait(queue, job_id, working)
    supervisor.stop()
    assert queue.get(job_id).state == JobState.QUEUED
    assert not any(map(psutil.pid_exists, pids()))
    make_supervisor().start()
    job = wait(queue, job_id, lambda job: job.attempt == 2 and job.progress.step == 2)
    assert job.state == JobState.RUNNING


def test_jobs_run_one_at_a_time(queue, submit, make_supervisor):
    first, second = submit(name="hangs").id, submit(name="succeeds").id
    supervisor = make_supervisor()
    supervisor.start()
    wait(queue, first, working)
    assert queue.get(second).state == JobState.QUEUED
    queue.cancel(first)
    supervisor.cancel(first)
    assert wait(queue, second, ended).state == JobState.SUCCEEDED


def test_an_input_that_is_gone_fails_the_job(queue, make_supervisor, database):
    parameters = {"base": "base", "dataset": "d", "sites": [{"layer": 1}]}
    new = NewJob(kind="train_switch", name="succeeds", parameters=parameters, inputs={"d": "art_gone"})
    queue.submit("job_x", new)
    make_supervisor().start()
    job = wait(queue, "job_x", ended)
    assert job.state == JobState.FAILED
    assert job.error is not None
    assert "art_gone" in job.error.message


def test_a_command_that_cannot_start_is_given_up(queue, submit, artifacts, models, tmp_path):
    config = SupervisorConfig(command=(str(tmp_path / "none"),))
    supervisor = Supervisor(queue, artifacts, models, tmp_path / "jobs", config)
    job_id = submit(name="succeeds").id
    supervisor.start()
    job = wait(queue, job_id, ended)
    supervisor.stop()
    assert job.state == JobState.INTERRUPTED
