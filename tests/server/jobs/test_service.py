"""What is refused at submission, and events as they come."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest

from mappers.artifact import Manifest, ModelBinding, Parent, seal
from mappers.mapper_config import MapperConfig
from server.errors import Conflict, InvalidRequest, NotFound, Overloaded
from server.jobs import service as service_module
from server.jobs.model import JobProgress, JobState
from server.jobs.service import JobService
from server.jobs.specs import JOB_SPEC
from server.jobs.supervisor import Supervisor, SupervisorConfig

CREATED = "2026-01-02T03:04:05+00:00"
SWITCH = {"base": "base", "dataset": "d", "sites": [{"layer": 2}]}


@pytest.fixture
def service(queue, artifacts, models, tmp_path):
    """A service whose supervisor was never started: submitted jobs wait."""
    numbers = count(1)
    supervisor = Supervisor(queue, artifacts, models, tmp_path / "jobs", SupervisorConfig())
    return JobService(queue, supervisor, artifacts, models, new_id=lambda: f"{next(numbers)}")


def spec(kind="train_switch", name="safe", **parameters):
    return JOB_SPEC.validate_python({"kind": kind, "name": name, "parameters": parameters})


@pytest.fixture
def tensor_artifact(artifacts):
    """``tensor_artifact(name, kind, ...)`` registers a manifest with a file nobody reads."""

    def make(
        name, kind, *, model="tuned", digest="1", source_digest="2", parents=(), mapper="ridge", site=2, owner=None
    ):
        folder = artifacts.new_staging()
        (folder / "tensors.safetensors").write_bytes(name.encode())
        binding = ModelBinding(model=model, config_digest=digest * 64, width=4)
        source = ModelBinding(model="small", config_digest=source_digest * 64, width=4)
        config = MapperConfig(kind=mapper, d_source=4, d_target=4) if kind in ("mapper", "switch") else None
        manifest = Manifest(
            kind=kind,
            name=name,
            created_at=CREATED,
            target=binding,
            source=source if kind == "mapper" else None,
            sites=(f"resid_post.{site}",),
            source_sites=("resid_post.1",) if kind == "mapper" else (),
            mapper=config,
            dtype="float32",
            parents=parents,
        )
        seal(folder, manifest)
        return artifacts.register(folder, name=name, owner=owner)

    return make


def test_a_submitted_job_is_bound_to_the_artifact_of_that_moment(service, dataset):
    old = dataset("d")
    job = service.submit(spec(**SWITCH), "alice")
    new = dataset("d", (b'{"prompt": "other"}',))
    assert new.id != old.id
    job = service.get(job.id)
    assert job.inputs == {"d": old.id, old.id: old.id}
    assert (job.id, job.state, job.owner, job.parameters["steps"]) == ("job_1", JobState.QUEUED, "alice", 300)
    assert "ridge" not in job.parameters


@pytest.mark.parametrize(
    ("changes", "error", "param", "says"),
    [
        ({"base": "bsae"}, InvalidRequest, "parameters.base", "base, small"),
        ({"base": "tuned"}, InvalidRequest, "parameters.base", "base, small"),
        ({"dataset": "nope"}, NotFound, "parameters.dataset", "there are these datasets: d"),
        ({"dataset": "v"}, InvalidRequest, "parameters.dataset", "is a vector, not a dataset"),
        ({"sites": [{"layer": 3}]}, InvalidRequest, "parameters.sites", "layers 0 to 2"),
    ],
)
def test_what_a_switch_names_must_exist(service, dataset, tensor_artifact, changes, error, param, says):
    dataset("d")
    tensor_artifact("v", "vector")
    with pytest.raises(error) as caught:
        service.submit(spec(**SWITCH | changes), None)
    assert caught.value.param == param
    assert says in caught.value.message
    assert service.list() == []


def test_what_a_mapper_names_must_exist(service, dataset):
    dataset("d")
    good = {"source": "small", "source_site": {"layer": 99}, "target_site": {"layer": 2}, "dataset": "d"}
    service.submit(spec("train_mapper", **good), None)
    for changes, param in (({"source": "tuned"}, "source"), ({"target_site": {"layer": 3}}, "target_site")):
        with pytest.raises(InvalidRequest) as caught:
            service.submit(spec("train_mapper", **good | changes), None)
        assert caught.value.param == f"parameters.{param}"


def test_what_a_vector_names_must_exist(service, dataset):
    dataset("d")
    good = {"positive": "d", "negative": "d", "sites": [{"layer": 2}]}
    service.submit(spec("extract_vector", **good), None)
    service.submit(spec("extract_vector", **good | {"model": "small", "sites": [{"layer": 9}]}), None)
    for changes, param in (
        ({"model": "x"}, "model"),
        ({"sites": [{"layer": 9}]}, "sites"),
        ({"negative": "x"}, "negative"),
    ):
        with pytest.raises((InvalidRequest, NotFound)) as caught:
            service.submit(spec("extract_vector", **good | changes), None)
        assert caught.value.param == f"parameters.{param}"


def test_what_a_probe_names_must_exist(service, dataset):
    dataset("d")
    good = {"positive": "d", "negative": "d", "sites": [{"layer": 2}]}
    service.submit(spec("train_probe", **good), None)
    for changes, param in (({"sites": [{"layer": 9}]}, "sites"), ({"positive": "x"}, "positive")):
        with pytest.raises((InvalidRequest, NotFound)) as caught:
            service.submit(spec("train_probe", **good | changes), None)
        assert caught.value.param == f"parameters.{param}"


def test_a_vector_of_one_dataset_is_bound_to_it(service, dataset):
    data = dataset("d")
    job = service.submit(spec("extract_vector", prompts="d", trigger={"text": "a "}, sites=[{"layer": 2}]), None)
    assert job.inputs == {"d": data.id, data.id: data.id}


def test_what_a_refusal_direction_names_must_exist(service, dataset):
    dataset("d")
    good = {"harmful": "d", "harmless": "d"}
    service.submit(spec("extract_refusal_direction", **good), None)
    for changes in ({"model": "x"}, {"harmful": "x"}, {"harmless": "x"}):
        with pytest.raises((InvalidRequest, NotFound)) as caught:
            service.submit(spec("extract_refusal_direction", **good | changes), None)
        assert caught.value.param == f"parameters.{next(iter(changes))}"


def test_what_a_transferred_switch_names_must_exist(service, dataset, tensor_artifact):
    dataset("d")
    tensor_artifact("s", "switch", model="small", site=1)
    tensor_artifact("own", "switch", site=1)
    pair = {"source": {"layer": 1}, "target": {"layer": 2}}
    good = {"switch": "s", "dataset": "d", "sites": [pair]}
    service.submit(spec("transfer_switch", **good), None)
    refused = [
        ({"switch": "d"}, "parameters.switch"),
        ({"switch": "own"}, "parameters.switch"),
        ({"sites": [pair | {"source": {"layer": 0}}]}, "parameters.sites"),
        ({"sites": [pair | {"target": {"layer": 3}}]}, "parameters.sites"),
        ({"dataset": "x"}, "parameters.dataset"),
        ({"check": {"dataset": "x", "marker": "m", "strengths": [1.0]}}, "parameters.check.dataset"),
    ]
    for changes, param in refused:
        with pytest.raises((InvalidRequest, NotFound)) as caught:
            service.submit(spec("transfer_switch", **good | changes), None)
        assert caught.value.param == param, changes


def test_a_transfer_needs_parts_that_fit(service, dataset, tensor_artifact):
    data = dataset("d")
    both = tuple(Parent(role=role, id=data.id, name="d") for role in ("positive", "negative"))
    tensor_artifact("m", "mapper")
    tensor_artifact("auto", "mapper", mapper="autoencoder")
    tensor_artifact("v", "vector", digest="2", site=1, parents=both)
    tensor_artifact("bare", "vector", digest="2", site=1)
    tensor_artifact("foreign", "vector", digest="3", site=1, parents=both)
    tensor_artifact("elsewhere", "vector", digest="2", site=0, parents=both)
    tensor_artifact("native", "vector", digest="1", site=2)
    good = {"vector": "v", "mapper": "m"}
    job = service.submit(spec("transfer_vector", **good, rescale={"to": "native", "vector": "native"}), None)
    assert data.id in job.inputs
    service.submit(spec("transfer_vector", **good | {"vector": "bare", "rule": "linear"}), None)
    assert data.id in service.submit(spec("transfer_vector", **good, rule="linear"), None).inputs
    check = {"dataset": "d", "marker": "m", "strengths": [1.0]}
    service.submit(spec("transfer_vector", **good | {"mapper": "auto", "rule": "jacobian", "check": check}), None)
    refused = [
        ({"vector": "m"}, "parameters.vector"),
        ({"mapper": "v"}, "parameters.mapper"),
        ({"vector": "bare"}, "parameters.vector"),
        ({"vector": "foreign"}, "parameters.mapper"),
        ({"vector": "elsewhere"}, "parameters.vector"),
        ({"mapper": "auto", "rule": "linear"}, "parameters.rule"),
        ({"rescale": {"to": "native", "vector": "v"}}, "parameters.rescale.vector"),
        ({"native": "v"}, "parameters.native"),
        ({"vector": "bare", "rule": "jacobian"}, "parameters.vector"),
        ({"vector": "bare", "rule": "linear", "rescale": {"to": "rms", "fraction": 1.0}}, "parameters.rescale"),
    ]
    for changes, param in refused:
        with pytest.raises(InvalidRequest) as caught:
            service.submit(spec("transfer_vector", **good | changes), None)
        assert caught.value.param == param, changes


def test_what_a_sweep_names_must_exist(service, dataset, tensor_artifact):
    dataset("d")
    tensor_artifact("v", "vector")
    tensor_artifact("foreign", "vector", digest="3")
    ends = {"positive": "d", "negative": "d"}
    good = {"edit": {"kind": "difference_in_means", **ends}, "prompts": "d"}
    edits = (
        good["edit"],
        {"kind": "vector", "vector": "v"},
        {"kind": "switch", "base": "base", "dataset": "d"},
        {"kind": "transfer", **ends, "source": "small", "texts": "d"},
    )
    for edit in edits:
        service.submit(spec("sweep_sites", **good | {"edit": edit}), None)
    service.submit(spec("sweep_sites", **good | {"model": "small", "sites": [{"layer": 9}]}), None)
    refused = [
        ({"prompts": "x"}, "prompts"),
        ({"model": "x"}, "model"),
        ({"sites": [{"layer": 9}]}, "sites"),
        ({"edit": edits[0] | {"negative": "x"}}, "edit.negative"),
        ({"edit": edits[1] | {"vector": "d"}}, "edit.vector"),
        ({"edit": edits[1] | {"vector": "foreign"}}, "edit.vector"),
        ({"edit": edits[2] | {"base": "x"}}, "edit.base"),
        ({"edit": edits[2] | {"dataset": "x"}}, "edit.dataset"),
        ({"edit": edits[3] | {"source": "x"}}, "edit.source"),
        ({"edit": edits[3] | {"texts": "x"}}, "edit.texts"),
        ({"marker": "m", "patching": {"triggered": "d", "clean": "x"}}, "patching.clean"),
    ]
    for changes, param in refused:
        with pytest.raises((InvalidRequest, NotFound)) as caught:
            service.submit(spec("sweep_sites", **good | changes), None)
        assert caught.value.param == f"parameters.{param}", changes


def test_owners_use_their_own_and_the_unowned_only(service, dataset):
    dataset("hers", owner="alice")
    with pytest.raises(NotFound):
        service.submit(spec(**SWITCH | {"dataset": "hers"}), "bob")
    service.submit(spec(**SWITCH | {"dataset": "hers"}), "alice")
    dataset("ours", (b'{"prompt": "o"}',))
    with pytest.raises(Conflict) as caught:
        service.submit(spec(name="hers", **SWITCH | {"dataset": "ours"}), "bob")
    assert caught.value.param == "name"


def test_the_queue_is_bounded(service, dataset, monkeypatch):
    monkeypatch.setattr(service_module, "MAX_WAITING", 2)
    dataset("d")
    for _ in range(2):
        service.submit(spec(**SWITCH), None)
    with pytest.raises(Overloaded):
        service.submit(spec(**SWITCH), None)


async def test_events_come_as_they_happen_and_end_with_the_job(service, queue, submit):
    job_id = submit().id
    lease, _ = queue.claim()
    queue.report(lease, JobProgress("fit", 1, 3))
    seen = []

    async def follow() -> None:
        seen.extend([event async for event in service.events(job_id, after=1)])

    following = asyncio.create_task(follow())
    for step in (2, 3):
        await asyncio.to_thread(queue.report, lease, JobProgress("fit", step, 3))
    await asyncio.to_thread(queue.succeed, lease, [("art_1", "safe")])
    await asyncio.wait_for(following, 10)
    assert [event.id for event in seen] == [2, 3, 4, 5, 6]
    assert [event.kind for event in seen] == ["state", "progress", "progress", "progress", "state"]
    assert seen[-1].data["state"] == "succeeded"
    assert seen[-1].data["artifacts"] == ["art_1"]
    again = [event async for event in service.events(job_id, after=4)]
    assert again == seen[-2:]


async def test_many_events_come_without_a_gap(service, queue, submit):
    job_id = submit().id
    lease, _ = queue.claim()

    def work() -> None:
        for step in range(50):
            queue.report(lease, JobProgress("fit", step, 50))
        queue.succeed(lease, [])

    working = asyncio.create_task(asyncio.to_thread(work))
    ids = [event.id async for event in service.events(job_id)]
    await working
    assert ids == list(range(1, 54))


async def test_events_end_when_the_server_stops(service, submit):
    job_id = submit().id
    events = service.events(job_id)
    assert (await anext(events)).data["state"] == "queued"
    waiting = asyncio.create_task(anext(events))
    await asyncio.sleep(0)
    await asyncio.to_thread(service.stop)
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(waiting, 10)


async def test_events_log_and_cancel_of_an_unknown_job(service):
    for action in (service.get, service.cancel, service.resume, service.log):
        with pytest.raises(NotFound):
            action("job_none")
    with pytest.raises(NotFound):
        await anext(service.events("job_none"))


def test_cancel_and_resume_of_a_waiting_job(service, dataset):
    dataset("d")
    job = service.submit(spec(**SWITCH), None)
    assert service.cancel(job.id).state == JobState.CANCELLED
    assert service.log(job.id) == ""
    assert service.resume(job.id).state == JobState.QUEUED
    with pytest.raises(Conflict):
        service.resume(job.id)


def test_a_dataset_is_written_by_a_model_that_exists(service):
    service.submit(spec("generate_dataset", rows=5), None)
    service.submit(spec("generate_dataset", rows=5, model="base"), None)
    with pytest.raises(InvalidRequest) as caught:
        service.submit(spec("generate_dataset", rows=5, model="nope"), None)
    assert caught.value.param == "parameters.model"


@pytest.mark.parametrize(
    ("changes", "error", "param"),
    [
        ({"model": "nope"}, InvalidRequest, "parameters.model"),
        ({"dataset": "nope"}, NotFound, "parameters.dataset"),
        ({"sites": [{"layer": 3}]}, InvalidRequest, "parameters.sites"),
    ],
)
def test_a_collection_is_checked_before_it_starts(service, dataset, changes, error, param):
    dataset("d")
    parameters = {"dataset": "d", "sites": [{"layer": 2}]}
    assert service.submit(spec("collect_activations", "acts", **parameters), None).kind == "collect_activations"
    assert service.submit(spec("collect_activations", "acts", **parameters, model="small"), None)
    with pytest.raises(error) as raised:
        service.submit(spec("collect_activations", "other", **parameters | changes), None)
    assert raised.value.param == param
