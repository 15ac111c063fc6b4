from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidRequest, NotPermitted, Unavailable
from server.policy.document import Limits, NameRules, PolicyDocument, StrengthRange
from server.policy.keys import Principal
from server.policy.policy import Named, Policy, Setting
from server.types import GateSpec

USER = Principal("user", frozenset({"infer", "steer"}))
CHIEF = Principal("chief", frozenset({"infer", "steer", "unswitch"}))
SAFE = Setting("switch", "safe", 1.0, "safety_switch", artifact="art_1")
JOY = Setting("vector", "joy", 2.0, "steering[0]", details="here")


def switch(strength: float = 1.0, name: str = "safe", **rest) -> Setting:
    return Setting("switch", name, strength, "safety_switch", **rest)


@pytest.mark.parametrize(
    "wanted",
    [[SAFE], [switch(1.0, artifact="art_1")], [switch(1.5, artifact="art_1")], [SAFE, JOY]],
)
def test_everybody_may_have_the_default_or_more(wanted):
    assert Policy().check_default(USER, [SAFE], wanted, "safety_switch") == ()


@pytest.mark.parametrize(
    "wanted",
    [
        [],
        [JOY],
        [switch(artifact="art_2")],
        [switch(name="other")],
        [switch(0.99, artifact="art_1")],
        [switch(-1.0, artifact="art_1")],
        [switch(0.0, artifact="art_1")],
        [switch(5.0, artifact="art_1", everywhere=False, details="half")],
        [Setting("vector", "safe", 1.0, "steering[0]", artifact="art_1")],
    ],
)
def test_weakening_the_default_takes_a_scope(wanted):
    with pytest.raises(NotPermitted, match="unswitch") as refused:
        Policy().check_default(USER, [SAFE], wanted, "X-Safety-Switch")
    assert (refused.value.code, refused.value.param) == ("default_protected", "X-Safety-Switch")
    assert Policy().check_default(CHIEF, [SAFE], wanted, "safety_switch") == (SAFE,)


def test_a_vector_of_the_default_has_to_stay_exactly_as_it_is():
    kept = Setting("vector", "joy", 2.0, "profile.steering[0]", details="here")
    assert Policy().check_default(USER, [JOY], [kept], "model") == ()
    for other in (
        Setting("vector", "joy", 3.0, "steering[0]", details="here"),
        Setting("vector", "joy", 2.0, "steering[0]", details="there"),
        Setting("vector", None, 2.0, "steering[0]", details="here"),
    ):
        with pytest.raises(NotPermitted):
            Policy().check_default(USER, [JOY], [other], "model")


def test_a_default_in_some_places_is_kept_by_those_places_or_all():
    half = switch(artifact="art_1", everywhere=False, details="half")
    assert Policy().check_default(USER, [half], [half], "x") == ()
    assert Policy().check_default(USER, [half], [SAFE], "x") == ()
    with pytest.raises(NotPermitted):
        Policy().check_default(USER, [half], [switch(artifact="art_1", everywhere=False, details="less")], "x")


GATED = switch(artifact="art_1", everywhere=False, details=(None, GateSpec("p")), gate=GateSpec("p"))


@pytest.mark.parametrize(
    ("default", "wanted", "weakens"),
    [
        (SAFE, GATED, True),
        (GATED, GATED, False),
        (GATED, SAFE, False),
        (GATED, switch(artifact="art_1", everywhere=False, details=(None, GateSpec("p", 9.0))), True),
        (GATED, switch(artifact="art_1", everywhere=False, details=(None, GateSpec("q"))), True),
    ],
)
def test_a_gate_of_ones_own_weakens_the_default(default, wanted, weakens):
    assert bool(Policy().check_default(CHIEF, [default], [wanted], "x")) is weakens


@pytest.mark.parametrize(
    ("gate", "probes", "allowed"),
    [
        (GateSpec("p"), {"p", "art_p"}, True),
        (GateSpec("alias"), {"alias", "p", "art_p"}, True),
        (GateSpec("p"), {"moved"}, False),
        (GateSpec("p", threshold=-9.0), {"p"}, False),
        (GateSpec("p", hold=3), {"p"}, False),
        (GateSpec("q"), {"q"}, False),
        (None, set(), False),
    ],
)
def test_a_required_gate_can_not_be_removed_or_widened(gate, probes, allowed):
    policy = Policy(document=PolicyDocument.model_validate({"gates": {"joy": {"probe": "p"}}}))
    asked = Named(
        Setting("vector", "j", 2.0, "steering[0]", gate=gate), frozenset({"j", "joy"}), probes=frozenset(probes)
    )
    assert policy.names_matter(USER)
    if allowed:
        policy.check_rules(USER, [asked], [], [], "x")
        return
    with pytest.raises(NotPermitted, match=r'"gate": \{"probe":"p"\}') as refused:
        policy.check_rules(CHIEF, [asked], [], [], "x")
    assert (refused.value.code, refused.value.param) == ("gate_required", "steering[0].gate")
    off = Named(Setting("vector", "j", 0.0, "steering[0]"), frozenset({"joy"}))
    policy.check_rules(USER, [off, Named(SAFE, frozenset({"safe"}))], [], [], "x")


