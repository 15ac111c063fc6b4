from __future__ import annotations

import base64
import struct

import pytest

from mappers.sites import Site
from server.policy.policy import Policy
from server.types import ALL, NONE, Apply, GateSpec, InlineVector, InterventionSpec, Positions
from tests.server.api.conftest import CHAT, COMPLETION, bearer, ring
from tests.server.api.fakes import WIDTH

VECTOR = base64.b64encode(struct.pack(f"<{WIDTH}f", *range(WIDTH))).decode()
INLINE = {"data": VECTOR, "sites": [{"layer": 2}]}


def specs(client, engine, body: dict, headers: dict | None = None) -> list[InterventionSpec]:
    response = client.post("/v1/completions", json=COMPLETION | body, headers=headers)
    assert response.status_code == 200, response.text
    return [resolved.spec for resolved in engine.requests[response.json()["id"]].interventions]


def error(client, body: dict, headers: dict | None = None, status: int = 400) -> dict:
    response = client.post("/v1/completions", json=COMPLETION | body, headers=headers)
    assert response.status_code == status, response.text
    return response.json()["error"]


def test_the_switch_comes_before_the_vectors_and_they_keep_their_order(client, engine):
    body = {
        "safety_switch": {"name": "safe", "strength": 0.5},
        "steering": [
            {"vector": "refusal", "strength": -2, "sites": [{"layer": 1}, {"layer": 2, "point": "resid_post"}]},
            {"vector": INLINE, "operation": "ablate"},
            {"vector": "joy", "operation": "clamp", "min": -1, "max": 2.5},
        ],
    }
    switch, first, second, third = specs(client, engine, body)
    assert (switch.operation, switch.source, switch.strength, switch.param) == ("switch", "safe", 0.5, "safety_switch")
    assert (first.operation, first.strength, first.sites) == ("add", -2, (Site(1), Site(2)))
    assert second.source == InlineVector(base64.b64decode(VECTOR), (Site(2),))
    assert (third.minimum, third.maximum, third.param) == (-1, 2.5, "steering[2]")


@pytest.mark.parametrize(
    ("apply", "expected"),
    [
        (None, Apply()),
        ({}, Apply()),
        ({"prompt": "last"}, Apply(Positions("last"), ALL)),
        ({"prompt": "none"}, Apply(NONE, ALL)),
        ({"generation": "none"}, Apply(ALL, NONE)),
        ({"prompt": {"window": [1, 3]}}, Apply(Positions("window", 1, 3), ALL)),
        ({"prompt": {"window": [2, None]}, "generation": "none"}, Apply(Positions("window", 2), NONE)),
        ({"prompt": {"positions": [-1, 0, 3]}}, Apply(Positions("listed", indices=(0, 3)), ALL)),
        ({"generation": {"window": [0, 16]}}, Apply(ALL, Positions("window", 0, 16))),
        ({"generation": {"positions": [0, 5]}}, Apply(ALL, Positions("listed", indices=(0, 5)))),
        ({"match": "nc"}, Apply(Positions("listed", indices=(1, 2)), NONE)),
        ({"match": "nc", "generation": "all"}, Apply(Positions("listed", indices=(1, 2)), ALL)),
        ({"match": "nc", "prompt": {"window": [2, 9]}}, Apply(Positions("listed", indices=(2,)), NONE)),
        ({"match": "ce", "prompt": "last"}, Apply(Positions("listed", indices=(3,)), NONE)),
    ],
)
def test_apply_becomes_positions(client, engine, apply, expected):
    body = {"vector": "joy"} if apply is None else {"vector": "joy", "apply": apply}
    (spec,) = specs(client, engine, {"prompt": "Once", "steering": [body]})
    assert spec.apply == expected


def test_match_is_found_in_the_rendered_chat(client, engine):
    body = CHAT | {"safety_switch": {"name": "safe", "apply": {"match": "|prod|"}}}
    answer = client.post("/v1/chat/completions", json=body).json()
    (resolved,) = engine.requests[answer["id"]].interventions
    start = len("<user>Hi ")
    assert resolved.spec.apply.prompt.indices == tuple(range(start, start + 6))


