from __future__ import annotations

import json

POLICY = {"object": "policy", "version": 3, "created_at": 1.0, "created_by": "operator", "document": {"limits": {}}}


def test_what_is_shown_can_be_given_back(server, interlock, tmp_path):
    server.answer("GET", "/v1/policy", POLICY)
    server.answer("PUT", "/v1/policy", POLICY | {"version": 4})
    file = tmp_path / "policy.json"
    file.write_text(interlock("policy", "show").out)
    ran = interlock("policy", "put", str(file))
    assert (ran.code, ran.out) == (0, "the policy is at version 4\n")
    assert json.loads(server.asked[1].body) == {"version": 3, "document": {"limits": {}}}
    assert interlock("policy", "put", str(file), "--json").json["version"] == 4


def test_an_earlier_version_is_asked_for(server, interlock):
    server.answer("GET", "/v1/policy", POLICY)
    assert interlock("policy", "show", "--version", "2", "--json").json == POLICY
    assert server.asked[0].path == "/v1/policy?version=2"


def test_a_conflict_is_told(server, interlock, tmp_path):
    server.answer("PUT", "/v1/policy", {"error": {"message": "at version 5 by now"}}, status=409)
    file = tmp_path / "policy.json"
    file.write_text("{}")
    ran = interlock("policy", "put", str(file))
    assert (ran.code, "at version 5" in ran.err) == (1, True)
