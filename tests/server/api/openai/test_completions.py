import pytest

from tests.server.api.conftest import COMPLETION
from tests.server.api.openai.test_chat import chunks_of

PATH = "/v1/completions"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", ["ab"]),
        (["ab", "cd"], ["ab", "cd"]),
        ([97, 98], ["ab"]),
        ([[97], [98, 99]], ["a", "bc"]),
    ],
)
def test_a_prompt_may_be_texts_or_token_ids(client, engine, prompt, expected):
    answer = client.post(PATH, json=COMPLETION | {"prompt": prompt, "echo": True}).json()
    assert [choice["text"] for choice in answer["choices"]] == [text + "abcd" for text in expected]
    assert ["".join(map(chr, request.prompt_ids)) for request in engine.requests.values()] == expected
    assert answer["usage"]["prompt_tokens"] == sum(map(len, expected))


def test_choices_of_several_prompts_are_numbered_prompt_by_prompt(client, engine):
    answer = client.post(PATH, json=COMPLETION | {"prompt": ["ab", "cd"], "n": 2, "seed": 5, "echo": True}).json()
    assert [(choice["index"], choice["text"][:2]) for choice in answer["choices"]] == [
        (0, "ab"),
        (1, "ab"),
        (2, "cd"),
        (3, "cd"),
    ]
    assert [request.sampling.seed for request in engine.requests.values()] == [5, 6, 5, 6]
    assert list(engine.requests) == [answer["id"], *(f"{answer['id']}-{i}" for i in (1, 2, 3))]
    assert answer["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 16,
        "total_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_sixteen_tokens_are_the_default(client):
    answer = client.post(PATH, json={"model": "fake", "prompt": "x"}).json()
    assert answer["usage"]["completion_tokens"] == 16


def test_logprobs_with_echo_begin_with_null(client):
    answer = client.post(PATH, json=COMPLETION | {"prompt": "xy", "echo": True, "logprobs": 2, "max_tokens": 1}).json()
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["x", "y", "a"],
        "token_logprobs": [None, -0.5, -0.5],
        "top_logprobs": [None, {"y": -0.5, "z": -1.5}, {"a": -0.5, "b": -1.5}],
        "text_offset": [0, 1, 2],
    }


def test_a_prompt_can_be_scored_without_generating(client):
    body = COMPLETION | {"prompt": "xy", "echo": True, "logprobs": 0, "max_tokens": 0}
    answer = client.post(PATH, json=body).json()
    assert answer["choices"][0]["text"] == "xy"
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [None, -0.5]
    assert answer["choices"][0]["finish_reason"] == "length"


def test_offsets_without_echo_count_from_the_generated_text(client):
    answer = client.post(PATH, json=COMPLETION | {"logprobs": 0, "max_tokens": 3}).json()
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["text_offset"] == [0, 1, 2]
    assert logprobs["top_logprobs"] == [{"a": -0.5}, {"b": -0.5}, {"c": -0.5}]


@pytest.mark.parametrize("logprobs", [None, 1])
def test_a_stream_adds_up_to_the_whole_answer(client, logprobs):
    body = COMPLETION | {"prompt": ["ab", "cd"], "echo": True, "logprobs": logprobs}
    whole = client.post(PATH, json=body).json()
    chunks = chunks_of(client.post(PATH, json=body | {"stream": True}).text)
    for choice in whole["choices"]:
        pieces = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        assert [piece["finish_reason"] for piece in pieces][-1] == choice["finish_reason"]
        if logprobs:
            offsets = [o for piece in pieces if piece["logprobs"] for o in piece["logprobs"]["text_offset"]]
            assert offsets == choice["logprobs"]["text_offset"]
    assert chunks[-1]["interlock"] == whole["interlock"]


def test_stop_ends_a_choice(client):
    choice = client.post(PATH, json=COMPLETION | {"stop": "c"}).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "stop")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a", 1]}, None),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": [5000]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"messages": []}, "messages"),
        ({"logit_bias": {"5": 1, "05": 2}}, "logit_bias.05"),
    ],
)
def test_a_wrong_field_is_named(client, engine, change, param):
    response = client.post(PATH, json=COMPLETION | change)
    assert response.status_code == 400
    assert param is None or response.json()["error"]["param"] == param
    assert not engine.requests


def test_null_is_the_default(client):
    response = client.post(PATH, json=COMPLETION | {"echo": None, "ignore_eos": None, "n": None, "stop": None})
    assert response.status_code == 200
    assert "Once" not in response.json()["choices"][0]["text"]


def test_all_rows_of_a_request_start_or_none(connect, engine):
    response = connect().post(PATH, json=COMPLETION | {"prompt": ["x"] * 8, "n": 3})
    assert response.status_code == 200
    engine.hold = True
    response = connect().post(PATH, json=COMPLETION | {"prompt": ["x"] * 8, "n": 3})
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert not engine.running
    assert len(engine.cancelled) == 16
