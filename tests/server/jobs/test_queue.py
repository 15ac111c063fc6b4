"""Transitions are compare-and-set, leases fence, nothing is lost and nothing runs twice."""

from __future__ import annotations

import threading

import pytest

from server.errors import Conflict, NotFound
from server.jobs.model import JobError, JobProgress, JobState
from server.jobs.queue import JobQueue, Lease
from tests.server.conftest import BACKENDS

pytestmark = pytest.mark.parametrize("backend", BACKENDS, indirect=True)


def states(queue: JobQueue, job_id: str) -> list[str]:
    return [event.data["state"] for event in queue.events(job_id, 0)[0] if event.kind == "state"]


def test_jobs_are_claimed_in_the_order_of_submission(queue, submit):
    first, second = submit(), submit(owner="alice")
    lease, job = queue.claim()
    assert (lease, job.state, job.attempt) == (Lease(first.id, 1), JobState.RUNNING, 1)
    assert queue.claim()[1].id == second.id
    assert queue.claim() is None
    assert [job.id for job in queue.list()] == [second.id, first.id]
    assert [job.id for job in queue.list(owner="alice")] == [second.id]
    assert [job.id for job in queue.list(state=JobState.QUEUED)] == []


def test_of_jobs_that_wait_those_of_higher_priority_come_first(queue, submit):
    jobs = {priority: submit(priority=priority).id for priority in (0, -1, 5, 1)}
    assert [queue.claim()[1].id for _ in range(4)] == [jobs[5], jobs[1], jobs[0], jobs[-1]]
    assert queue.get(jobs[5]).priority == 5


def test_one_that_goes_back_keeps_its_place(queue, submit):
    first, second = submit(), submit()
    lease, _ = queue.claim()
    queue.give_back(lease)
    assert queue.claim()[1].id == first.id
    assert queue.claim()[1].id == second.id


def test_a_job_is_what_was_submitted(queue, submit):
    job = queue.get(submit(owner="alice").id)
    assert (job.kind, job.name, job.owner, job.parameters, job.inputs) == (
        "train_switch",
        "safe",
        "alice",
        {"base": "base", "dataset": "d", "sites": [{"layer": 1}]},
        {},
    )
    assert (job.state, job.attempt, job.started_at, job.progress, job.error) == (JobState.QUEUED, 0, None, None, None)
    with pytest.raises(NotFound):
        queue.get("job_none")


def test_success_is_final(queue, submit):
    job_id = submit().id
    lease, _ = queue.claim()
    assert queue.report(lease, JobProgress("fit", 1, 3, {"loss": 0.5}))
    assert queue.get(job_id).progress == JobProgress("fit", 1, 3, {"loss": 0.5})
    assert queue.succeed(lease, [("art_9", "safe")])
    job = queue.get(job_id)
    assert (job.state, job.artifacts, job.artifact_names) == (JobState.SUCCEEDED, ("art_9",), ("safe",))
    assert not queue.fail(lease, JobError("x", "late"))
    assert not queue.report(lease, JobProgress("fit", 2))
    assert not queue.heartbeat(lease)
    for refused in (queue.cancel, queue.resume):
        with pytest.raises(Conflict):
            refused(job_id)
    assert states(queue, job_id) == ["queued", "running", "succeeded"]


def test_a_late_report_of_an_old_attempt_changes_nothing(queue, submit):
    job_id = submit().id
    old, _ = queue.claim()
    assert queue.lose(old, "killed")
    new, _ = queue.claim()
    assert (new.attempt, queue.get(job_id).state) == (2, JobState.RUNNING)
    assert not queue.succeed(old, [("art_old", "safe")])
    assert not queue.fail(old, JobError("x", "late"))
    assert not queue.report(old, JobProgress("fit", 9))
    assert not queue.lose(old, "again")
    assert queue.get(job_id).state == JobState.RUNNING
    assert queue.succeed(new, [("art_new", "safe")])
    assert queue.get(job_id).artifacts == ("art_new",)


