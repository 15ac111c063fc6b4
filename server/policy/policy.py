"""The operator's rules for interventions: what is on by default, who may lower it, and how strong anything may be.

A rule that a request breaks is named in the error's ``code``: ``default_protected``, ``strength_floor``,
``strength_ceiling``, ``not_allowed``, ``denied``, ``gate_required`` or ``inline_vectors``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from server.errors import InvalidRequest, NotPermitted, Unavailable
from server.policy.document import NO_RULES, Limits, NameRules, PolicyDocument, named
from server.policy.keys import Principal
from server.types import GateSpec


@dataclass(frozen=True, slots=True)
class Setting:
    """One intervention as the rules see it.

    ``name`` is None for a vector that came with the request. ``artifact`` is the id a profile is bound to. ``details``
    is everything else that shapes it (positions, sites, operation, gate), compared by equality only; ``everywhere``
    tells that it leaves no position out and waits for no gate. ``param`` is the request field, for error messages.
    """

    kind: Literal["switch", "vector"]
    name: str | None
    strength: float
    param: str
    details: object = None
    everywhere: bool = True
    artifact: str | None = None
    gate: GateSpec | None = None

    def covers(self, other: Setting) -> bool:
        """Whether this does at least what ``other`` does: the same switch, as strong, in as many places."""
        if not self.is_same_as(other):
            return False
        if self.kind == "vector":
            return (self.strength, self.details) == (other.strength, other.details)
        return self.strength >= other.strength and (self.everywhere or self.details == other.details)

    def is_same_as(self, other: Setting) -> bool:
        """Whether both are the same artifact, or the same inline vector (which ``details`` holds)."""
        if self.kind != other.kind:
            return False
        return (self.name is not None and (self.artifact or self.name) == (other.artifact or other.name)) or (
            self.name is other.name is None and self.details == other.details
        )


@dataclass(frozen=True, slots=True)
class Named:
    """A setting with what it goes by: ``aliases`` lead to it now, ``others`` once did or are written inside it.

    ``probes`` lead to the probe of its gate.
    """

    setting: Setting
    aliases: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()
    probes: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """All of them."""
        return self.aliases | self.others

    def is_same_as(self, other: Named) -> bool:
        """Whether both are one artifact, by whatever names they were asked for."""
        if self.setting.kind != other.setting.kind:
            return False
        return self.setting.is_same_as(other.setting) or not self.aliases.isdisjoint(other.aliases)


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules of one server at one time; ``name`` is reported with every answer.

    ``default_switch`` is the one given at start, bound to ``switch_artifact``; with it the document names no default
    profile for the served model. ``max_strength`` is the server's own bound, a 400 where it is passed.
    """

    default_switch: str | None = None
    max_strength: float = 100.0
    document: PolicyDocument = NO_RULES
    version: int = 0
    switch_artifact: str | None = None

    @property
    def name(self) -> str:
        """``default`` until a policy was written, then ``v<version>``."""
        return f"v{self.version}" if self.version else "default"

    def default_profile(self, principal: Principal, model: str) -> str | None:
        """Name of the profile that applies unless a request says otherwise; raises Unavailable, never guesses."""
        if principal.profile is not None:
            return principal.profile
        defaults = self.document.default_profiles
        if defaults and model not in defaults:
            raise Unavailable(
                f"the policy names default profiles but none for {model!r}: add it (null for none) with PUT /v1/policy",
                code="default_unavailable",
            )
        return defaults.get(model)

    def check_default(
        self, principal: Principal, default: Sequence[Setting], wanted: Sequence[Setting], param: str
    ) -> tuple[Setting, ...]:
        """What of ``default`` is weakened by ``wanted``; raises NotPermitted where this key may not do that."""
        weakened = tuple(one for one in default if not any(other.covers(one) for other in wanted))
        if weakened:
            _require_unswitch(principal, weakened, "lower it: leave it as it is", param)
        return weakened

    def check_counteracting(
        self, principal: Principal, wanted: Sequence[Named], default: Sequence[Named]
    ) -> tuple[Setting, ...]:
        """Vectors of the default that ``wanted`` uses once more in another way: the opposite strength would undo them.

        Raises NotPermitted where this key may not do that.
        """
        countered: list[Setting] = []
        for one in default:
            others = [w for w in wanted if w.setting.kind == "vector" and w.is_same_as(one)]
            again = [other for other in others if not other.setting.covers(one.setting)]
            if again:
                countered.append(one.setting)
                param = f"{again[0].setting.param}.vector"
                _require_unswitch(principal, [one.setting], "use it again: leave that out", param)
        return tuple(countered)

    def check_strengths(self, wanted: Sequence[Setting]) -> None:
        """Raises InvalidRequest where a strength is beyond what the server was started with."""
        for one in wanted:
            if abs(one.strength) > self.max_strength:
                bound = f"this server allows strengths from {-self.max_strength:g} to {self.max_strength:g}"
                raise InvalidRequest(
                    f"strength {one.strength:g} is out of bounds: {bound}", param=f"{one.param}.strength"
                )

    def check_rules(
        self,
        principal: Principal,
        wanted: Sequence[Named],
        default: Sequence[Named],
        weakened: Sequence[Setting],
        param: str,
    ) -> None:
        """Raises NotPermitted where a rule of the policy or of the key forbids it.

        What is on by default and left as it is was chosen by the operator: no rule applies to it. What is lowered or
        left out of it, blamed on ``param``, has to keep to its floor.
        """
        untouched = [one.setting for one in default if one.setting not in weakened]
        for one in wanted:
            if one.setting not in untouched:
                self._check_use(one)
                self._check_floor(principal, one, one.setting.strength, f"{one.setting.param}.strength")
                self._check_ceiling(principal, one, _together(one, wanted), f"{one.setting.param}.strength")
        for one in default:
            if one.setting in weakened:
                same = [other.setting for other in wanted if other.setting.is_same_as(one.setting)]
                left = [s.strength for s in same if s.everywhere or s.details == one.setting.details]
                self._check_floor(principal, one, max(left, default=0.0), param)

    def names_matter(self, principal: Principal) -> bool:
        """Whether :meth:`check_rules` looks at names."""
        return named((self.document.limits, principal.limits), self.document)

    def check_publish(self, principal: Principal, name: str) -> None:
        """Raises NotPermitted where ``name`` is the default switch's: the next start would take what it leads to."""
        if name == self.default_switch:
            principal.require("unswitch")

    def _check_use(self, one: Named) -> None:
        setting = one.setting
        field = setting.param if setting.kind == "switch" else f"{setting.param}.vector"
        if setting.name is None:
            if not self.document.inline_allowed:
                raise NotPermitted(
                    "the policy does not allow vectors that come with the request: name a stored one",
                    param=field,
                    code="inline_vectors",
                )
            return
        rules: NameRules = self.document.switches if setting.kind == "switch" else self.document.vectors
        if rules.allowed is not None and one.aliases.isdisjoint(rules.allowed):
            allowed = ", ".join(rules.allowed) or "none"
            raise NotPermitted(
                f"the policy does not allow {setting.name!r} here; allowed: {allowed}", param=field, code="not_allowed"
            )
        if not one.names.isdisjoint(rules.denied):
            raise NotPermitted(f"the policy denies {setting.name!r}: use another", param=field, code="denied")
        if setting.strength != 0:
            self._check_gate(one)

    def _check_gate(self, one: Named) -> None:
        """A required gate can be neither left out nor widened. Where two rules contradict each other, nothing fits."""
        for rule in (rule for name, rule in self.document.gates.items() if name in one.names):
            if one.setting.gate is None or not rule.is_met_by(one.setting.gate, one.probes):
                raise NotPermitted(
                    f"the policy allows {one.setting.name!r} behind one gate only: send "
                    f'"gate": {rule.model_dump_json(exclude_none=True)}',
                    param=f"{one.setting.param}.gate",
                    code="gate_required",
                )

    def _check_ceiling(self, principal: Principal, one: Named, strength: float, param: str) -> None:
        for limits, whose in self._limits(principal):
            bounds = limits.range_of(one.names)
            highest = None if bounds is None else bounds.max
            if highest is not None and strength > highest:
                raise _out_of_range(one, strength, f"above {whose} ceiling: ask for {highest:g} or less", param)
            if limits.max_strength is not None and abs(strength) > limits.max_strength:
                remedy = f"beyond {whose} ceiling: stay within {limits.max_strength:g} on either side"
                raise _out_of_range(one, strength, remedy, param)

    def _check_floor(self, principal: Principal, one: Named, strength: float, param: str) -> None:
        for limits, whose in self._limits(principal):
            bounds = limits.range_of(one.names)
            if bounds is not None and bounds.min is not None and strength < bounds.min:
                remedy = f"below {whose} floor: ask for {bounds.min:g} or more"
                raise _out_of_range(one, strength, remedy, param, code="strength_floor")

    def _limits(self, principal: Principal) -> tuple[tuple[Limits, str], ...]:
        return (self.document.limits, "the policy's"), (principal.limits, "this API key's")


def _together(one: Named, wanted: Sequence[Named]) -> float:
    """Strength of ``one`` with all that pull the same way: a vector named eight times is eight times as strong."""
    same = [other.setting.strength for other in wanted if other.is_same_as(one)]
    return sum(strength for strength in same if (strength < 0) == (one.setting.strength < 0))


def _require_unswitch(principal: Principal, what: Sequence[Setting], how: str, param: str) -> None:
    if "unswitch" in principal.scopes:
        return
    named = " and ".join(f"{one.name or 'a vector'} (strength {one.strength:g})" for one in what)
    raise NotPermitted(
        f"{named} is on by default and this API key may not {how}, or use a key with the scope 'unswitch'",
        param=param,
        code="default_protected",
    )


def _out_of_range(one: Named, strength: float, remedy: str, param: str, code: str = "strength_ceiling") -> NotPermitted:
    what = one.setting.name or "a vector of the request"
    return NotPermitted(f"strength {strength:g} of {what} is {remedy}", param=param, code=code)