def test_positions_are_those_of_each_prompt(client, engine):
    body = COMPLETION | {"prompt": ["ax", "bbx"], "steering": [{"vector": "joy", "apply": {"match": "x"}}], "n": 2}
    client.post("/v1/completions", json=body)
    found = [request.interventions[0].spec.apply.prompt.indices for request in engine.requests.values()]
    assert found == [(1,), (1,), (2,), (2,)]


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"vector": "unknown"}, "steering[0].vector"),
        ({}, "steering[0].vector"),
        ({"vector": "../etc"}, "steering[0].vector"),
        ({"vector": [1.0, 2.0]}, "steering[0].vector"),
        ({"vector": "joy", "strength": 100.5}, "steering[0].strength"),
        ({"vector": "joy", "strength": "1"}, "steering[0].strength"),
        ({"vector": "joy", "strength": None}, "steering[0].strength"),
        ({"vector": "joy", "operation": "multiply"}, "steering[0].operation"),
        ({"vector": "joy", "min": 1}, "steering[0].min"),
        ({"vector": "joy", "operation": "clamp"}, "steering[0].min"),
        ({"vector": "joy", "operation": "clamp", "min": 2, "max": 1}, "steering[0].min"),
        ({"vector": "joy", "sites": []}, "steering[0].sites"),
        ({"vector": "joy", "sites": [{"layer": -1}]}, "steering[0].sites[0].layer"),
        ({"vector": "joy", "sites": [{"layer": 1, "point": "mlp"}]}, "steering[0].sites[0].point"),
        ({"vector": "joy", "sites": [3]}, "steering[0].sites[0]"),
        ({"vector": INLINE, "sites": [{"layer": 1}]}, "steering[0].sites"),
        ({"vector": {"data": VECTOR}}, "steering[0].vector.sites"),
        ({"vector": {"data": "@@@@", "sites": [{"layer": 1}]}}, "steering[0].vector.data"),
        ({"vector": {"data": VECTOR[:8], "sites": [{"layer": 1}]}}, "steering[0].vector.data"),
        ({"vector": "joy", "gate": {}}, "steering[0].gate.probe"),
        ({"vector": "joy", "gate": ""}, "steering[0].gate"),
        ({"vector": "joy", "gate": {"probe": "harmful", "threshold": 1e7}}, "steering[0].gate.threshold"),
        ({"vector": "joy", "gate": {"probe": "harmful", "hold": -1}}, "steering[0].gate.hold"),
        ({"vector": "joy", "gate": {"probe": "harmful", "hold": "long"}}, "steering[0].gate.hold"),
        ({"vector": "joy", "gate": {"probe": "harmful", "hold": 3, "release": 0}}, "steering[0].gate.release"),
        ({"vector": "joy", "gate": {"probe": "harmful", "threshold": 1, "release": 2}}, "steering[0].gate.release"),
        ({"vector": "unknown", "gate": "harmful"}, "steering[0].vector"),
        ({"vector": "joy", "apply": {"prompt": "some"}}, "steering[0].apply.prompt"),
        ({"vector": "joy", "apply": {"generation": "last"}}, "steering[0].apply.generation"),
        ({"vector": "joy", "apply": {"prompt": {"window": [3, 1]}}}, "steering[0].apply.prompt.window"),
        ({"vector": "joy", "apply": {"prompt": {"window": [4, 9]}}}, "steering[0].apply.prompt"),
        ({"vector": "joy", "apply": {"prompt": {"window": [0]}}}, "steering[0].apply.prompt.window[1]"),
        ({"vector": "joy", "apply": {"prompt": {"positions": [4]}}}, "steering[0].apply.prompt"),
        ({"vector": "joy", "apply": {"prompt": {"positions": [-5]}}}, "steering[0].apply.prompt"),
        ({"vector": "joy", "apply": {"generation": {"positions": [-1]}}}, "steering[0].apply.generation.positions[0]"),
        ({"vector": "joy", "apply": {"prompt": {}}}, "steering[0].apply.prompt"),
        ({"vector": "joy", "apply": {"match": "zzz"}}, "steering[0].apply.match"),
        ({"vector": "joy", "apply": {"match": ""}}, "steering[0].apply.match"),
        ({"vector": "joy", "apply": {"match": "O", "prompt": "last"}}, "steering[0].apply.match"),
        ({"vector": "joy", "apply": {"prompt": "none", "generation": "none"}}, "steering[0].apply"),
    ],
)
def test_a_wrong_field_is_named_before_any_token(client, engine, item, param):
    status = 404 if item.get("vector") == "unknown" else 400
    assert error(client, {"steering": [item]}, status=status)["param"] == param
    assert not engine.requests


def test_a_gate_is_a_name_or_has_settings(client, engine):
    body = {
        "safety_switch": {"name": "safe", "gate": "harmful"},
        "steering": [
            {"vector": "joy", "gate": {"probe": "spam", "threshold": 1.5, "release": -1}},
            {"vector": INLINE, "gate": {"probe": "spam", "hold": "forever"}},
            {"vector": "joy", "gate": {"probe": "harmful", "hold": 0}},
            {"vector": "joy", "gate": None},
        ],
    }
    assert [one.gate for one in specs(client, engine, body)] == [
        GateSpec("harmful"),
        GateSpec("spam", 1.5, -1.0),
        GateSpec("spam", hold="forever"),
        GateSpec("harmful", hold=0),
        None,
    ]


def test_vectors_are_counted(client):
    assert error(client, {"steering": [{"vector": "joy"}] * 9})["param"] == "steering"


