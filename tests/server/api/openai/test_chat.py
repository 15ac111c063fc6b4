import json

import pytest

from tests.server.api.conftest import CHAT

PATH = "/v1/chat/completions"


def chunks_of(text: str) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_an_answer_has_openais_shape_and_says_what_was_done(client, engine):
    response = client.post(PATH, json=CHAT)
    answer = response.json()
    assert response.status_code == 200
    assert answer["id"] == response.headers["x-request-id"]
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["created"] == 1_700_000_000
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "abcd", "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    prompt = len("<user>Hi |prod|<assistant>")
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 4,
        "total_tokens": prompt + 4,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert answer["interlock"] == {"interventions": [], "profile": None, "policy": "default"}
    assert engine.requests[answer["id"]].owner == "operator"


def test_all_that_fits_is_generated_without_max_tokens(client, engine):
    body = {key: value for key, value in CHAT.items() if key != "max_tokens"}
    answer = client.post(PATH, json=body).json()
    request = engine.requests[answer["id"]]
    assert request.sampling.max_tokens == engine.limits.context - len(request.prompt_ids)
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_content_parts_and_developer_messages_are_passed_to_the_template(client, engine):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    answer = client.post(PATH, json=CHAT | {"messages": messages}).json()
    text = "".join(map(chr, engine.requests[answer["id"]].prompt_ids))
    assert text == "<system>Be brief.<user>a\nb<assistant>"


def test_the_last_message_can_be_continued(client, engine):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}]
    answer = client.post(PATH, json=CHAT | {"messages": messages, "continue_final_message": True}).json()
    assert "".join(map(chr, engine.requests[answer["id"]].prompt_ids)).endswith("<assistant>Well")


def test_sampling_fields_reach_the_engine(client, engine):
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": -1,
        "frequency_penalty": 2,
        "logit_bias": {"5": -100, "6": 1.5},
        "seed": 2**63 - 1,
        "stop": ["x", "y"],
        "ignore_eos": True,
        "n": 2,
    }
    answer = client.post(PATH, json=CHAT | fields).json()
    first, second = engine.requests[answer["id"]].sampling, engine.requests[answer["id"] + "-1"].sampling
    assert (first.temperature, first.top_p, first.top_k, first.min_p) == (0.5, 0.9, 7, 0.1)
    assert (first.repetition_penalty, first.presence_penalty, first.frequency_penalty) == (1.1, -1, 2)
    assert first.logit_bias == {5: -100, 6: 1.5}
    assert (first.stop, first.ignore_eos) == (("x", "y"), True)
    assert (first.seed, second.seed) == (2**63 - 1, 0)


def test_null_means_the_default(client, engine):
    names = ("temperature", "top_p", "top_k", "min_p", "logit_bias", "seed", "stop", "n", "stream", "stream_options")
    answer = client.post(PATH, json=CHAT | dict.fromkeys(names)).json()
    sampling = engine.requests[answer["id"]].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (1.0, 1.0, 0, None)


def test_logprobs(client):
    answer = client.post(PATH, json=CHAT | {"logprobs": True, "top_logprobs": 2, "max_tokens": 1}).json()
    (entry,) = answer["choices"][0]["logprobs"]["content"]
    assert (entry["token"], entry["logprob"], entry["bytes"]) == ("a", -0.5, [97])
    assert [top["token"] for top in entry["top_logprobs"]] == ["a", "b"]
    without = client.post(PATH, json=CHAT | {"logprobs": True, "max_tokens": 1}).json()
    assert without["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_a_stream_begins_with_the_role_and_ends_with_reason_and_receipts(client):
    response = client.post(PATH, json=CHAT | {"stream": True, "safety_switch": "safe"})
    chunks = chunks_of(response.text)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert {chunk["id"] for chunk in chunks} == {response.headers["x-request-id"]}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "abcd"
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["interlock"]["interventions"][0]["name"] == "safe"
    assert all("interlock" not in chunk and "usage" not in chunk for chunk in chunks[:-1])


def test_a_stream_with_usage_ends_with_a_chunk_without_choices(client):
    body = CHAT | {"stream": True, "stream_options": {"include_usage": True}, "n": 2}
    chunks = chunks_of(client.post(PATH, json=body).text)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 8
    assert chunks[-1]["usage"]["prompt_tokens"] == len("<user>Hi |prod|<assistant>")
    assert "interlock" in chunks[-1]
    assert all(chunk["usage"] is None and "interlock" not in chunk for chunk in chunks[:-1])


def test_each_choice_has_its_receipts(client):
    body = CHAT | {"n": 2, "safety_switch": "safe", "steering": [{"vector": "joy", "strength": 2.0}]}
    receipts = client.post(PATH, json=body).json()["interlock"]["interventions"]
    assert [(r["choice"], r["kind"], r["name"], r["strength"]) for r in receipts] == [
        (0, "switch", "safe", 1.0),
        (0, "add", "joy", 2.0),
        (1, "switch", "safe", 1.0),
        (1, "add", "joy", 2.0),
    ]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": "gpt"}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, None),
        ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "messages[0].tool_calls"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_completion_tokens"),
        ({"max_tokens": 4000}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 9}, "n"),
        ({"n": True}, "n"),
        ({"n": 1.0}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"seed": -1}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": "x" * 129}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": 5}, "stop"),
        ({"logit_bias": {"1000": 1}}, "logit_bias.1000"),
        ({"logit_bias": {"x": 1}}, None),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{}]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {}}, "audio"),
        ({"store": True}, "store"),
        ({"metadata": {"a": "b"}}, "metadata"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"prediction": {}}, "prediction"),
        ({"best_of": 2}, "best_of"),
        ({"user": "x" * 257}, "user"),
        ({"max_token": 4}, "max_token"),
    ],
)
def test_a_wrong_field_is_named(client, engine, change, param):
    response = client.post(PATH, json=CHAT | change)
    error = response.json()["error"]
    assert response.status_code == (404 if "model" in change else 400)
    assert param is None or error["param"] == param
    assert error["message"]
    assert error["request_id"] == response.headers["x-request-id"]
    assert not engine.requests
    assert client.post(PATH, json=CHAT).status_code == 200


@pytest.mark.parametrize(
    "neutral",
    [
        {"tools": []},
        {"tools": None},
        {"tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"modalities": ["text"]},
        {"store": False},
        {"metadata": {}},
        {"service_tier": "auto"},
        {"parallel_tool_calls": True},
        {"best_of": 1},
        {"user": "somebody", "safety_identifier": "somebody"},
        {"messages": [{"role": "assistant", "content": "x", "refusal": None, "tool_calls": None, "annotations": []}]},
    ],
)
def test_values_without_effect_pass(client, neutral):
    assert client.post(PATH, json=CHAT | neutral).status_code == 200


def test_a_model_without_chat_template_says_so(connect, make_services):
    services = make_services()
    services.codec.has_chat_template = False
    response = connect(codec=services.codec).post(PATH, json=CHAT)
    assert response.status_code == 400
    assert "/v1/completions" in response.json()["error"]["message"]


def test_a_prompt_that_fills_the_context_is_refused(client):
    messages = [{"role": "user", "content": "x" * 3000}]
    error = client.post(PATH, json={"model": "fake", "messages": messages}).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
