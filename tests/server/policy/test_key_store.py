from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from server.errors import Conflict, InvalidRequest, NotAuthenticated, NotFound, NotPermitted
from server.policy import key_store
from server.policy.document import Limits
from server.policy.key_store import KeyStore, NewKey
from server.policy.keys import OPERATOR, KeyRing, Principal
from server.policy.profiles import Profile, ProfileStore
from tests.server.policy.conftest import ADMIN, actions, forbid_inserts

USER = NewKey("web", frozenset({"infer"}))


@pytest.fixture
def store(database, audit, clock) -> KeyStore:
    store = KeyStore(database, audit, KeyRing.first("first"), clock=clock)
    store.load()
    return store


def test_a_key_works_from_the_next_request_on_and_until_it_is_deleted(store, audit):
    key, secret = store.create(USER, OPERATOR, ADMIN)
    principal = store.authenticate(secret)
    assert (principal.owner, principal.key_id, principal.scopes) == (key.id, key.id, {"infer"})
    assert store.authenticate("first") == OPERATOR
    store.delete(key.id, ADMIN)
    with pytest.raises(NotAuthenticated):
        store.authenticate(secret)
    with pytest.raises(NotFound):
        store.delete(key.id, ADMIN)
    assert actions(audit) == ["key.created", "key.deleted"]


def test_a_secret_is_256_random_bits_and_is_kept_nowhere(store, audit, tmp_path):
    secrets = [store.create(USER, OPERATOR, ADMIN)[1] for _ in range(2)]
    assert secrets[0] != secrets[1]
    assert all(re.fullmatch("ilk_[0-9a-f]{64}", secret) for secret in secrets)
    stored = b"".join(file.read_bytes() for file in Path(tmp_path).iterdir())
    for secret in secrets:
        assert secret.encode() not in stored
        assert secret.removeprefix("ilk_").encode() not in stored
        assert secret not in repr(store.list()) + repr(store.authenticate(secret))


def test_keys_outlive_the_process(store, database, audit, clock):
    key, secret = store.create(replace(USER, limits=Limits(max_strength=2)), OPERATOR, ADMIN)
    again = KeyStore(database, audit, KeyRing.first(None), clock=clock)
    assert again.open
    again.load()
    assert not again.open, "a server that has issued keys asks for them"
    assert again.authenticate(secret) == key.principal
    with pytest.raises(NotAuthenticated):
        again.authenticate("first")
    again.delete(key.id, ADMIN)
    with pytest.raises(NotAuthenticated):
        again.authenticate(None)


def test_a_key_expires_by_the_clock(store, clock):
    _, secret = store.create(replace(USER, expires_at=clock.now + 10), OPERATOR, ADMIN)
    clock.now += 9.9
    store.authenticate(secret)
    clock.now += 0.1
    with pytest.raises(NotAuthenticated, match="expired") as refused:
        store.authenticate(secret)
    assert refused.value.code == "expired_api_key"


@pytest.mark.parametrize("age", [0, 1])
def test_a_key_cannot_be_born_expired(store, clock, age):
    with pytest.raises(InvalidRequest) as refused:
        store.create(replace(USER, expires_at=clock.now - age), OPERATOR, ADMIN)
    assert refused.value.param == "expires_at"


@pytest.mark.parametrize(
    ("new", "by", "code"),
    [
        (
            replace(USER, scopes=frozenset({"infer", "unswitch"})),
            Principal("a", frozenset({"admin", "infer"})),
            "scope_not_held",
        ),
        (USER, Principal("a", frozenset({"admin"})), "scope_not_held"),
        (USER, replace(OPERATOR, limits=Limits(max_strength=1)), "limited_key"),
        (USER, replace(OPERATOR, profile="guarded"), "limited_key"),
        (replace(USER, profile="p"), Principal("a", frozenset({"admin", "infer"})), "default_protected"),
    ],
)
def test_nobody_gives_more_than_they_have(store, audit, new, by, code):
    with pytest.raises(NotPermitted) as refused:
        store.create(new, by, ADMIN)
    assert refused.value.code == code
    assert store.list() == []
    assert actions(audit) == []


def test_a_profile_has_to_be_there_and_fit_every_prompt(store, database, audit, clock):
    with pytest.raises(NotFound):
        store.create(replace(USER, profile="guarded"), OPERATOR, ADMIN)
    profiles = ProfileStore(database, audit, clock=clock)
    for name, fits in (("guarded", True), ("narrow", False)):
        profiles.put(Profile(name, "operator", False, {}, {}, fits), OPERATOR, ADMIN)
    with pytest.raises(InvalidRequest, match="every prompt"):
        store.create(replace(USER, profile="narrow"), OPERATOR, ADMIN)
    _, secret = store.create(replace(USER, profile="guarded"), OPERATOR, ADMIN)
    assert store.authenticate(secret).profile == "guarded"
    with pytest.raises(Conflict, match="default of key key_"):
        profiles.delete("guarded", OPERATOR, ADMIN)


def test_an_owner_can_be_taken_over_by_a_new_key(store):
    old, _ = store.create(USER, OPERATOR, ADMIN)
    _, secret = store.create(replace(USER, owner=old.owner), OPERATOR, ADMIN)
    assert store.authenticate(secret).owner == old.owner


def test_an_open_server_issues_no_keys(database, audit, clock):
    store = KeyStore(database, audit, KeyRing.first(None), clock=clock)
    store.load()
    with pytest.raises(Conflict, match="INTERLOCK_API_KEY"):
        store.create(USER, OPERATOR, ADMIN)


def test_there_is_an_end_to_keys(store, monkeypatch):
    monkeypatch.setattr(key_store, "MAX_KEYS", 2)
    for _ in range(2):
        store.create(USER, OPERATOR, ADMIN)
    with pytest.raises(Conflict, match="2 keys"):
        store.create(USER, OPERATOR, ADMIN)


def test_the_last_use_is_noted_once_a_minute(store, clock):
    _, secret = store.create(USER, OPERATOR, ADMIN)
    principal = store.authenticate(secret)
    assert not store.is_due(OPERATOR)
    assert store.is_due(principal)
    store.note_use(principal)
    assert not store.is_due(principal)
    assert store.list()[0].last_used_at == clock.now
    clock.now += 60
    assert store.is_due(principal)


def test_a_key_is_not_issued_where_it_cannot_be_written_down(store, database):
    with database.write() as session:
        forbid_inserts(session, "audit", "full")
    with pytest.raises(Exception, match="full"):
        store.create(USER, OPERATOR, ADMIN)
    assert store.list() == []
