from __future__ import annotations

import threading

import pytest
from sqlalchemy import text

from mappers.errors import InterlockError
from server.errors import Conflict, InvalidRequest, NotFound, NotPermitted
from server.policy.document import PolicyDocument
from server.policy.keys import OPERATOR, Principal
from server.policy.policies import PolicyStore
from server.policy.policy import Policy
from server.policy.profiles import Profile, ProfileStore
from tests.server.policy.conftest import ADMIN, actions

GUARDED = PolicyDocument(default_profiles={"m": "guarded"})


@pytest.fixture
def profiles(database, audit, clock) -> ProfileStore:
    store = ProfileStore(database, audit, clock=clock)
    for name, fits in (("guarded", True), ("narrow", False)):
        store.put(Profile(name, "operator", True, {}, {}, fits), OPERATOR, ADMIN)
    return store


@pytest.fixture
def store(database, audit, clock, profiles) -> PolicyStore:
    store = PolicyStore(database, audit, Policy(max_strength=7), model="m", clock=clock)
    store.load()
    return store


def test_a_policy_holds_from_the_next_request_on_and_after_a_restart(store, database, audit, clock):
    assert (store.get().version, store.current.name) == (0, "default")
    written = store.replace(GUARDED, 0, OPERATOR, ADMIN)
    assert (written.version, written.created_at, written.created_by) == (1, 1000.0, "operator")
    assert (store.current.document, store.current.name, store.current.max_strength) == (GUARDED, "v1", 7)
    again = PolicyStore(database, audit, Policy(), model="m", clock=clock)
    again.load()
    assert (again.current.document, again.current.version) == (GUARDED, 1)
    assert actions(audit)[-1] == "policy.changed"


def test_earlier_versions_stay_readable(store):
    store.replace(GUARDED, 0, OPERATOR, ADMIN)
    store.replace(PolicyDocument(inline_vectors=False), 1, OPERATOR, ADMIN)
    assert store.get().version == 2
    assert store.get(1).document == GUARDED
    assert store.get(0).document == PolicyDocument()
    with pytest.raises(NotFound):
        store.get(3)


@pytest.mark.parametrize("expected", [0, 2, 2**31])
def test_only_the_newest_version_is_replaced(store, expected):
    store.replace(GUARDED, 0, OPERATOR, ADMIN)
    with pytest.raises(Conflict, match="version 1 by now") as refused:
        store.replace(PolicyDocument(), expected, OPERATOR, ADMIN)
    assert refused.value.code == "version_conflict"
    assert store.current.document == GUARDED


def test_of_many_admins_at_once_one_wins(store):
    outcomes: list[object] = []

    def write() -> None:
        try:
            outcomes.append(store.replace(GUARDED, 0, OPERATOR, ADMIN).version)
        except Conflict as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, outcomes)) == ["1", *["version_conflict"] * 7]


def test_an_admin_who_may_not_lower_cannot_write_a_policy(store):
    with pytest.raises(NotPermitted, match="unswitch"):
        store.replace(GUARDED, 0, Principal("a", frozenset({"admin"})), ADMIN)


@pytest.mark.parametrize(("name", "error"), [("nothing", NotFound), ("narrow", InvalidRequest)])
def test_a_default_has_to_be_there_and_fit_every_prompt(store, name, error):
    with pytest.raises(error) as refused:
        store.replace(PolicyDocument(default_profiles={"m": name}), 0, OPERATOR, ADMIN)
    assert refused.value.param == "default_profiles.m"
    assert store.current.version == 0


def test_the_switch_of_the_start_and_a_default_profile_exclude_each_other(store, database, audit, clock):
    store.replace(GUARDED, 0, OPERATOR, ADMIN)
    with_switch = PolicyStore(database, audit, Policy(default_switch="safe"), model="m", clock=clock)
    with pytest.raises(Conflict, match="--switch safe"):
        with_switch.load()
    elsewhere = PolicyStore(database, audit, Policy(default_switch="safe"), model="n", clock=clock)
    elsewhere.load()
    with pytest.raises(Conflict):
        elsewhere.replace(PolicyDocument(default_profiles={"n": "guarded"}), 1, OPERATOR, ADMIN)


def test_a_policy_that_cannot_be_read_stops_the_start(store, database):
    store.replace(GUARDED, 0, OPERATOR, ADMIN)
    with database.write() as session:
        session.execute(text("""UPDATE policies SET document = '{"from": "the future"}'"""))
    with pytest.raises(InterlockError, match="version 1"):
        store.load()