@given(
    default=st.floats(0, 1),
    asked=st.floats(-100, 100),
    same=st.booleans(),
    everywhere=st.booleans(),
    off=st.booleans(),
)
def test_no_request_without_the_scope_ends_up_below_the_default(default, asked, same, everywhere, off):
    """Whatever passes for a user does at least what the default does."""
    floor = switch(default, artifact="art_1")
    wanted = [] if off else [switch(asked, artifact="art_1" if same else "art_2", everywhere=everywhere, details="x")]
    try:
        weakened = Policy().check_default(USER, [floor], wanted, "x")
    except NotPermitted:
        return
    assert weakened == ()
    assert any(one.artifact == "art_1" and one.strength >= default and one.everywhere for one in wanted)


@pytest.mark.parametrize("strength", [2.0, -2.0, 0.0])
def test_strength_up_to_the_servers_bound_passes(strength):
    Policy(max_strength=2.0).check_strengths([switch(strength)])


@pytest.mark.parametrize("strength", [2.001, -2.001])
def test_strength_beyond_the_servers_bound_is_refused(strength):
    with pytest.raises(InvalidRequest, match="-2 to 2") as refused:
        Policy(max_strength=2.0).check_strengths([switch(strength)])
    assert refused.value.param == "safety_switch.strength"


def test_replacing_the_default_switch_takes_a_scope():
    policy = Policy(default_switch="safe")
    policy.check_publish(USER, "another")
    policy.check_publish(CHIEF, "safe")
    with pytest.raises(NotPermitted):
        policy.check_publish(USER, "safe")


def refusal(document: PolicyDocument, wanted, default=(), weakened=(), principal=USER) -> tuple[str, str | None] | None:
    policy = Policy(document=document)
    named = [Named(one, frozenset({one.name or "-"}), frozenset()) for one in wanted]
    kept = [Named(one, frozenset({one.name or "-"}), frozenset()) for one in default]
    try:
        policy.check_rules(principal, named, kept, weakened, "safety_switch")
    except NotPermitted as error:
        return error.code, error.param
    return None


def strengths(**ranges: tuple[float | None, float | None]) -> Limits:
    return Limits(strengths={name: StrengthRange(min=low, max=high) for name, (low, high) in ranges.items()})


@pytest.mark.parametrize(
    ("document", "wanted", "expected"),
    [
        (PolicyDocument(), [switch(), JOY], None),
        (PolicyDocument(switches=NameRules(allowed=["other"])), [switch()], ("not_allowed", "safety_switch")),
        (PolicyDocument(switches=NameRules(allowed=[])), [switch()], ("not_allowed", "safety_switch")),
        (PolicyDocument(switches=NameRules(allowed=["safe"])), [switch()], None),
        (PolicyDocument(vectors=NameRules(allowed=[])), [switch()], None),
        (PolicyDocument(vectors=NameRules(denied=["joy"])), [JOY], ("denied", "steering[0].vector")),
        (PolicyDocument(vectors=NameRules(allowed=["joy"], denied=["joy"])), [JOY], ("denied", "steering[0].vector")),
        (PolicyDocument(limits=strengths(joy=(None, 1.5))), [JOY], ("strength_ceiling", "steering[0].strength")),
        (PolicyDocument(limits=strengths(joy=(2.5, None))), [JOY], ("strength_floor", "steering[0].strength")),
        (PolicyDocument(limits=strengths(joy=(2.0, 2.0))), [JOY], None),
        (PolicyDocument(limits=Limits(max_strength=1.9)), [JOY], ("strength_ceiling", "steering[0].strength")),
        (
            PolicyDocument(limits=Limits(max_strength=0.5)),
            [switch(-0.6)],
            ("strength_ceiling", "safety_switch.strength"),
        ),
    ],
)
def test_rules_about_names_and_strengths(document, wanted, expected):
    assert refusal(document, wanted) == expected
    assert refusal(document, wanted, principal=CHIEF) == expected


def test_rules_of_the_key_come_on_top():
    narrow = Principal("user", frozenset({"steer"}), limits=strengths(joy=(None, 1.0)))
    assert refusal(PolicyDocument(), [JOY], principal=narrow) == ("strength_ceiling", "steering[0].strength")
    wide = Principal("user", frozenset({"steer"}), limits=strengths(joy=(None, 9.0)))
    document = PolicyDocument(limits=strengths(joy=(None, 1.0)))
    assert refusal(document, [JOY], principal=wide) == ("strength_ceiling", "steering[0].strength")


