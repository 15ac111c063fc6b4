"""No number, list or string without a bound in any request model: found through the published API description."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from server.api.admin.keys import KeyIn
from server.api.admin.policy import PolicyIn
from server.api.admin.profiles import ProfileIn
from server.api.admin.receipts import SignatureIn
from server.api.schemas.bounds import StrictModel
from server.api.schemas.chat import ChatRequest
from server.api.schemas.compare import CompareRequest
from server.api.schemas.completions import CompletionRequest, DetokenizeRequest, TokenizeRequest
from server.api.schemas.interventions import GenerationPatch
from server.jobs.specs import JobSpec
from server.jobs.specs.fields import Frozen

MODELS = [
    *(ChatRequest, CompletionRequest, CompareRequest, TokenizeRequest, DetokenizeRequest, GenerationPatch),
    *(SignatureIn, ProfileIn, PolicyIn, KeyIn),
    JobSpec,
]


def unbounded(schema: dict[str, Any], path: str) -> Iterator[str]:
    if {"enum", "const", "$ref"} & schema.keys():
        return
    match schema.get("type"):
        case "integer" | "number":
            if not (
                {"maximum", "exclusiveMaximum"} & schema.keys() and {"minimum", "exclusiveMinimum"} & schema.keys()
            ):
                yield f"{path}: number"
        case "string":
            if "maxLength" not in schema:
                yield f"{path}: string"
        case "array":
            if "maxItems" not in schema:
                yield f"{path}: array"
        case "object":
            yield from unbounded_object(schema, path)
        case "boolean" | "null":
            pass
        case None if not {"anyOf", "oneOf"} & schema.keys():
            yield f"{path}: anything"
    for key in ("anyOf", "oneOf", "prefixItems"):
        for i, part in enumerate(schema.get(key, ())):
            yield from unbounded(part, f"{path}/{key}{i}")
    if isinstance(schema.get("items"), dict):
        yield from unbounded(schema["items"], f"{path}[]")


def unbounded_object(schema: dict[str, Any], path: str) -> Iterator[str]:
    patterns = schema.get("patternProperties", {})
    extra = schema.get("additionalProperties", not patterns)
    if extra is True:
        yield f"{path}: open object"
    if isinstance(extra, dict):
        yield from unbounded(extra, f"{path}.*")
        yield from unbounded({"type": "string"} | schema.get("propertyNames", {}), f"{path} keys")
    if (patterns or isinstance(extra, dict)) and "maxProperties" not in schema:
        yield f"{path}: mapping"
    for name, part in (patterns | schema.get("properties", {})).items():
        yield from unbounded(part, f"{path}.{name}")


@pytest.mark.parametrize("model", MODELS, ids=lambda model: getattr(model, "__name__", "JobSpec"))
def test_everything_in_a_request_is_bounded(model):
    schema = TypeAdapter(model).json_schema()
    parts = {"": schema} | schema.get("$defs", {})
    assert [found for name, part in parts.items() for found in unbounded(part, name)] == []


def test_every_request_body_of_the_api_is_walked(client):
    paths = client.get("/openapi.json").json()["paths"]
    bodies = {
        content["schema"]["$ref"].rpartition("/")[2]
        for path in paths.values()
        for operation in path.values()
        for content in operation.get("requestBody", {}).get("content", {}).values()
        if "$ref" in content["schema"]
    }
    assert bodies == {model.__name__ for model in MODELS[:-1]}


def test_every_parameter_of_a_path_query_or_header_is_bounded(client):
    paths = client.get("/openapi.json").json()["paths"]
    parameters = [
        (f"{method} {path} {parameter['name']}", parameter["schema"])
        for path, methods in paths.items()
        for method, operation in methods.items()
        for parameter in operation.get("parameters", ())
    ]
    assert len(parameters) > 15
    assert [found for place, schema in parameters for found in unbounded(schema, place)] == []


def family(cls: type[BaseModel]) -> list[type[BaseModel]]:
    return [cls, *(member for child in cls.__subclasses__() for member in family(child))]


def numbers() -> Iterator[tuple[type[BaseModel], str, dict[str, Any]]]:
    asked = [model for model in family(Frozen) if model.__module__.startswith("server.jobs.specs")]
    for model in dict.fromkeys(family(StrictModel) + asked):
        for name, schema in model.model_json_schema().get("properties", {}).items():
            for part in schema.get("anyOf", [schema]):
                if part.get("type") in ("integer", "number"):
                    yield model, name, part


def refused(model: type[BaseModel], field: str, value: object) -> bool:
    """Whether ``value`` is wrong by itself; other fields may be missing or not go with it."""
    try:
        model.model_validate({field: value})
    except ValidationError as error:
        return any(one["loc"][:1] == (field,) and one["type"] != "misused_field" for one in error.errors())
    return False


def test_every_number_is_taken_at_its_limits_and_refused_beyond():
    wrong = []
    for model, field, schema in numbers():
        step = 1 if schema["type"] == "integer" else 1e-9
        low, high = schema.get("minimum"), schema.get("maximum")
        beyond = [math.nan, math.inf, -math.inf, 2.0**63 * 2, 10**400, -(10**400), [], {}]
        open_ends = [schema[end] for end in ("exclusiveMinimum", "exclusiveMaximum") if end in schema]
        beyond += open_ends
        beyond += [] if low is None else [low - step * max(1, abs(low))]
        beyond += [] if high is None else [high + step * max(1, abs(high))]
        within = [limit for limit in (low, high) if limit is not None and limit not in open_ends]
        wrong += [(model.__name__, field, value, "taken") for value in beyond if not refused(model, field, value)]
        wrong += [(model.__name__, field, value, "refused") for value in within if refused(model, field, value)]
    assert wrong == []
    assert len(list(numbers())) > 60


@pytest.mark.parametrize(
    ("schema", "found"),
    [
        ({"type": "integer", "maximum": 5}, ["x: number"]),
        ({"type": "string"}, ["x: string"]),
        ({"type": "array", "items": {"type": "string", "maxLength": 1}}, ["x: array"]),
        ({"type": "object"}, ["x: open object"]),
        ({"type": "object", "patternProperties": {"^a$": {"const": 1}}}, ["x: mapping"]),
        ({}, ["x: anything"]),
        ({"anyOf": [{"type": "null"}, {"type": "number"}]}, ["x/anyOf1: number"]),
    ],
)
def test_the_walk_finds_what_is_unbounded(schema, found):
    assert list(unbounded(schema, "x")) == found
