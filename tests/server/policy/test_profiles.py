from __future__ import annotations

import pytest

from server.errors import Conflict, InvalidRequest, NotFound, NotPermitted
from server.policy import profiles
from server.policy.document import PolicyDocument
from server.policy.keys import OPERATOR, Principal
from server.policy.policies import PolicyStore
from server.policy.policy import Policy
from server.policy.profiles import Profile, ProfileStore
from tests.server.policy.conftest import ADMIN, actions

ALICE = Principal("alice", frozenset({"infer", "steer"}))
BOB = Principal("bob", frozenset({"infer", "steer"}))


@pytest.fixture
def store(database, audit, clock) -> ProfileStore:
    store = ProfileStore(database, audit, clock=clock)
    store.load()
    return store


def profile(name: str = "mine", owner: str = "alice", shared: bool = False, fits: bool = True, **artifacts: str):
    return Profile(name, owner, shared, {"safety_switch": "safe"}, artifacts or {"safe": "art_1"}, fits)


def test_a_profile_is_written_and_found_by_its_owner_only(store, audit):
    store.put(profile(), ALICE, ADMIN)
    assert store.get("mine", ALICE).artifacts == {"safe": "art_1"}
    assert store.get("mine", OPERATOR).owner == "alice"
    with pytest.raises(NotFound):
        store.get("mine", BOB)
    assert (store.visible(BOB), len(store.visible(ALICE))) == ([], 1)
    with pytest.raises(Conflict, match="in use"):
        store.put(profile(owner="bob"), BOB, ADMIN)
    with pytest.raises(NotFound):
        store.delete("mine", BOB, ADMIN)
    store.delete("mine", ALICE, ADMIN)
    assert store.find("mine") is None
    assert actions(audit) == ["profile.written", "profile.deleted"]


def test_a_shared_profile_is_used_by_all_and_changed_by_its_owner(store):
    store.put(profile(owner="operator", shared=True), OPERATOR, ADMIN)
    assert store.get("mine", BOB).shared
    with pytest.raises(Conflict):
        store.put(profile(owner="bob"), BOB, ADMIN)
    with pytest.raises(NotPermitted, match="admin"):
        store.delete("mine", BOB, ADMIN)


def test_an_admin_changes_a_profile_without_taking_it(store, clock):
    store.put(profile(), ALICE, ADMIN)
    clock.now += 5
    changed = store.put(profile(owner="operator", joy="art_2"), OPERATOR, ADMIN)
    assert (changed.owner, changed.created_at, changed.updated_at) == ("alice", 1000.0, 1005.0)
    assert store.bound_to("art_2") == ["mine"]
    assert store.bound_to("art_1") == []


def test_profiles_outlive_the_process(store, database, audit, clock):
    written = store.put(profile(), ALICE, ADMIN)
    again = ProfileStore(database, audit, clock=clock)
    again.load()
    assert again.find("mine") == written


def test_a_default_is_changed_with_both_scopes_and_never_deleted(store, database, audit, clock):
    store.put(profile(), ALICE, ADMIN)
    policies = PolicyStore(database, audit, Policy(), model="m", clock=clock)
    policies.replace(PolicyDocument(default_profiles={"m": "mine"}), 0, OPERATOR, ADMIN)
    for scopes in ({"steer"}, {"steer", "admin"}, {"steer", "unswitch"}):
        with pytest.raises(NotPermitted) as refused:
            store.put(profile(), Principal("alice", frozenset(scopes)), ADMIN)
        assert refused.value.code == "default_protected"
    with pytest.raises(InvalidRequest, match="every prompt"):
        store.put(profile(fits=False), OPERATOR, ADMIN)
    store.put(profile(joy="art_3"), OPERATOR, ADMIN)
    for by in (ALICE, OPERATOR):
        with pytest.raises(Conflict, match="default of model m"):
            store.delete("mine", by, ADMIN)
    policies.replace(PolicyDocument(), 1, OPERATOR, ADMIN)
    store.delete("mine", ALICE, ADMIN)


def test_there_is_an_end_to_profiles(store, monkeypatch):
    monkeypatch.setattr(profiles, "MAX_PROFILES", 1)
    store.put(profile(), ALICE, ADMIN)
    store.put(profile(), ALICE, ADMIN)
    with pytest.raises(Conflict, match="1 profiles"):
        store.put(profile("other"), ALICE, ADMIN)