def test_the_third_lost_attempt_is_the_last_and_says_why(queue, submit):
    job_id = submit().id
    for _ in range(3):
        lease, _ = queue.claim()
        queue.lose(lease, "ended by signal 9")
    job = queue.get(job_id)
    assert job.state == JobState.INTERRUPTED
    assert job.error is not None
    assert (job.error.code, "signal 9" in job.error.message) == ("worker_died", True)
    assert queue.claim() is None
    resumed = queue.resume(job_id)
    assert (resumed.state, resumed.error) == (JobState.QUEUED, None)
    assert queue.claim()[0].attempt == 4


def test_stopping_the_server_in_order_costs_no_attempt(queue, submit):
    job_id = submit().id
    for _ in range(5):
        lease, _ = queue.claim()
        assert queue.give_back(lease)
    assert queue.get(job_id).state == JobState.QUEUED


def test_cancel_before_during_and_after(queue, submit):
    waiting, running = submit().id, submit().id
    assert queue.cancel(waiting).state == JobState.CANCELLED
    lease, _ = queue.claim()
    assert lease.job_id == running
    assert queue.cancel(running).state == JobState.CANCELLING
    assert queue.cancel(running).state == JobState.CANCELLING
    assert not queue.succeed(lease, [("art_1", "safe")])
    assert queue.finish_cancel(lease)
    assert queue.cancel(running).state == JobState.CANCELLED
    assert queue.get(running).artifacts == ()
    with pytest.raises(NotFound):
        queue.cancel("job_none")


def test_recovery_queues_what_ran_and_ends_what_was_being_cancelled(queue, submit, database):
    ran, cancelled, queued = (submit().id for _ in range(3))
    queue.claim()
    queue.claim()
    queue.cancel(cancelled)
    again = JobQueue(database, clock=lambda: 99.0)
    again.recover()
    assert again.get(ran).state == JobState.QUEUED
    assert again.get(cancelled).state == JobState.CANCELLED
    assert again.claim()[1].id == ran
    assert again.claim()[1].id == queued


def test_events_are_numbered_and_can_be_replayed_from_any_point(queue, submit):
    job_id = submit().id
    lease, _ = queue.claim()
    for step in range(5):
        queue.report(lease, JobProgress("fit", step))
    queue.succeed(lease, [])
    events, ended = queue.events(job_id, 0)
    assert ended
    assert [event.id for event in events] == list(range(1, 9))
    assert queue.events(job_id, 6)[0] == events[6:]
    assert queue.events(job_id, 0, limit=3) == (events[:3], False)
    assert queue.events(job_id, 99) == ([], True)


def test_old_progress_is_dropped_and_states_stay(queue, submit, monkeypatch):
    monkeypatch.setattr("server.jobs.records._PROGRESS_KEPT", 20)
    monkeypatch.setattr("server.jobs.records._PRUNE_EVERY", 10)
    job_id = submit().id
    lease, _ = queue.claim()
    for step in range(60):
        queue.report(lease, JobProgress("fit", step))
    events, _ = queue.events(job_id, 0)
    assert states(queue, job_id) == ["queued", "running"]
    assert 20 <= len(events) <= 32
    assert events[-1].data["step"] == 59


def test_every_job_is_claimed_exactly_once_by_many_threads(queue, submit):
    expected = {submit().id for _ in range(20)}
    claimed: list[str] = []

    def claim_all() -> None:
        while (found := queue.claim()) is not None:
            claimed.append(found[1].id)

    threads = [threading.Thread(target=claim_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(expected)


def test_listeners_hear_of_their_job_only(queue, submit):
    first, second = submit().id, submit().id
    heard: list[str] = []
    with queue.changes.listening(first, lambda: heard.append(first)):
        queue.cancel(second)
        assert heard == []
        queue.cancel(first)
        assert heard == [first]
    queue.resume(first)
    assert heard == [first]
