from __future__ import annotations

import pytest

from server.engine.request import GenerationRequest
from server.policy.policy import Policy
from server.types import Apply, Positions, SamplingParams
from tests.server.api.conftest import bearer, ring

ID = "chatcmpl-0a"


@pytest.fixture
def running(engine):
    """Three choices of one request, and another request whose id begins alike."""
    engine.hold = True
    for row in (ID, f"{ID}-1", f"{ID}-2", f"{ID}b"):
        engine.submit(GenerationRequest(row, (1, 2, 3), SamplingParams(max_tokens=9), owner="operator"), lambda _: None)
    return engine


def test_running_generations_are_listed(client, running):
    listed = client.get("/v1/generations").json()["data"]
    assert [one["id"] for one in listed] == [ID, f"{ID}-1", f"{ID}-2", f"{ID}b"]
    assert listed[0] == {
        "id": ID,
        "object": "generation",
        "state": "decode",
        "prompt_tokens": 3,
        "completion_tokens": 0,
        "interventions": [],
    }


def test_a_change_reaches_all_choices_or_the_one_named(client, running):
    body = {"safety_switch": {"name": "safe", "strength": 0.5}, "steering": [{"vector": "joy"}]}
    answer = client.patch(f"/v1/generations/{ID}", json=body).json()
    assert answer == {
        "id": ID,
        "object": "generation.change",
        "generations": [ID, f"{ID}-1", f"{ID}-2"],
        "safety_switch": [{"name": "safe", "strength": 0.5}],
        "steering": [{"name": "joy", "strength": 1.0}],
    }
    assert [row for row, _ in running.updates] == [ID, f"{ID}-1", f"{ID}-2"]
    assert client.patch(f"/v1/generations/{ID}-1", json=body).json()["generations"] == [f"{ID}-1"]


def test_what_is_not_given_stays(client, running):
    client.patch(f"/v1/generations/{ID}b", json={"steering": []})
    client.patch(f"/v1/generations/{ID}b", json={"safety_switch": False})
    updates = [(update.switch, update.steering) for _, update in running.updates]
    assert updates == [(None, ()), ((), None)]


def test_positions_of_the_generated_text_can_be_set(client, running):
    item = {"vector": "joy", "apply": {"generation": {"window": [4, None]}}}
    client.patch(f"/v1/generations/{ID}b", json={"steering": [item]})
    (resolved,) = running.updates[0][1].steering
    assert resolved.spec.apply == Apply(generation=Positions("window", 4))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"safety_switch": None}, None),
        ({"steering": [{"vector": "joy", "apply": {"match": "x"}}]}, "steering[0].apply"),
        ({"steering": [{"vector": "joy", "apply": {"prompt": "last"}}]}, "steering[0].apply"),
        ({"safety_switch": True}, "safety_switch"),
        ({"temperature": 0}, "temperature"),
    ],
)
def test_a_wrong_field_is_named(client, running, body, param):
    response = client.patch(f"/v1/generations/{ID}", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert not running.updates


@pytest.mark.parametrize("generation", ["chatcmpl-0", "chatcmpl", "x", "cmpl-0a", f"{ID}-9", f"{ID}-1-1"])
def test_only_running_generations_can_be_changed(client, running, generation):
    response = client.patch(f"/v1/generations/{generation}", json={"safety_switch": False})
    assert response.status_code == 404
    assert not running.updates


def test_a_row_that_ends_meanwhile_is_passed_over(client, running):
    listed = running.generations()
    running.generations = lambda: listed
    running.running.pop(f"{ID}-1")
    answer = client.patch(f"/v1/generations/{ID}", json={"safety_switch": False})
    assert answer.json()["generations"] == [ID, f"{ID}-2"]
    running.running.clear()
    assert client.patch(f"/v1/generations/{ID}", json={"safety_switch": False}).status_code == 404


def test_the_policy_holds_for_running_generations(connect, running):
    keys = ring(operator={"infer"})
    client = connect(policy=Policy(default_switch="safe"), keys=keys)
    refused = client.patch(f"/v1/generations/{ID}", json={"safety_switch": False}, headers=bearer("operator"))
    assert refused.status_code == 403
    steered = client.patch(f"/v1/generations/{ID}", json={"steering": [{"vector": "joy"}]}, headers=bearer("operator"))
    assert steered.status_code == 403
    on = client.patch(f"/v1/generations/{ID}", json={"safety_switch": True}, headers=bearer("operator"))
    assert on.json()["safety_switch"] == [{"name": "safe", "strength": 1.0}]
