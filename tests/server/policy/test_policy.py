import pytest

from server.errors import InvalidRequest, NotPermitted
from server.policy.keys import Principal
from server.policy.policy import Policy, SwitchWish

USER = Principal("user", frozenset({"infer"}))
CHIEF = Principal("chief", frozenset({"infer", "unswitch"}))
WITH_DEFAULT = Policy(default_switch="safe")


@pytest.mark.parametrize(
    ("wish", "name"),
    [
        (SwitchWish(), "safe"),
        (SwitchWish("on"), "safe"),
        (SwitchWish("on", "safe"), "safe"),
        (SwitchWish("on", "safe", 1.5), "safe"),
    ],
)
def test_everybody_may_have_the_default(wish, name):
    assert WITH_DEFAULT.switch_for(USER, wish) == name


@pytest.mark.parametrize(
    ("wish", "name"),
    [
        (SwitchWish("off"), None),
        (SwitchWish("on", "other"), "other"),
        (SwitchWish("on", None, 0.99), "safe"),
        (SwitchWish("on", "safe", -1.0), "safe"),
        (SwitchWish("on", "safe", everywhere=False), "safe"),
    ],
)
def test_weakening_the_default_takes_a_scope(wish, name):
    with pytest.raises(NotPermitted, match="unswitch"):
        WITH_DEFAULT.switch_for(USER, wish)
    assert WITH_DEFAULT.switch_for(CHIEF, wish) == name


@pytest.mark.parametrize(
    ("wish", "name"),
    [(SwitchWish(), None), (SwitchWish("off"), None), (SwitchWish("on", "other", 0.1, everywhere=False), "other")],
)
def test_without_a_default_nothing_is_forced(wish, name):
    assert Policy().switch_for(USER, wish) == name


def test_on_without_a_default_says_what_to_do():
    with pytest.raises(InvalidRequest, match="--switch") as caught:
        Policy().switch_for(CHIEF, SwitchWish("on", param="X-Safety-Switch"))
    assert caught.value.param == "X-Safety-Switch"


@pytest.mark.parametrize("strength", [2.0, -2.0, 0.0])
def test_strength_up_to_the_bound_passes(strength):
    Policy(max_strength=2.0).check_strength(strength, "x")


@pytest.mark.parametrize("strength", [2.001, -2.001])
def test_strength_beyond_the_bound_is_refused(strength):
    with pytest.raises(InvalidRequest, match="-2 to 2"):
        Policy(max_strength=2.0).check_strength(strength, "x")
    with pytest.raises(InvalidRequest):
        Policy(max_strength=2.0).switch_for(CHIEF, SwitchWish("on", "safe", strength))


def test_replacing_the_default_takes_a_scope():
    WITH_DEFAULT.check_publish(USER, "another")
    WITH_DEFAULT.check_publish(CHIEF, "safe")
    with pytest.raises(NotPermitted):
        WITH_DEFAULT.check_publish(USER, "safe")
