"""Whatever JSON is sent: an answer or an error that is the client's, never the server's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.api.schemas.chat import ChatRequest
from server.api.schemas.compare import CompareRequest
from server.api.schemas.completions import CompletionRequest
from tests.server.api.conftest import CHAT, COMPLETION

COMPARE = COMPLETION | {"settings": [{}, {"safety_switch": "safe"}]}

JSON = {"Content-Type": "application/json"}
HARD = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**63,
        10**400,
        -0.0,
        1e-320,
        1e308,
        "",
        "a",
        "safe",
        "\x00",
        "\u2028",
        [],
        {},
        [[]],
        [{}],
    ]
)
SCALARS = HARD | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
INTERVENTION = st.fixed_dictionaries(
    {},
    optional={
        "name": SCALARS,
        "vector": SCALARS | st.fixed_dictionaries({"data": SCALARS, "sites": VALUES}),
        "strength": SCALARS,
        "operation": st.sampled_from(["add", "ablate", "clamp", 1]),
        "sites": VALUES,
        "apply": st.fixed_dictionaries(
            {},
            optional={
                "prompt": SCALARS | st.fixed_dictionaries({"window": st.lists(SCALARS, max_size=3)}),
                "generation": SCALARS | st.fixed_dictionaries({"positions": st.lists(SCALARS, max_size=3)}),
                "match": SCALARS,
            },
        ),
        "min": SCALARS,
        "max": SCALARS,
    },
)
SPECIAL = {"safety_switch": INTERVENTION | VALUES, "steering": st.lists(INTERVENTION, max_size=2) | VALUES}
SPECIAL["settings"] = st.lists(st.fixed_dictionaries({}, optional=dict(SPECIAL)) | VALUES, max_size=3)


def bodies(model: type) -> st.SearchStrategy[dict[str, Any]]:
    fields = {name: SPECIAL.get(name, VALUES) for name in model.model_fields} | {"unknown": VALUES}
    names = st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=3, unique=True)
    return names.flatmap(lambda chosen: st.fixed_dictionaries({name: fields[name] for name in chosen}))


@pytest.mark.parametrize(
    ("path", "base", "model"),
    [
        ("/v1/chat/completions", CHAT, ChatRequest),
        ("/v1/completions", COMPLETION, CompletionRequest),
        ("/v1/compare", COMPARE, CompareRequest),
    ],
)
def test_any_json_is_answered_or_refused(client, path, base, model):
    @settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(bodies(model))
    def ask(change: dict[str, Any]) -> None:
        response = client.post(path, content=json.dumps(base | change), headers=JSON)
        assert response.status_code in (200, 400, 404, 429), response.text
        if response.status_code != 200:
            error = response.json()["error"]
            assert error["message"]
            assert error["type"] != "server_error"

    ask()


def test_any_bytes_are_refused(client):
    @settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=64), st.integers(0, 80))
    def ask(noise: bytes, place: int) -> None:
        body = json.dumps(COMPLETION).encode()
        response = client.post("/v1/completions", content=body[:place] + noise + body[place:], headers=JSON)
        assert response.status_code in (200, 400, 404)

    ask()