@pytest.mark.parametrize(
    ("body", "param", "status"),
    [
        ({"safety_switch": "unknown"}, "safety_switch", 404),
        ({"safety_switch": True}, "safety_switch", 400),
        ({"safety_switch": {}}, "safety_switch", 400),
        ({"safety_switch": 1}, "safety_switch", 400),
        ({"safety_switch": ["safe"]}, "safety_switch", 400),
        ({"safety_switch": {"name": "safe", "gate": {"probe": "p"}}}, "safety_switch.gate", 404),
        ({"safety_switch": {"name": "safe", "gate": 3}}, "safety_switch.gate", 400),
        ({"safety_switch": {"name": "safe", "strength": 101}}, "safety_switch.strength", 400),
        ({"safety_switch": {"name": "safe", "power": 1}}, "safety_switch.power", 400),
        ({"safety_switch": {"name": "safe", "apply": {"match": "zz"}}}, "safety_switch.apply.match", 400),
    ],
)
def test_a_wrong_switch_is_named(client, engine, body, param, status):
    assert error(client, body, status=status)["param"] == param
    assert not engine.requests


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("safe", [("safe", 1.0)]),
        ("other=0.25", [("other", 0.25)]),
        ("off", []),
        ("OFF", []),
    ],
)
def test_the_switch_may_come_in_a_header(client, engine, header, expected):
    found = specs(client, engine, {}, {"X-Safety-Switch": header})
    assert [(spec.source, spec.strength) for spec in found] == expected


def test_vectors_may_come_in_a_header(client, engine):
    found = specs(client, engine, {}, {"X-Steering": "joy=2, refusal"})
    assert [(spec.source, spec.strength, spec.param) for spec in found] == [
        ("joy", 2.0, "X-Steering[0]"),
        ("refusal", 1.0, "X-Steering[1]"),
    ]


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Safety-Switch": ""},
        {"X-Safety-Switch": "safe="},
        {"X-Safety-Switch": "safe=nan"},
        {"X-Safety-Switch": "safe=inf"},
        {"X-Safety-Switch": "safe=1000"},
        {"X-Safety-Switch": "safe=1_0"},
        {"X-Safety-Switch": "safe= 1"},
        {"X-Safety-Switch": "a b"},
        {"X-Steering": ""},
        {"X-Steering": "joy=x"},
        {"X-Steering": ",".join(["joy"] * 9)},
    ],
)
def test_a_wrong_header_is_named(client, engine, headers):
    assert error(client, {}, headers)["param"] == next(iter(headers))
    assert not engine.requests


def test_a_header_may_repeat_the_body_but_not_contradict_it(client, engine):
    assert len(specs(client, engine, {"safety_switch": "safe"}, {"X-Safety-Switch": "safe"})) == 1
    assert error(client, {"safety_switch": "safe"}, {"X-Safety-Switch": "off"})["param"] == "X-Safety-Switch"
    assert error(client, {"steering": []}, {"X-Steering": "joy"})["param"] == "X-Steering"


def test_the_default_switch_is_applied_unless_a_key_may_lower_it(connect, engine):
    keys = ring(user={"infer"}, chief={"infer", "unswitch"})
    client = connect(policy=Policy(default_switch="safe"), keys=keys)
    for body in ({}, {"safety_switch": True}, {"safety_switch": "safe"}, {"safety_switch": {"strength": 1.5}}):
        (spec,) = specs(client, engine, body, bearer("user"))
        assert spec.source == "safe"
    for body in (
        {"safety_switch": False},
        {"safety_switch": {"strength": 0.5}},
        {"safety_switch": {"apply": {"generation": "none"}}},
    ):
        refused = error(client, body, bearer("user"), 403)
        assert (refused["code"], refused["param"]) == ("default_protected", "safety_switch")
        assert "unswitch" in refused["message"]
        specs(client, engine, body, bearer("chief"))
    assert error(client, {}, bearer("user") | {"X-Safety-Switch": "off"}, 403)["type"] == "permission_error"


def test_the_policys_bound_on_strength(connect):
    client = connect(policy=Policy(max_strength=2.0))
    assert error(client, {"steering": [{"vector": "joy", "strength": -2.5}]})["param"] == "steering[0].strength"
    assert error(client, {"safety_switch": {"name": "safe", "strength": 2.5}})["param"] == "safety_switch.strength"


def test_artifacts_are_looked_up_off_the_event_loop(connect, make_services):
    services = make_services()
    client = connect(catalog=services.catalog)
    client.post("/v1/completions", json=COMPLETION | {"safety_switch": "safe"})
    assert "AnyIO worker thread" in services.catalog.thread.name


@pytest.mark.parametrize("name", ["X-Safety-Switch", "X-Steering"])
def test_a_header_sent_twice_is_refused(client, name):
    headers = [(name, "safe"), (name, "other")]
    response = client.post("/v1/completions", json=COMPLETION, headers=headers)
    assert (response.status_code, response.json()["error"]["param"]) == (400, name)


@pytest.mark.parametrize("inline", [True, False])
def test_a_site_named_twice_is_refused(client, inline):
    sites = [{"layer": 1}, {"layer": 2}, {"layer": 1}]
    item = {"vector": {"data": "AAAA", "sites": sites}} if inline else {"vector": "joy", "sites": sites}
    found = error(client, {"steering": [item]}, {})
    assert found["param"] == ("steering[0].vector.sites" if inline else "steering[0].sites")
    assert "twice" in found["message"]
