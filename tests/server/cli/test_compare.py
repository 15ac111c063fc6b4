"""``interlock compare``: what it asks for, and how it shows what differs."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from server.cli.compare import sparkline
from tests.server.cli.conftest import Ran, StandIn


def setting(name: str, text: str, place: int | None, kl: list[float] | None) -> dict:
    return {
        "name": name,
        "text": text,
        "tokens": list(text),
        "finish_reason": "length",
        "first_diverging_token": place,
        "kl": kl,
        "mean_kl": sum(kl) / len(kl) if kl else None,
        "max_kl": max(kl) if kl else None,
    }


ANSWER = {"settings": [setting("off", "abc", None, None), setting("safe=0.5+joy", "axc", 1, [0.0, 2.0, 1.0])]}


@pytest.fixture(autouse=True)
def answers(server: StandIn) -> None:
    server.answer("GET", "/v1/models", {"data": [{"id": "small"}]})
    server.answer("POST", "/v1/compare", ANSWER)


def test_what_is_asked(interlock: Callable[..., Ran], server: StandIn) -> None:
    words = ["off", "on", "safe=0.5+joy", "+joy=-2+style"]
    assert interlock("compare", "Hi", *(part for word in words for part in ("--setting", word))).code == 0
    body = json.loads(server.asked[-1].body)
    assert (body["model"], body["messages"], body["max_tokens"]) == ("small", [{"role": "user", "content": "Hi"}], 64)
    assert body["settings"] == [
        {"name": "off", "safety_switch": False},
        {"name": "on", "safety_switch": True},
        {
            "name": "safe=0.5+joy",
            "safety_switch": {"name": "safe", "strength": 0.5},
            "steering": [{"vector": "joy", "strength": 1.0}],
        },
        {
            "name": "+joy=-2+style",
            "steering": [{"vector": "joy", "strength": -2.0}, {"vector": "style", "strength": 1.0}],
        },
    ]
    interlock("compare", "Hi", "--setting", "", "--setting", "off", "--raw", "--max-tokens", "3")
    body = json.loads(server.asked[-1].body)
    assert (body["prompt"], body["max_tokens"], body["settings"][0]) == ("Hi", 3, {"name": "default"})


def test_what_is_shown(interlock: Callable[..., Ran]) -> None:
    out = interlock("compare", "Hi", "--setting", "off", "--setting", "safe=0.5+joy").out
    for shown in ("off", "safe=0.5+joy", "abc", "a[x]c", "▁█▅"):
        assert shown in out
    assert interlock("compare", "Hi", "--setting", "off", "--setting", "on", "--json").json == ANSWER


def test_a_strength_that_is_no_number(interlock: Callable[..., Ran], server: StandIn) -> None:
    assert interlock("compare", "Hi", "--setting", "off", "--setting", "safe=much").code == 2
    assert [asked.path for asked in server.asked if asked.method == "POST"] == []


@pytest.mark.parametrize(
    ("values", "highest", "bars"),
    [
        ([], 1.0, ""),
        ([0.0, 0.0], 0.0, "▁▁"),
        ([0.0, 1.0], 1.0, "▁█"),
        ([0.0] * 79 + [1.0], 1.0, "▁" * 39 + "█"),
        ([0.5] * 81, 1.0, "▅" * 27),
    ],
)
def test_bars(values: list[float], highest: float, bars: str) -> None:
    assert sparkline(values, highest) == bars
