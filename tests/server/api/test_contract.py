"""The published API description held against the server: whatever it allows or forbids is answered as it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi import checks

from tests.server.api.conftest import LEAK, bearer, ring

EVERY = {"infer", "steer", "unswitch", "train", "admin", "metrics"}
CHECKS = [not_a_server_error, checks.content_type_conformance, checks.response_schema_conformance]
PROBES = {"GET /health/live", "GET /health/ready"}
"""They ask for nothing, so there is nothing to forbid."""
FEW = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)


def problems(operation: APIOperation[Any, Any], mode: GenerationMode) -> Iterator[str]:
    """What is wrong with the answers to a few requests; a status only the default response covers is not documented."""
    found: dict[str, None] = {}

    @FEW
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case: Case) -> None:
        response = case.call(headers=bearer("root"))
        if str(response.status_code) not in operation.definition.raw["responses"]:
            found[f"{operation.label}: {response.status_code} is not documented: {response.text[:300]}"] = None
        if response.status_code >= 400 and LEAK.search(response.text):
            found[f"{operation.label}: tells where it runs: {response.text[:300]}"] = None
        try:
            case.validate_response(response, checks=CHECKS, headers=bearer("root"))
        except (AssertionError, schemathesis.errors.SchemathesisError, BaseExceptionGroup) as failure:
            found[f"{operation.label}: {str(failure)[:1000]}"] = None

    ask()
    return iter(found)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_every_answer_is_one_that_is_documented(build: Callable[..., FastAPI], mode: GenerationMode) -> None:
    app = build(keys=ring(root=EVERY))
    schema = schemathesis.openapi.from_dict(app.openapi())
    schema.app = app
    operations = [found.ok() for found in schema.get_all_operations()]
    if mode is GenerationMode.NEGATIVE:
        operations = [operation for operation in operations if operation.label not in PROBES]
    assert len(operations) > 30
    found = [problem for operation in operations for problem in problems(operation, mode)]
    assert found == []
