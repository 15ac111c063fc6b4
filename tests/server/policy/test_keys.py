import pytest

from server.errors import NotAuthenticated, NotPermitted
from server.policy.keys import EVERY_SCOPE, OPERATOR, Key, KeyRing, Principal


def test_no_key_means_everybody_is_the_operator():
    ring = KeyRing.first(None)
    assert ring.open
    assert ring.authenticate(None, 0.0) == ring.authenticate("anything", 0.0) == OPERATOR
    assert OPERATOR.scopes == EVERY_SCOPE == {"infer", "steer", "unswitch", "train", "admin", "metrics"}


def test_the_first_key_has_every_scope_and_is_kept_as_a_hash():
    ring = KeyRing.first("secret")
    assert ring.authenticate("secret", 0.0) == OPERATOR
    assert "secret" not in repr(ring)


@pytest.mark.parametrize("secret", [None, "", "Secret", "secret ", "sécret", "\x00"])
def test_anything_else_is_refused(secret):
    with pytest.raises(NotAuthenticated, match="Authorization: Bearer"):
        KeyRing.first("secret").authenticate(secret, 0.0)


def test_keys_stand_for_their_principals():
    alice, bob = Principal("alice", frozenset({"infer"})), Principal("bob", frozenset({"train"}))
    ring = KeyRing((Key.of("a", alice), Key.of("b", bob)))
    assert (ring.authenticate("a", 0.0), ring.authenticate("b", 0.0)) == (alice, bob)


def test_an_empty_key_is_no_key():
    with pytest.raises(ValueError, match="must not be empty"):
        KeyRing.first("")


def test_a_missing_scope_is_named():
    alice = Principal("alice", frozenset({"infer"}))
    alice.require("infer")
    with pytest.raises(NotPermitted, match="'steer'"):
        alice.require("steer")


@pytest.mark.parametrize(
    ("scopes", "owner", "seen"),
    [(set(), "alice", True), (set(), "bob", False), (set(), None, True), ({"admin"}, "bob", True)],
)
def test_who_sees_what(scopes, owner, seen):
    assert Principal("alice", frozenset(scopes)).may_see(owner) is seen
