"""``interlock artifacts name|unname|lineage|gc`` against canned answers."""

from __future__ import annotations

from collections.abc import Callable

from tests.server.cli.conftest import Ran, StandIn

Interlock = Callable[..., Ran]

BINDING = {"model": "small", "config_digest": "c" * 64, "weight_digest": "d" * 64, "width": 8}
DATA = {"id": "art_3", "name": "prompts", "kind": "dataset", "models": [], "parents": []}
LINEAGE = {
    "object": "artifact.lineage",
    "id": "art_1",
    "artifacts": [
        {
            "id": "art_1",
            "name": "moved",
            "kind": "vector",
            "models": [{"role": "target", **BINDING}],
            "parents": [
                {"role": "vector", "id": "art_2", "name": "joy"},
                {"role": "dataset", "id": "art_3", "name": "prompts"},
            ],
        },
        {
            "id": "art_2",
            "name": "joy",
            "kind": None,
            "models": [],
            "parents": [{"role": "positive", "id": "art_3", "name": "prompts"}],
        },
        DATA,
    ],
    "children": [{"id": "art_9", "name": "later", "kind": "report", "models": [], "parents": []}],
    "complete": True,
}


def test_a_name_is_pointed_and_taken(interlock: Interlock, server: StandIn) -> None:
    server.answer("PUT", "/v1/artifacts/art_1/names/joy", {"id": "art_1", "kind": "vector"})
    server.answer("DELETE", "/v1/artifacts/art_1/names/joy", {})
    assert "joy: vector art_1" in interlock("artifacts", "name", "art_1", "joy", "--expected", "none").out
    assert interlock("artifacts", "unname", "art_1", "joy", "--json").json == {"unnamed": "joy"}
    assert [(asked.method, asked.path) for asked in server.asked] == [
        ("PUT", "/v1/artifacts/art_1/names/joy?expected=none"),
        ("DELETE", "/v1/artifacts/art_1/names/joy"),
    ]


def test_a_lineage_is_a_tree_with_each_branch_once(interlock: Interlock, server: StandIn) -> None:
    server.answer("GET", "/v1/artifacts/moved/lineage", LINEAGE)
    lines = interlock("artifacts", "lineage", "moved").out.splitlines()
    told = [line.lstrip("│├└─ ") for line in lines if line.strip()]
    assert told == [
        "vector moved art_1",
        "vector: gone, or not yours: joy art_2",
        "positive: dataset prompts art_3",
        "dataset: dataset prompts art_3 (see above)",
        "target model: small (weights dddddddddddd)",
        "used by report later art_9",
    ]
    assert interlock("artifacts", "lineage", "moved", "--json").json == LINEAGE


def test_a_collection_says_what_went(interlock: Interlock, server: StandIn) -> None:
    removed = [{"id": "art_1", "name": "old", "kind": "dataset", "size": 2000}]
    server.answer("POST", "/v1/artifacts/gc", {"object": "artifact.collection", "dry_run": True, "removed": removed})
    ran = interlock("artifacts", "gc", "--dry-run")
    assert "would remove 1 artifacts, 2.0 kB" in ran.out
    assert "art_1" in ran.out
    assert server.asked[0].path == "/v1/artifacts/gc?dry_run=true&older_than_s=3600.0"
    assert interlock("artifacts", "gc", "--older-than", "0", "--json").json["removed"] == removed
    assert server.asked[1].path == "/v1/artifacts/gc?older_than_s=0.0"
