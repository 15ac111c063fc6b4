from __future__ import annotations

import json

PROFILE = {
    "object": "profile",
    "name": "guarded",
    "model": "m:guarded",
    "owner": "operator",
    "shared": True,
    "created_at": 1.0,
    "updated_at": 1.0,
}


def test_a_profile_is_written_from_a_switch_or_a_file(server, interlock, tmp_path):
    server.answer("PUT", "/v1/profiles/guarded", PROFILE)
    file = tmp_path / "profile.json"
    file.write_text('{"steering": [{"vector": "joy"}]}')
    assert interlock("profiles", "put", "guarded", "--switch", "safe", "--shared").code == 0
    assert interlock("profiles", "put", "guarded", "--file", str(file), "--json").json == PROFILE
    assert interlock("profiles", "put", "guarded").code == 0
    assert [json.loads(asked.body) for asked in server.asked] == [
        {"safety_switch": "safe", "shared": True},
        {"steering": [{"vector": "joy"}], "shared": False},
        {"shared": False},
    ]


def test_switch_and_file_exclude_each_other(interlock, tmp_path):
    file = tmp_path / "profile.json"
    file.write_text("{}")
    assert interlock("profiles", "put", "guarded", "--switch", "safe", "--file", str(file)).code == 2
    file.write_text("[]")
    assert interlock("profiles", "put", "guarded", "--file", str(file)).code == 2


def test_profiles_are_listed_shown_and_deleted(server, interlock):
    server.answer("GET", "/v1/profiles", {"object": "list", "data": [PROFILE]})
    server.answer("GET", "/v1/profiles/guarded", PROFILE)
    server.answer("DELETE", "/v1/profiles/guarded", b"", status=204)
    assert "m:guarded" in interlock("profiles", "list").out
    assert interlock("profiles", "list", "--json").json["data"] == [PROFILE]
    assert "m:guarded" in interlock("profiles", "show", "guarded").out
    assert interlock("profiles", "delete", "guarded").out == "deleted guarded\n"
    assert interlock("profiles", "delete", "guarded", "--json").json == {"deleted": "guarded"}
