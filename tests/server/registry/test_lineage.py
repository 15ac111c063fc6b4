"""What an artifact was made from, as far as the caller may see it."""

from __future__ import annotations

import pytest

from mappers.artifact import Parent
from server.errors import NotFound
from server.registry import lineage as module


def child_of(store, stage, name, *parents, owner="alice"):
    links = tuple(Parent(role=f"role-{number}", id=one.id, name=one.name) for number, one in enumerate(parents))
    return store.register(stage(name, name.encode(), links), name=name, owner=owner)


def test_every_ancestor_is_listed_once_with_its_parents(store, stage):
    data = child_of(store, stage, "data")
    joy, mapper = child_of(store, stage, "joy", data), child_of(store, stage, "mapper", data)
    moved = child_of(store, stage, "moved", joy, mapper)
    found = store.lineage(moved.id, owner="alice")
    assert [one.id for one in found.ancestors] == [moved.id, joy.id, mapper.id, data.id]
    assert [(one.role, one.name) for one in found.ancestors[0].parents] == [("role-0", "joy"), ("role-1", "mapper")]
    assert (found.children, found.complete) == ((), True)
    assert [one.id for one in store.lineage(data.id).children] == [joy.id, mapper.id]


def test_what_is_anothers_is_known_by_name_only(store, stage):
    secret = child_of(store, stage, "secret", owner="bob")
    middle = child_of(store, stage, "middle", secret, owner="bob")
    mine = child_of(store, stage, "mine", middle)
    found = store.lineage(mine.id, owner="alice")
    assert [(one.id, one.kind, one.parents) for one in found.ancestors[1:]] == [(middle.id, None, ())]
    assert [one.id for one in store.lineage(mine.id).ancestors] == [mine.id, middle.id, secret.id]
    assert store.lineage(middle.id, owner="bob").children == ()


def test_a_parent_that_never_came_along_is_told_of(store, stage):
    folder = stage("copy", parents=(Parent(role="dataset", id="art_" + "0" * 24, name="elsewhere"),))
    copy = store.register(folder, name="copy", owner="alice")
    (gone,) = store.lineage(copy.id).ancestors[1:]
    assert (gone.name, gone.kind) == ("elsewhere", None)


def test_a_long_lineage_says_that_it_is_cut(store, stage, monkeypatch):
    monkeypatch.setattr(module, "MAX_ARTIFACTS", 2)
    last = child_of(store, stage, "0")
    for name in "12":
        last = child_of(store, stage, name, last)
    found = store.lineage(last.id)
    assert (len(found.ancestors), found.complete) == (2, False)
    with pytest.raises(NotFound):
        store.lineage("art_none")
