"""The ``openai`` client is the contract: what it sends is understood, what it gets it understands."""

from __future__ import annotations

import dataclasses

import openai
import pytest
from openai import OpenAI

from tests.server.api.conftest import ring

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def openai_client(client):
    return OpenAI(base_url="http://testserver/v1", api_key="none", http_client=client, max_retries=0)


def test_models(openai_client):
    assert [model.id for model in openai_client.models.list()] == ["fake"]
    assert openai_client.models.retrieve("fake").created == 1_600_000_000


def test_chat(openai_client):
    answer = openai_client.chat.completions.create(
        model="fake", messages=MESSAGES, max_completion_tokens=4, n=2, seed=1, stop=["c"], user="u", temperature=0
    )
    assert [choice.message.content for choice in answer.choices] == ["ab", "ab"]
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 4
    assert answer.system_fingerprint == "fp_0123456789"


def test_an_answer_can_be_sent_back(openai_client):
    first = openai_client.chat.completions.create(model="fake", messages=MESSAGES, max_tokens=2)
    messages = [*MESSAGES, first.choices[0].message, {"role": "user", "content": "More"}]
    again = openai_client.chat.completions.create(model="fake", messages=messages, max_tokens=2)
    assert again.choices[0].message.content == "ab"
    dumped = [*MESSAGES, first.choices[0].message.model_dump()]
    openai_client.chat.completions.create(model="fake", messages=dumped, max_tokens=2)


def test_chat_logprobs(openai_client):
    answer = openai_client.chat.completions.create(
        model="fake", messages=MESSAGES, max_tokens=2, logprobs=True, top_logprobs=2
    )
    (first, second) = answer.choices[0].logprobs.content
    assert (first.token, first.logprob, first.bytes) == ("a", -0.5, [97])
    assert [top.token for top in second.top_logprobs] == ["b", "c"]


def test_chat_stream(openai_client):
    stream = openai_client.chat.completions.create(
        model="fake", messages=MESSAGES, max_tokens=4, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "abcd"
    assert chunks[-1].usage.completion_tokens == 4
    assert chunks[-1].interlock == {"interventions": [], "profile": None, "policy": "default"}


def test_completions(openai_client):
    answer = openai_client.completions.create(model="fake", prompt=["x", "y"], max_tokens=2, logprobs=1, echo=True)
    assert [choice.text for choice in answer.choices] == ["xab", "yab"]
    assert answer.choices[0].logprobs.tokens == ["x", "a", "b"]
    assert answer.choices[0].logprobs.token_logprobs == [None, -0.5, -0.5]
    stream = openai_client.completions.create(model="fake", prompt=[120], max_tokens=3, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "abc"


def test_the_switch_goes_in_the_extra_body_or_a_header(openai_client):
    create = openai_client.chat.completions.create
    by_body = create(model="fake", messages=MESSAGES, max_tokens=2, extra_body={"safety_switch": "safe"})
    assert by_body.interlock["interventions"][0]["name"] == "safe"
    by_header = create(model="fake", messages=MESSAGES, max_tokens=2, extra_headers={"X-Safety-Switch": "other=0.5"})
    assert by_header.interlock["interventions"][0]["strength"] == 0.5


def test_errors_become_its_exceptions(openai_client, client, engine, connect):
    with pytest.raises(openai.BadRequestError) as wrong:
        openai_client.chat.completions.create(model="fake", messages=MESSAGES, extra_body={"safty_switch": True})
    assert wrong.value.param == "safty_switch"
    assert wrong.value.request_id.startswith("req_")
    with pytest.raises(openai.NotFoundError):
        openai_client.chat.completions.create(model="gpt", messages=MESSAGES)
    engine.hold, engine.limits = True, dataclasses.replace(engine.limits, max_batch=0, max_waiting=0)
    with pytest.raises(openai.RateLimitError):
        openai_client.chat.completions.create(model="fake", messages=MESSAGES)
    closed = connect(keys=ring(alice={"train"}))
    for key, error in (("nobody", openai.AuthenticationError), ("alice", openai.PermissionDeniedError)):
        with pytest.raises(error):
            OpenAI(base_url="http://testserver/v1", api_key=key, http_client=closed).models.list()