def test_rules_match_every_name_of_an_artifact_but_allow_by_living_ones_only():
    one = Named(JOY, aliases=frozenset({"joy", "art_7"}), others=frozenset({"old"}))
    for name in ("joy", "art_7", "old"):
        with pytest.raises(NotPermitted):
            Policy(document=PolicyDocument(vectors=NameRules(denied=[name]))).check_rules(USER, [one], [], (), "x")
        with pytest.raises(NotPermitted):
            Policy(document=PolicyDocument(limits=strengths(**{name: (None, 1.0)}))).check_rules(
                USER, [one], [], (), "x"
            )
    Policy(document=PolicyDocument(vectors=NameRules(allowed=["art_7"]))).check_rules(USER, [one], [], (), "x")
    with pytest.raises(NotPermitted):
        Policy(document=PolicyDocument(vectors=NameRules(allowed=["old"]))).check_rules(USER, [one], [], (), "x")


def test_a_floor_binds_those_who_may_lower():
    document = PolicyDocument(limits=strengths(safe=(0.5, None)))
    for wanted, passes in (
        ([], False),
        ([switch(0.4, artifact="art_1")], False),
        ([switch(0.5, artifact="art_1")], True),
        ([switch(0.9, artifact="art_1", everywhere=False, details="half")], False),
        ([switch(1.0, name="other")], False),
    ):
        found = refusal(document, wanted, [SAFE], (SAFE,), CHIEF)
        assert (found is None) == passes
        assert passes or found[0] == "strength_floor"


def test_what_is_on_by_default_needs_no_further_leave():
    document = PolicyDocument(switches=NameRules(allowed=[]), limits=Limits(max_strength=0.1))
    assert refusal(document, [SAFE], [SAFE]) is None


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, None),
        ({"inline_vectors": False}, ("inline_vectors", "steering[0].vector")),
        ({"vectors": {"allowed": ["joy"]}}, ("inline_vectors", "steering[0].vector")),
        ({"vectors": {"allowed": ["joy"]}, "inline_vectors": True}, None),
        ({"vectors": {"denied": ["joy"]}}, None),
    ],
)
def test_vectors_of_the_request_itself(rules, expected):
    inline = Setting("vector", None, 1.0, "steering[0]")
    assert refusal(PolicyDocument.model_validate(rules), [inline]) == expected


def test_the_default_profile_of_key_and_model():
    policy = Policy(document=PolicyDocument(default_profiles={"m": "guarded", "plain": None}))
    assert policy.default_profile(USER, "m") == "guarded"
    assert policy.default_profile(USER, "plain") is None
    assert policy.default_profile(Principal("x", frozenset(), profile="own"), "m") == "own"
    assert Policy().default_profile(USER, "m") is None


def test_a_model_that_was_forgotten_answers_nobody():
    policy = Policy(document=PolicyDocument(default_profiles={"m": "guarded"}))
    with pytest.raises(Unavailable, match="'renamed'") as refused:
        policy.default_profile(CHIEF, "renamed")
    assert refused.value.code == "default_unavailable"


def test_the_name_tells_the_version():
    assert (Policy().name, Policy(version=3).name) == ("default", "v3")


def joy(strength: float, details: str = "here", alias: str = "joy") -> Named:
    return Named(Setting("vector", alias, strength, "steering[1]", details=details), frozenset({alias, "art_7"}))


@pytest.mark.parametrize(
    ("again", "counters"),
    [
        (joy(2.0), False),
        (joy(-2.0), True),
        (joy(2.0, "there"), True),
        (joy(-2.0, alias="another-name"), True),
        (Named(Setting("vector", "other", -2.0, "steering[1]"), frozenset({"other", "art_8"})), False),
        (Named(Setting("vector", None, -2.0, "steering[1]")), False),
    ],
)
def test_a_vector_of_the_default_is_not_undone_by_itself(again, counters):
    kept = joy(2.0)
    if not counters:
        assert Policy().check_counteracting(USER, [kept, again], [kept]) == ()
        return
    with pytest.raises(NotPermitted, match="use it again") as refused:
        Policy().check_counteracting(USER, [kept, again], [kept])
    assert (refused.value.code, refused.value.param) == ("default_protected", "steering[1].vector")
    assert Policy().check_counteracting(CHIEF, [kept, again], [kept]) == (kept.setting,)


@pytest.mark.parametrize(
    ("items", "passes"),
    [
        ([joy(2.0)], True),
        ([joy(1.0), joy(1.0, "there")], True),
        ([joy(1.5), joy(1.5, "there")], False),
        ([joy(1.5), joy(1.5, alias="another-name")], False),
        ([joy(0.3)] * 8, False),
        ([joy(2.0), joy(-2.0, "there")], True),
    ],
)
def test_a_ceiling_holds_for_all_uses_of_a_vector_together(items, passes):
    policy = Policy(document=PolicyDocument(limits=strengths(joy=(None, 2.0), art_7=(None, 2.0))))
    if passes:
        policy.check_rules(USER, items, [], (), "x")
        return
    with pytest.raises(NotPermitted) as refused:
        policy.check_rules(USER, items, [], (), "x")
    assert refused.value.code == "strength_ceiling"
