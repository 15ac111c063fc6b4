from __future__ import annotations

import json
from hashlib import sha256

import pytest

DONE = {"interventions": [{"name": "safe", "strength": 1.0}], "profile": None, "policy": "v1"}
SIGNATURE = {"algorithm": "HMAC-SHA256", "key_id": "k", "payload": "{}", "value": "v"}
RECEIPT = {**DONE, "id": "x", "answers": [{"choice": 0, "text_sha256": sha256("Grüße".encode()).hexdigest()}]}
VALID = {"object": "receipt.verification", "valid": True, "problem": None, "receipt": RECEIPT}


def whole(text: str = "Grüße", **interlock) -> str:
    choice = {"index": 0, "message": {"content": text}}
    return json.dumps({"choices": [choice], "interlock": {**DONE, "signature": SIGNATURE, **interlock}}, indent=1)


def streamed(*pieces: str) -> str:
    chunks = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
    chunks.append({"choices": [{"index": 0, "delta": {}}], "interlock": {**DONE, "signature": SIGNATURE}})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def completion(text: str) -> str:
    choice = {"index": 0, "text": text}
    return json.dumps({"choices": [choice], "interlock": {**DONE, "signature": SIGNATURE}})


@pytest.fixture
def verify(server, interlock, tmp_path):
    def run(content: str, *options: str, answer: dict = VALID):
        file = tmp_path / "answer"
        file.write_text(content, encoding="utf-8")
        server.answer("POST", "/v1/receipts/verify", answer)
        return interlock("receipts", "verify", str(file), *options)

    return run


@pytest.mark.parametrize("content", [whole(), streamed("Gr", "üße"), completion("Grüße")])
def test_an_answer_is_verified_with_its_text(verify, server, content):
    ran = verify(content, "--json")
    assert (ran.code, ran.json) == (0, VALID)
    assert json.loads(server.asked[0].body) == SIGNATURE
    assert "safe" in verify(content).out


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (whole("Grüsse"), "text is not the one"),
        (streamed("Gr"), "text is not the one"),
        (whole(interventions=[]), "what it says was done"),
        (whole(policy="default"), "what it says was done"),
    ],
)
def test_what_was_changed_afterwards_is_found(verify, content, problem):
    ran = verify(content, "--json")
    assert (ran.code, ran.json["valid"]) == (1, False)
    assert problem in ran.json["problem"]


def test_what_the_server_did_not_sign_does_not_verify(verify):
    ran = verify(whole(), answer=VALID | {"valid": False, "problem": "do not belong together", "receipt": None})
    assert (ran.code, "do not belong together" in ran.err) == (1, True)


@pytest.mark.parametrize(
    "content",
    ["", "[]", '"x"', "data: x", '{"choices": 5}', '{"choices": [{}]}', '{"interlock": {}}', '{"interlock": 5}'],
)
def test_other_files_are_told_apart(verify, server, content):
    assert verify(content).code == 1
    assert not server.asked
