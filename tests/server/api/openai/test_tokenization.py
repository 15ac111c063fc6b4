import pytest


def test_text_to_tokens_and_back(client):
    answer = client.post("/tokenize", json={"prompt": "abc", "return_token_strs": True}).json()
    assert answer == {"count": 3, "max_model_len": 2048, "tokens": [97, 98, 99], "token_strs": ["a", "b", "c"]}
    assert client.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": "abc"}


def test_messages_are_rendered(client):
    answer = client.post("/tokenize", json={"model": "fake", "messages": [{"role": "user", "content": "x"}]}).json()
    assert answer["count"] == len("<user>x<assistant>")
    assert "token_strs" not in answer


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "x"}]}, 400, "prompt"),
        ("/tokenize", {"prompt": 5}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/detokenize", {"tokens": []}, 400, "tokens"),
        ("/detokenize", {"tokens": [1, 1000]}, 400, "tokens[1]"),
        ("/detokenize", {"tokens": [2**63]}, 400, "tokens[0]"),
    ],
)
def test_a_wrong_field_is_named(client, path, body, status, param):
    response = client.post(path, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)
