"""``generate_dataset`` on tiny random models: rows that can be trained on, the same however often it is interrupted."""

from __future__ import annotations

from mappers.dataset import dataset_rows
from server.jobs.channel import StopRequested
from tests.server.jobs.handlers.test_handlers import SWITCH, SetAfter


def test_a_model_writes_its_own_dataset(run, artifacts):
    asked = {"rows": 8, "batch_size": 3, "max_new_tokens": 5, "seed": 3}
    manifest, folder = run("generate_dataset", "own", {}, **asked)
    rows = list(dataset_rows(folder))
    assert 1 <= len(rows) == manifest.training["rows"] <= 8
    assert manifest.training["drawn"] == 8
    assert all(row.turns[0].role == "user" and row.answer for row in rows)
    assert manifest.training["model"]["model"] == "tuned"
    assert manifest.training["parameters"] == {"model": None, "temperature": 1.0, **asked}
    for attempt in range(1, 10):
        try:
            again, _ = run("generate_dataset", "own", {}, **asked, job_id="job_2", attempt=attempt, stop=SetAfter(3))
            break
        except StopRequested:
            continue
    assert attempt >= 2
    assert again.files == manifest.files
    other, _ = run("generate_dataset", "own", {}, **asked, model="base", job_id="job_3")
    assert other.files != manifest.files
    own = artifacts.register(folder, name="own", owner=None)
    trained, _ = run("train_switch", "safe", {"d": own}, **SWITCH, job_id="job_4")
    assert trained.training["dataset"]["id"] == own.id
