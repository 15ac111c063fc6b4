from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from server.policy.document import Limits, PolicyDocument, StrengthRange, named

BIG = 2**63


@pytest.mark.parametrize(
    "value",
    [
        {"unknown": 1},
        {"inline_vectors": 1},
        {"default_profiles": {"m": "no/name"}},
        {"default_profiles": {"": "guarded"}},
        {"default_profiles": {f"m{i}": None for i in range(65)}},
        {"switches": {"allowed": "safe"}},
        {"switches": {"denied": ["a"] * 257}},
        {"vectors": {"allowed": ["../etc"]}},
        {"limits": {"max_strength": -1}},
        {"limits": {"max_strength": 1000.5}},
        {"limits": {"max_strength": "1"}},
        {"limits": {"max_strength": BIG}},
        {"limits": {"max_strength": float("nan")}},
        {"limits": {"strengths": {"safe": {}}}},
        {"limits": {"strengths": {"safe": {"min": 2, "max": 1}}}},
        {"limits": {"strengths": {"safe": {"min": float("inf")}}}},
        {"limits": {"strengths": {f"n{i}": {"min": 0} for i in range(257)}}},
    ],
)
def test_what_is_no_policy_is_refused_as_a_whole(value):
    with pytest.raises(ValidationError):
        PolicyDocument.model_validate(value)


def test_a_policy_survives_being_stored():
    document = PolicyDocument.model_validate(
        {
            "default_profiles": {"m": "guarded", "n": None},
            "switches": {"allowed": ["safe"], "denied": []},
            "inline_vectors": False,
            "limits": {"strengths": {"safe": {"min": 0.5, "max": 1}}, "max_strength": 10},
        }
    )
    assert PolicyDocument.model_validate(json.loads(document.model_dump_json())) == document


def test_the_narrowest_of_several_rules_holds():
    limits = Limits(
        strengths={"a": StrengthRange(min=0.1, max=2), "b": StrengthRange(min=0.5), "c": StrengthRange(max=0.2)}
    )
    assert limits.range_of(frozenset("x")) is None
    bounds = limits.range_of(frozenset("ab"))
    assert (bounds.min, bounds.max) == (0.5, 2)
    bounds = limits.range_of(frozenset("abc"))
    assert (bounds.min, bounds.max) == (0.5, 0.2)


def test_names_are_looked_up_only_where_a_rule_has_one():
    assert not named([Limits(max_strength=1)], PolicyDocument(inline_vectors=False))
    assert named([Limits(strengths={"a": StrengthRange(max=1)})], PolicyDocument())
    assert named([], PolicyDocument.model_validate({"vectors": {"allowed": []}}))
    assert named([], PolicyDocument.model_validate({"switches": {"denied": ["a"]}}))
