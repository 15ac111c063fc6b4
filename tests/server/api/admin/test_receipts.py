from __future__ import annotations

import json
from hashlib import sha256

import pytest

from tests.server.api.conftest import CHAT, COMPLETION, bearer, ring
from tests.server.api.fakes import INFO

CHAT_PATH, COMPLETION_PATH = "/v1/chat/completions", "/v1/completions"


def streamed(client, path: str, body: dict) -> tuple[dict[int, str], dict]:
    texts: dict[int, str] = {}
    last: dict = {}
    with client.stream("POST", path, json=body | {"stream": True}) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                last = json.loads(line.removeprefix("data: "))
                for choice in last["choices"]:
                    piece = choice.get("text", choice.get("delta", {}).get("content")) or ""
                    texts[choice["index"]] = texts.get(choice["index"], "") + piece
    return texts, last


def whole(client, path: str, body: dict) -> tuple[dict[int, str], dict]:
    answer = client.post(path, json=body).json()
    texts = {c["index"]: c["text"] if "text" in c else c["message"]["content"] for c in answer["choices"]}
    return texts, answer


@pytest.mark.parametrize("how", [whole, streamed])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT_PATH, CHAT | {"n": 2, "safety_switch": "safe"}),
        (COMPLETION_PATH, COMPLETION | {"prompt": ["Onc", "Twö"], "n": 2, "safety_switch": "safe"}),
        (COMPLETION_PATH, COMPLETION | {"echo": True}),
        (COMPLETION_PATH, COMPLETION | {"echo": True, "logprobs": 0, "max_tokens": 0}),
    ],
)
def test_a_signed_receipt_is_bound_to_the_texts_that_were_sent(client, how, path, body):
    texts, answer = how(client, path, body | {"sign_receipt": True})
    signature = answer["interlock"]["signature"]
    receipt = json.loads(signature["payload"])
    assert receipt["answers"] == [
        {"choice": i, "text_sha256": sha256(text.encode()).hexdigest()} for i, text in sorted(texts.items())
    ]
    assert {**receipt, "signature": signature} == {
        **answer["interlock"],
        "answers": receipt["answers"],
        "id": answer["id"],
        "created": answer["created"],
        "model": "fake",
        "config_digest": INFO.config_digest,
    }
    checked = client.post("/v1/receipts/verify", json=signature).json()
    assert checked == {"object": "receipt.verification", "valid": True, "problem": None, "receipt": receipt}


def test_a_usage_chunk_carries_it_too(client):
    body = CHAT | {"sign_receipt": True, "stream_options": {"include_usage": True}}
    _, last = streamed(client, CHAT_PATH, body)
    assert client.post("/v1/receipts/verify", json=last["interlock"]["signature"]).json()["valid"]


@pytest.mark.parametrize("body", [{}, {"sign_receipt": False}, {"sign_receipt": None}])
def test_nothing_is_signed_unasked(client, body):
    assert "signature" not in client.post(CHAT_PATH, json=CHAT | body).json()["interlock"]


@pytest.mark.parametrize(
    "change",
    [
        {"payload": '{"interventions":[]}'},
        {"value": "0" * 64},
        {"value": "é"},
        {"key_id": "other"},
    ],
)
def test_what_was_changed_does_not_verify(client, change):
    signature = client.post(CHAT_PATH, json=CHAT | {"sign_receipt": True}).json()["interlock"]["signature"]
    checked = client.post("/v1/receipts/verify", json=signature | change).json()
    assert (checked["valid"], checked["receipt"]) == (False, None)
    assert checked["problem"]


@pytest.mark.parametrize("change", [{"algorithm": "none"}, {"payload": None}, {"value": 5}, {"kid": "x"}])
def test_what_is_no_signature_is_refused(client, change):
    signature = client.post(CHAT_PATH, json=CHAT | {"sign_receipt": True}).json()["interlock"]["signature"]
    assert client.post("/v1/receipts/verify", json=signature | change).status_code == 400


def test_a_signed_receipt_tells_profile_and_policy(connect):
    client = connect(keys=ring(root={"infer", "steer", "admin", "unswitch"}))
    root = bearer("root")
    client.put("/v1/profiles/calm", json={"safety_switch": "safe", "shared": True}, headers=root)
    body = {"document": {"default_profiles": {"fake": "calm"}}, "version": 0}
    client.put("/v1/policy", json=body, headers=root)
    answer = client.post(CHAT_PATH, json=CHAT | {"sign_receipt": True}, headers=root).json()
    receipt = json.loads(answer["interlock"]["signature"]["payload"])
    assert (receipt["profile"], receipt["policy"]) == ("calm", "v1")
