"""Names, lineage and collections over HTTP."""

from __future__ import annotations

from dataclasses import replace

from server.policy.policy import Policy
from tests.server.api.conftest import bearer, ring

KEYS = {"trainer": {"infer", "train"}, "other": {"infer", "train"}, "chief": {"infer", "train", "unswitch", "admin"}}


def upload(client, name: str, who: str | None = None, query: str = ""):
    headers = bearer(who) if who else {}
    body = f'{{"text":"{name}"}}\n'.encode()
    return client.post(f"/v1/artifacts?name={name}{query}", content=body, headers=headers)


def test_a_name_moves_from_one_artifact_to_another_and_back(client):
    one, two = (upload(client, name).json()["id"] for name in ("one", "two"))
    assert client.put(f"/v1/artifacts/{one}/names/live?expected=none").json()["name"] == "live"
    moved = client.put(f"/v1/artifacts/{two}/names/live?expected={one}")
    assert (moved.status_code, client.get("/v1/artifacts/live").json()["id"]) == (200, two)
    late = client.put(f"/v1/artifacts/{one}/names/live?expected={one}")
    assert (late.status_code, late.json()["error"]["code"]) == (409, "name_moved")
    assert upload(client, "live", query=f"&expected={one}").status_code == 409
    assert client.delete(f"/v1/artifacts/{one}/names/live").status_code == 404
    assert client.delete(f"/v1/artifacts/{two}/names/live").status_code == 204
    assert client.get("/v1/artifacts/live").status_code == 404
    actions = [entry["action"] for entry in client.get("/v1/audit").json()["data"]]
    assert (actions.count("artifact.named"), actions.count("artifact.unnamed")) == (2, 1)


def test_the_name_of_the_default_switch_moves_with_the_scope_only(connect):
    client = connect(policy=Policy(default_switch="safe"), keys=ring(**KEYS))
    made = upload(client, "data", "trainer").json()["id"]
    path = f"/v1/artifacts/{made}/names/safe"
    assert client.put(path, headers=bearer("trainer")).status_code == 403
    assert client.put(path, headers=bearer("chief")).status_code == 200
    assert client.delete(path, headers=bearer("trainer")).status_code == 403


def test_a_lineage_goes_down_to_the_model(client):
    made = upload(client, "data").json()["id"]
    answer = client.get("/v1/artifacts/data/lineage").json()
    assert (answer["object"], answer["id"], answer["complete"]) == ("artifact.lineage", made, True)
    (one,) = answer["artifacts"]
    assert (one["id"], one["kind"], one["parents"], answer["children"]) == (made, "dataset", [], [])


def test_a_collection_spares_what_is_loaded_and_the_default_switch(connect, make_services):
    services = make_services()
    client = connect(catalog=services.catalog, keys=ring(**KEYS))
    root, ids = bearer("chief"), {}
    for name in ("loaded", "default", "spare"):
        ids[name] = upload(client, name, "chief").json()["id"]
        assert client.delete(f"/v1/artifacts/{ids[name]}/names/{name}", headers=root).status_code == 204
    services.catalog.resident_ids = frozenset({ids["loaded"]})
    policies = client.app.state.services.policies
    policies.current = replace(policies.current, default_switch="default", switch_artifact=ids["default"])
    assert client.post("/v1/artifacts/gc", headers=bearer("trainer")).status_code == 403
    assert client.post("/v1/artifacts/gc?dry_run=true", headers=root).json()["removed"] == []  # all of them are young
    for query, dry in (("dry_run=true&", True), ("", False)):
        answer = client.post(f"/v1/artifacts/gc?{query}older_than_s=0", headers=root).json()
        assert (answer["dry_run"], [one["id"] for one in answer["removed"]]) == (dry, [ids["spare"]])
    left = {one["id"] for one in client.get("/v1/artifacts", headers=root).json()["data"]}
    assert left == {ids["loaded"], ids["default"]}
