"""The store: whole artifacts or none, movable names, owners, nothing outside its root."""

from __future__ import annotations

import shutil

import pytest

from mappers.artifact import Parent, artifact_id, read_manifest
from mappers.errors import ArtifactCorrupt
from server.errors import Conflict, InvalidRequest, NotFound
from server.registry.artifacts import ArtifactStore
from server.registry.rows import ArtifactNameRow


def test_registered_artifact_is_found_by_name_and_by_id(store, stage):
    folder = stage("facts")
    expected = artifact_id(read_manifest(folder))
    record = store.register(folder, name="facts", owner=None)
    assert (record.id, record.name, record.kind, record.size) == (expected, "facts", "dataset", 13)
    assert store.get("facts") == store.get(expected) == record
    assert record.path.name == expected
    assert (record.path / "rows.jsonl").read_bytes() == b'{"text":"a"}\n'
    assert not folder.exists()


def test_name_moves_to_the_newest_and_the_old_one_stays_by_id(store, stage):
    old = store.register(stage("facts"), name="facts", owner=None)
    new = store.register(stage("facts", b'{"text":"b"}\n'), name="facts", owner=None)
    assert store.get("facts").id == new.id != old.id
    assert store.get(old.id).path.is_dir()
    assert [record.id for record in store.list("dataset")] == [new.id, old.id]
    assert [record.name for record in store.list("dataset")] == ["facts", old.id], "no two go by one name"
    store.delete("facts")
    assert [record.name for record in store.list("dataset")] == [old.id]


def test_same_content_twice_is_one_artifact_with_two_names(store, stage):
    first = store.register(stage("facts"), name="facts", owner=None)
    second = store.register(stage("facts"), name="other", owner=None)
    assert first.id == second.id
    assert store.get("facts").name == "facts"
    assert store.get("other").name == "other"
    assert len(store.list()) == 1


def test_changed_extra_linked_or_missing_file_is_refused(store, stage, tmp_path):
    changed, extra, linked, missing = (stage("facts") for _ in range(4))
    (changed / "rows.jsonl").write_bytes(b'{"text":"b"}\n')
    (extra / "more.bin").write_bytes(b"x")
    (tmp_path / "outside").write_bytes(b'{"text":"a"}\n')
    (linked / "rows.jsonl").unlink()
    (linked / "rows.jsonl").symlink_to(tmp_path / "outside")
    (missing / "rows.jsonl").unlink()
    for folder in (changed, extra, linked, missing):
        with pytest.raises(ArtifactCorrupt):
            store.register(folder, name="facts", owner=None)
    assert store.list() == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a" * 97, "a\n", "ä", "a b", "art_" + "0" * 24])
def test_hostile_names_are_refused(store, stage, name):
    with pytest.raises(InvalidRequest) as caught:
        store.register(stage("facts"), name=name, owner=None)
    assert caught.value.param == "name"


def test_not_found_and_wrong_kind_say_what_exists(store, stage):
    store.register(stage("facts"), name="facts", owner=None)
    with pytest.raises(NotFound, match="datasets: facts"):
        store.get("fact", kind="dataset", param="parameters.dataset")
    with pytest.raises(NotFound, match="no switches yet"):
        store.get("fact", kind="switch")
    with pytest.raises(InvalidRequest, match="is a dataset, not a vector"):
        store.get("facts", kind="vector")


def test_an_owner_sees_its_own_and_the_unowned_only(store, stage):
    store.register(stage("a", b"a"), name="a", owner="alice")
    store.register(stage("b", b"b"), name="b", owner="bob")
    store.register(stage("c", b"c"), name="c", owner=None)
    assert {record.name for record in store.list(owner="alice")} == {"a", "c"}
    assert {record.name for record in store.list()} == {"a", "b", "c"}
    with pytest.raises(NotFound) as caught:
        store.get("b", owner="alice")
    assert "b," not in caught.value.message.split(";")[1]
    with pytest.raises(Conflict, match="in use"):
        store.register(stage("b", b"else"), name="b", owner="alice")
    assert store.get("b").owner == "bob"


def test_what_is_shared_stays_shared_whoever_registers_it_again(store, stage):
    store.register(stage("a"), name="a", owner=None)
    assert store.register(stage("a"), name="mine", owner="alice").owner is None
    assert store.get("mine", owner="bob").name == "mine"


def test_no_name_redirects_an_id(store, stage, database):
    """Not even one that came with an adopted folder's manifest."""
    victim = store.register(stage("victim", b"v"), name="victim", owner=None)
    other = store.register(stage("other", b"o"), name="other", owner=None)
    with database.write() as session:
        session.add(ArtifactNameRow(name=victim.id, artifact_id=other.id, owner=None))
    assert store.get(victim.id).id == victim.id
    store.delete(victim.id)
    assert [record.id for record in store.list()] == [other.id]


def test_a_parent_cannot_be_deleted_before_its_child(store, stage):
    parent = store.register(stage("facts"), name="facts", owner=None)
    link = Parent(role="dataset", id=parent.id, name="facts")
    child = store.register(stage("copy", b"x", parents=(link,)), name="copy", owner=None)
    staged = sorted((parent.path.parent / ".staging").iterdir())
    with pytest.raises(Conflict, match=child.id):
        store.delete("facts")
    assert sorted((parent.path.parent / ".staging").iterdir()) == staged
    store.delete("copy")
    store.delete(parent.id)
    assert store.list() == []
    assert not parent.path.exists()
    with pytest.raises(NotFound):
        store.delete("facts")


def test_start_brings_folders_and_rows_together(store, stage, tmp_path, database):
    kept = store.register(stage("kept", b"1"), name="kept", owner="alice")
    lost = store.register(stage("lost", b"2"), name="lost", owner=None)
    leftover = stage("leftover", b"3")
    whole = stage("whole", b"4")
    shutil.rmtree(lost.path)
    root = tmp_path / "artifacts"
    adopted = artifact_id(read_manifest(whole))
    whole.rename(root / adopted)
    (root / "art_ffffffffffffffffffffffff").mkdir()
    again = ArtifactStore(root, database, clock=lambda: 9.0)
    report = again.reconcile()
    assert report.removed == (lost.id,)
    assert report.adopted == (adopted,)
    assert report.rejected == ("art_ffffffffffffffffffffffff",)
    assert {record.name for record in again.list()} == {"kept", "whole"}
    assert again.get("kept").owner == kept.owner == "alice"
    with pytest.raises(NotFound):
        again.get("whole", owner="bob")
    assert not leftover.exists()
    assert again.register(_restaged(again, adopted), name="whole", owner="bob").owner == "bob"


def _restaged(store: ArtifactStore, identity: str):
    folder = store.new_staging()
    shutil.copytree(store.get(identity).path, folder, dirs_exist_ok=True)
    return folder


def test_a_damaged_folder_is_replaced_when_its_content_comes_again(store, stage):
    record = store.register(stage("facts"), name="facts", owner=None)
    (record.path / "rows.jsonl").write_bytes(b"damaged")
    store.register(stage("facts"), name="facts", owner=None)
    assert (record.path / "rows.jsonl").read_bytes() == b'{"text":"a"}\n'
