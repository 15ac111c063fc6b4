"""A collection takes all that nothing refers to and nothing else, whatever goes on meanwhile."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mappers.artifact import Parent
from server.errors import NotFound
from server.registry.artifacts import ArtifactRecord, ArtifactStore
from server.registry.database import Database
from server.registry.garbage import unreferenced
from server.registry.rows import ApiKeyRow, JobRow, PolicyRow, ProfileRow


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[str, set[str]], set[str]]:
    """Artifacts with parents among the earlier ones and among deleted ones, and some of them as roots."""
    count = draw(st.integers(0, 12))
    names = [str(number) for number in range(count)]
    earlier = {one: [*names[:number], "gone"] for number, one in enumerate(names)}
    parents = {one: draw(st.sets(st.sampled_from(before), max_size=3)) for one, before in earlier.items()}
    return parents, draw(st.sets(st.sampled_from([*names, "elsewhere"])))


@given(graphs())
@settings(max_examples=300, deadline=None)
def test_what_goes_is_exactly_what_no_root_needs(graph: tuple[dict[str, set[str]], set[str]]) -> None:
    parents, roots = graph
    doomed = unreferenced(parents, roots)
    kept = parents.keys() - doomed
    assert doomed.isdisjoint(roots)
    assert all(parents[one].isdisjoint(doomed) for one in kept)
    for one in kept:  # each has a reason: it is a root, or something kept was made from it
        assert one in roots or any(one in parents[child] for child in kept)


def add(store: ArtifactStore, stage, name: str, *parents: ArtifactRecord) -> ArtifactRecord:
    links = tuple(Parent(role="dataset", id=one.id, name=one.name) for one in parents)
    return store.register(stage(name, name.encode(), links), name=name, owner="alice")


def orphan(store: ArtifactStore, stage, name: str, *parents: ArtifactRecord) -> ArtifactRecord:
    """An artifact whose name is taken away again."""
    made = add(store, stage, name, *parents)
    store.unname(name, made.id, by="alice")
    return made


def ids(records) -> set[str]:
    return {record.id for record in records}


def collect(store: ArtifactStore, *in_use: str, dry_run: bool = False) -> set[str]:
    return ids(store.collect(frozenset(in_use), older_than_s=-1e9, by="operator", dry_run=dry_run))


def test_a_name_keeps_an_artifact_and_all_it_was_made_from(store, stage):
    data = orphan(store, stage, "data")
    vector = orphan(store, stage, "vector", data)
    moved = add(store, stage, "moved", vector)
    spare = orphan(store, stage, "spare", data)
    assert collect(store, dry_run=True) == {spare.id}
    assert store.get(spare.id).path.is_dir()
    assert collect(store) == {spare.id}
    assert not spare.path.exists()
    with pytest.raises(NotFound):
        store.get(spare.id)
    assert ids(store.list()) == {data.id, vector.id, moved.id}
    store.unname("moved", moved.id, by="alice")
    assert collect(store) == {data.id, vector.id, moved.id}
    assert [entry.name for entry in data.path.parent.iterdir()] == [".staging"]


def _profile(identity: str) -> ProfileRow:
    bound = {"x": identity}
    times = {"created_at": 0.0, "updated_at": 0.0}
    return ProfileRow(name="p", owner="a", shared=False, content={}, artifacts=bound, fits_every_prompt=True, **times)


def _policy(identity: str) -> PolicyRow:
    return PolicyRow(version=1, document={"gates": {identity: {}}}, created_at=0.0, created_by="a")


def _key(identity: str) -> ApiKeyRow:
    limits = {"strengths": {identity: {"max": 1}}}
    return ApiKeyRow(id="k", name="k", digest="d", owner="a", scopes=[], limits=limits, created_at=0.0)


def _job(state: str):
    def make(identity: str) -> JobRow:
        inputs = {"data": identity}
        counts = {"attempt": 0, "attempts_allowed": 3, "events": 0}
        return JobRow(
            id="j",
            kind="k",
            name="n",
            state=state,
            parameters={},
            inputs=inputs,
            created_at=0.0,
            artifacts=[],
            **counts,
        )

    return make


REFERENCES = [_profile, _policy, _key, *map(_job, ("queued", "running", "cancelling", "failed", "interrupted"))]


@pytest.mark.parametrize("refer", REFERENCES)
def test_what_is_referred_to_by_id_stays(store, stage, database: Database, refer):
    kept, spare = orphan(store, stage, "kept"), orphan(store, stage, "spare")
    with database.write() as session:
        session.add(refer(kept.id))
    assert collect(store) == {spare.id}


def test_a_finished_job_needs_its_data_no_more(store, stage, database: Database):
    made = orphan(store, stage, "data")
    with database.write() as session:
        session.add(_job("succeeded")(made.id))
    assert collect(store) == {made.id}


def test_what_the_server_holds_stays(store, stage):
    held, spare = orphan(store, stage, "held"), orphan(store, stage, "spare")
    assert collect(store, held.id) == {spare.id}


def test_the_young_are_spared(store, stage):
    """The clock of this store goes one second a call."""
    old, young = orphan(store, stage, "old"), orphan(store, stage, "young")
    assert ids(store.collect(frozenset(), older_than_s=1.5, by=None, dry_run=False)) == {old.id}
    assert ids(store.list()) == {young.id}


def test_uploads_beside_collections_lose_nothing(store: ArtifactStore, stage, tmp_path: Path):
    """The same three contents come again and again while whatever has no name goes: what was just named is there."""
    stop = threading.Event()

    def sweep() -> None:
        while not stop.is_set():
            collect(store)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for number in range(24):
            made = add(store, stage, f"data-{number % 3}")
            assert store.get(made.id).path.is_dir()
            assert (made.path / "rows.jsonl").is_file()
            store.unname(made.name, made.id, by="alice")
    finally:
        stop.set()
        sweeper.join()
    collect(store)
    assert store.list() == []
