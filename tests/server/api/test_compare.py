"""``POST /v1/compare`` over fakes: the shape of the answer, and what is refused."""

import asyncio
import json

import pytest

from server.policy.policy import Policy
from server.types import Failed
from tests.server.api.conftest import bearer, ring
from tests.server.api.fakes import events_of

PATH = "/v1/compare"
BODY = {
    "model": "fake",
    "prompt": "Once",
    "max_tokens": 4,
    "settings": [{"name": "off"}, {"safety_switch": "safe"}, {"steering": [{"vector": "joy", "strength": 2}]}],
}


def test_settings_come_back_side_by_side(client, engine):
    response = client.post(PATH, json=BODY)
    answer = response.json()
    assert response.status_code == 200, answer
    assert answer["object"] == "comparison"
    assert answer["id"] == response.headers["x-request-id"]
    assert answer["settings"][0] == {
        "index": 0,
        "name": "off",
        "text": "abcd",
        "token_ids": [97, 98, 99, 100],
        "tokens": ["a", "b", "c", "d"],
        "finish_reason": "length",
        "first_diverging_token": None,
        "kl": None,
        "mean_kl": None,
        "max_kl": None,
    }
    assert [s["kl"] for s in answer["settings"][1:]] == [[1.0] * 4, [2.0] * 4]
    assert [(s["mean_kl"], s["max_kl"]) for s in answer["settings"][1:]] == [(1.0, 1.0), (2.0, 2.0)]
    assert answer["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 12,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    receipts = answer["interlock"]["interventions"]
    assert [(r["choice"], r["name"], r["strength"]) for r in receipts] == [(1, "safe", 1.0), (2, "joy", 2.0)]
    written, scored = list(engine.requests.values())[:3], list(engine.requests.values())[3:]
    assert [r.interventions for r in scored] == [r.interventions for r in written]
    assert {r.scored_ids for r in scored} == {(97, 98, 99, 100)}
    assert {r.sampling.max_tokens for r in scored} == {0}
    assert len(engine.requests) == 6, "rows that score have ids of their own"
    assert engine.running == {}


def test_a_chat(client, engine):
    body = {key: value for key, value in BODY.items() if key != "prompt"}
    answer = client.post(PATH, json=body | {"messages": [{"role": "user", "content": "Hi"}]}).json()
    assert answer["usage"]["prompt_tokens"] == len("<user>Hi<assistant>")
    assert client.post(PATH, json=body | {"prompt": [1, 2, 3]}).json()["usage"]["prompt_tokens"] == 3


def test_the_first_token_that_differs(client, engine):
    engine.hold = True
    texts = ["abcd", "abxd", "ab", "abcd", "abcde"]

    def submit(request, sink):
        for event in events_of(request, texts[len(engine.requests)]):
            sink(event)
        engine.requests[request.id] = request

    engine.submit = submit
    answer = client.post(PATH, json=BODY | {"max_tokens": 5, "settings": [{}] * 5, "divergence": False}).json()
    assert [s["first_diverging_token"] for s in answer["settings"]] == [None, 2, 2, None, 4]
    assert [s["finish_reason"] for s in answer["settings"]] == ["stop"] * 4 + ["length"]


def test_without_divergence_nothing_is_scored(client, engine):
    engine.together_at_most = 1
    answer = client.post(PATH, json=BODY | {"divergence": False}).json()
    assert [s["kl"] for s in answer["settings"]] == [None] * 3
    assert len(engine.requests) == 3


def test_an_empty_reference_has_nothing_to_score(client, engine):
    engine.texts = ""
    answer = client.post(PATH, json=BODY).json()
    assert [(s["kl"], s["mean_kl"], s["max_kl"]) for s in answer["settings"]] == [(None,) * 3] + [([], None, None)] * 2


def test_all_texts_are_drawn_with_the_same_numbers(client, engine):
    client.post(PATH, json=BODY | {"temperature": 1})
    client.post(PATH, json=BODY | {"temperature": 1})
    client.post(PATH, json=BODY | {"seed": 7})
    seeds = [r.sampling.seed for r in engine.requests.values() if not r.scored_ids]
    assert len(set(seeds[:3])) == len(set(seeds[3:6])) == 1
    assert seeds[0] != seeds[3]
    assert seeds[6:] == [7, 7, 7]


def test_greedy_unless_asked_otherwise(client, engine):
    client.post(PATH, json=BODY)
    assert {r.sampling.temperature for r in engine.requests.values() if not r.scored_ids} == {0.0}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"settings": [{}]}, "settings"),
        ({"settings": [{}] * 9}, "settings"),
        ({"settings": [{}, {"safety_switch": "nothing"}]}, "settings[1].safety_switch"),
        ({"settings": [{}, {"safety_switch": True}]}, "settings[1].safety_switch"),
        ({"settings": [{}, {"steering": [{"vector": "joy", "strength": 101}]}]}, "settings[1].steering[0].strength"),
        ({"settings": [{"steering": [{"vector": "none"}]}, {}]}, "settings[0].steering[0].vector"),
        (
            {"settings": [{}, {"steering": [{"vector": "joy", "apply": {"match": "xyz"}}]}]},
            "settings[1].steering[0].apply.match",
        ),
        ({"settings": [{}, {"temperature": 1}]}, "settings[1].temperature"),
        ({"stream": True}, "stream"),
        ({"n": 2}, "n"),
        ({"messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [1000]}, "prompt"),
        ({"prompt": [1] * 2049}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2048}, "max_tokens"),
        ({"logprobs": 1}, "logprobs"),
        ({"model": "other"}, "model"),
    ],
)
def test_what_is_wrong_is_named(client, engine, change, param):
    response = client.post(PATH, json=BODY | change)
    assert response.status_code in (400, 404)
    assert response.json()["error"]["param"] == param
    assert engine.requests == {}


