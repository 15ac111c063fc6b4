"""The event loop never waits for a template or a tokenizer: a long prompt would stop every other answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.server.api.conftest import CHAT, COMPLETION
from tests.server.api.fakes import FakeCodec


class WatchedCodec(FakeCodec):
    """Notes for each prompt that is read whether a thread with an event loop reads it."""

    def __init__(self) -> None:
        self.on_the_loop: list[bool] = []

    def from_ids(self, ids: Any) -> Any:
        self._note()
        return super().from_ids(ids)

    def decode(self, ids: Any, *, skip_special_tokens: bool = True) -> str:
        self._note()
        return super().decode(ids, skip_special_tokens=skip_special_tokens)

    def _note(self) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self.on_the_loop.append(False)
        else:
            self.on_the_loop.append(True)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", COMPLETION),
        ("/v1/completions", COMPLETION | {"stream": True, "echo": True, "logprobs": 2}),
        ("/v1/completions", COMPLETION | {"prompt": [65, 66]}),
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", CHAT | {"stream": True}),
        ("/v1/compare", COMPLETION | {"settings": [{}, {"safety_switch": "safe"}]}),
        ("/tokenize", {"prompt": "Once"}),
        ("/tokenize", {"messages": CHAT["messages"]}),
        ("/detokenize", {"tokens": [65, 66]}),
    ],
)
def test_prompts_are_read_in_a_thread(connect, path, body):
    codec = WatchedCodec()
    assert connect(codec=codec).post(path, json=body).status_code == 200
    assert codec.on_the_loop
    assert not any(codec.on_the_loop)


def test_the_watch_sees_the_loop():
    async def read(codec: WatchedCodec) -> None:
        codec.decode([65])

    codec = WatchedCodec()
    asyncio.run(read(codec))
    assert codec.on_the_loop == [True]
