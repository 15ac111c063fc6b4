import json
from collections.abc import Callable

import httpx
import pytest

from mappers.measures.judge import Judge, JudgeError

URL = "http://judge.test/v1/chat/completions"


def completion(content: str) -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"message": {"content": content}}]})


def judge(handler: Callable[[httpx.Request], httpx.Response], slept: list[float] | None = None) -> Judge:
    client = httpx.Client(transport=httpx.MockTransport(handler))
    return Judge(client, URL, "grader", sleep=([] if slept is None else slept).append)


def test_a_digit_is_the_score_and_the_judge_is_asked_about_the_answer() -> None:
    asked: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return completion(" 4\n")

    assert judge(handler).score("What is 2 + 2?", "four") == 4
    body = json.loads(asked[0].content)
    assert (str(asked[0].url), body["model"], body["temperature"]) == (URL, "grader", 0)
    assert "What is 2 + 2?" in body["messages"][1]["content"]
    assert "four" in body["messages"][1]["content"]


def test_what_may_pass_is_tried_again_with_growing_pauses() -> None:
    replies = iter([httpx.Response(503), completion("I would say 4"), completion("5")])
    slept: list[float] = []

    assert judge(lambda _: next(replies), slept).score("q", "a") == 5
    assert slept == [1.0, 2.0]


@pytest.mark.parametrize("reply", ["6", "4.5", "45", "score: 3", "", "-1"])
def test_anything_but_one_digit_is_no_score(reply: str) -> None:
    asked: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return completion(reply)

    with pytest.raises(JudgeError, match="no score from 0 to 5 in 3 attempts"):
        judge(handler).score("q", "a")
    assert len(asked) == 3


def test_a_judge_that_cannot_be_reached_is_an_error_that_says_so() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(JudgeError, match="ConnectError: refused"):
        judge(handler).score("q", "a")


@pytest.mark.parametrize(
    ("response", "message"),
    [(httpx.Response(401), "HTTP status 401"), (httpx.Response(200, json={"ok": 1}), "not a chat completion")],
)
def test_what_will_not_pass_is_not_tried_again(response: httpx.Response, message: str) -> None:
    slept: list[float] = []

    with pytest.raises(JudgeError, match=message):
        judge(lambda _: response, slept).score("q", "a")
    assert slept == []