@pytest.mark.parametrize("name", ["X-Safety-Switch", "X-Steering"])
def test_headers_do_not_say_which_setting_they_mean(client, name):
    response = client.post(PATH, json=BODY, headers={name: "safe"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, name)


def test_more_than_can_be_read_at_once_is_refused_before_anything_is_written(client, engine):
    engine.together_at_most = 2
    response = client.post(PATH, json=BODY)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "settings")
    assert engine.requests == {}


def test_scopes_are_those_of_each_setting(connect):
    policy = Policy(default_switch="safe")
    keys = ring(reader={"infer"}, steerer={"infer", "steer"}, trusted={"infer", "unswitch"}, admin={"admin"})
    client = connect(policy=policy, keys=keys)
    silent, off, steered = {}, {"safety_switch": False}, {"steering": [{"vector": "joy"}]}
    for owner, settings, status in (
        ("reader", [silent, silent], 200),
        ("reader", [silent, off], 403),
        ("reader", [silent, steered], 403),
        ("trusted", [silent, off], 200),
        ("trusted", [silent, steered], 403),
        ("steerer", [off, steered], 403),
    ):
        response = client.post(PATH, json=BODY | {"settings": settings}, headers=bearer(owner))
        assert response.status_code == status, (owner, settings, response.text)
    assert client.post(PATH, json=BODY).status_code == 401


@pytest.mark.parametrize("scoring", [False, True])
def test_a_row_that_fails_fails_the_comparison_and_the_others_are_stopped(connect, engine, scoring):
    client = connect()
    fail = Failed("non_finite", "the output is not finite")

    def submit(request, sink):
        if request.interventions:
            sink(fail)
        else:
            engine.running[request.id] = request

    def together(requests, sinks):
        engine.running |= {request.id: request for request in requests[:-1]}
        sinks[-1](fail)

    if scoring:
        engine.submit_together = together
    else:
        engine.submit = submit
    response = client.post(PATH, json=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "non_finite")
    assert engine.running == {}


@pytest.mark.parametrize("scoring", [False, True])
def test_a_client_that_hangs_up_stops_every_row(build, engine, scoring):
    engine.hold, engine.hold_scoring = not scoring, scoring
    app = build()

    async def hang_up() -> None:
        gone = asyncio.Event()
        body = [{"type": "http.request", "body": json.dumps(BODY).encode(), "more_body": False}]

        async def receive():
            if body:
                return body.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(_message):
            pass

        scope = {
            "type": "http",
            "method": "POST",
            "path": PATH,
            "raw_path": PATH.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"host", b"x")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "scheme": "http",
            "root_path": "",
            "http_version": "1.1",
            "asgi": {"version": "3.0"},
        }
        work = asyncio.create_task(app(scope, receive, send))
        while len(engine.running) < 3:
            await asyncio.sleep(0.01)
        gone.set()
        await work

    asyncio.run(asyncio.wait_for(hang_up(), 20))
    assert engine.running == {}
    assert len(engine.cancelled) == 3
