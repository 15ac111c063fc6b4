"""Names move one writer at a time, and what was looked up once stays what it was."""

from __future__ import annotations

import threading

import pytest

from server.errors import Conflict, InvalidRequest, NotFound
from server.registry.artifact_rows import NO_ARTIFACT


@pytest.fixture
def two(store, stage):
    one = store.register(stage("one", b"1"), name="one", owner="alice")
    return one, store.register(stage("two", b"2"), name="two", owner="alice")


def test_a_name_moves_and_the_artifact_stays(store, two):
    one, other = two
    assert store.point("live", one.id, by="alice").name == "live"
    store.point("live", other.id, by="alice", expected=one.id)
    assert (store.get("live").id, store.get(one.id).id) == (other.id, one.id)
    assert store.names_of(other.id)[0] == {"two", "live"}


def test_who_saw_another_artifact_does_not_move_the_name(store, stage, two):
    one, other = two
    store.point("live", other.id, by="alice")
    for expected in (one.id, NO_ARTIFACT):
        with pytest.raises(Conflict, match="look again"):
            store.point("live", one.id, by="alice", expected=expected)
        with pytest.raises(Conflict, match="look again"):
            store.register(stage("one", b"1"), name="live", owner="alice", expected=expected)
    assert store.get("live").id == other.id
    assert store.point("new", one.id, by="alice", expected=NO_ARTIFACT).id == one.id


def test_of_two_writers_one_moves_the_name(store, two):
    outcomes: list[str] = []
    start = threading.Barrier(2)

    def move(to: str) -> None:
        start.wait()
        try:
            outcomes.append(store.point("live", to, by="alice", expected=NO_ARTIFACT).id)
        except Conflict:
            outcomes.append("refused")

    threads = [threading.Thread(target=move, args=(one.id,)) for one in two]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == sorted([store.get("live").id, "refused"])


def test_a_name_is_taken_only_from_what_it_leads_to(store, two):
    one, other = two
    for identity, name in ((other.id, "one"), (one.id, "none")):
        with pytest.raises(NotFound):
            store.unname(name, identity, by="alice")
    store.unname("one", one.id, by="alice")
    with pytest.raises(NotFound):
        store.get("one")
    assert store.get(one.id).id == one.id


def test_names_of_others_stay_theirs(store, two):
    one, other = two
    for change in (
        lambda **who: store.point("one", other.id, **who),
        lambda **who: store.unname("one", one.id, **who),
    ):
        with pytest.raises(Conflict):
            change(by="bob")
    store.point("one", other.id, by="root", everybody=True)
    with pytest.raises(Conflict):
        store.point("one", one.id, by="bob")
    store.point("one", one.id, by="alice")
    store.unname("one", one.id, by="root", everybody=True)


@pytest.mark.parametrize("name", ["", "../x", "art_" + "0" * 24])
def test_a_bad_name_is_refused(store, two, name):
    with pytest.raises(InvalidRequest):
        store.point(name, two[0].id, by="alice")


def test_only_stored_artifacts_get_names(store):
    with pytest.raises(NotFound):
        store.point("live", "art_" + "0" * 24, by="alice")
