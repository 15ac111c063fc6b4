from __future__ import annotations

import json

import pytest

KEY = {
    "id": "key_1",
    "object": "api_key",
    "name": "web",
    "owner": "key_1",
    "scopes": ["infer", "steer"],
    "profile": None,
    "limits": {},
    "created_at": 1.0,
    "expires_at": 1_700_000_000.0,
    "last_used_at": None,
}


def test_a_secret_is_the_only_line_on_stdout(server, interlock, tmp_path):
    server.answer("POST", "/v1/keys", KEY | {"secret": "ilk_1"}, status=201)
    limits = tmp_path / "limits.json"
    limits.write_text('{"max_strength": 2}')
    ran = interlock(
        *("keys", "create", "web", "--scope", "infer", "--scope", "steer"),
        *("--expires", "90d", "--profile", "guarded", "--limits", str(limits), "--owner", "key_0"),
    )
    assert (ran.code, ran.out) == (0, "ilk_1\n")
    assert "key_1" in ran.err
    assert json.loads(server.asked[0].body) == {
        "name": "web",
        "scopes": ["infer", "steer"],
        "profile": "guarded",
        "owner": "key_0",
        "expires_in_s": 90 * 86400,
        "limits": {"max_strength": 2},
    }


@pytest.mark.parametrize("expires", ["90", "d", "-1d", "1w", "1.5h", "9999999999d"])
def test_a_wrong_time_is_refused(interlock, server, expires):
    ran = interlock("keys", "create", "web", "--scope", "infer", f"--expires={expires}")
    assert ran.code == 2
    assert not server.asked


def test_keys_are_listed_without_secrets(server, interlock):
    server.answer("GET", "/v1/keys", {"object": "list", "data": [KEY]})
    ran = interlock("keys", "list")
    assert all(word in ran.out for word in ("key_1", "infer, steer", "2023-11-14"))
    assert interlock("keys", "list", "--json").json["data"] == [KEY]


def test_a_key_is_deleted(server, interlock):
    server.answer("DELETE", "/v1/keys/key_1", b"", status=204)
    assert interlock("keys", "delete", "key_1", "--json").json == {"deleted": "key_1"}
    assert interlock("keys", "delete", "key_2").code == 1
