"""The operator's rules for interventions: the default switch, who may lower it, and how strong anything may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from server.errors import InvalidRequest
from server.policy.keys import Principal


@dataclass(frozen=True, slots=True)
class SwitchWish:
    """What a request says about the safety switch, before the policy.

    ``state`` is ``unsaid`` where the request is silent. ``name=None`` means the default switch. ``everywhere`` is False
    where the request narrows the positions it acts on.
    """

    state: Literal["unsaid", "off", "on"] = "unsaid"
    name: str | None = None
    strength: float = 1.0
    everywhere: bool = True
    param: str = "safety_switch"


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules of one server; ``name`` is reported with every answer.

    A request that is silent gets ``default_switch``, where there is one. Anything that weakens the default (off,
    another switch in its place, a strength below 1, fewer positions) takes the scope ``unswitch``.
    """

    default_switch: str | None = None
    max_strength: float = 100.0
    name: str = "default"

    def switch_for(self, principal: Principal, wish: SwitchWish) -> str | None:
        """The name of the switch to apply, None for none; raises NotPermitted or InvalidRequest."""
        name = self._wanted(wish)
        if self._weakens_default(wish, name):
            principal.require("unswitch")
        if name is not None:
            self.check_strength(wish.strength, f"{wish.param}.strength")
        return name

    def check_strength(self, strength: float, param: str) -> None:
        """Raises InvalidRequest where ``|strength|`` is above the operator's bound."""
        if abs(strength) > self.max_strength:
            bound = f"this server allows strengths from {-self.max_strength:g} to {self.max_strength:g}"
            raise InvalidRequest(f"strength {strength:g} is out of bounds: {bound}", param=param)

    def check_publish(self, principal: Principal, name: str) -> None:
        """Raises NotPermitted where ``name`` is the default switch's: replacing it takes ``unswitch``."""
        if name == self.default_switch:
            principal.require("unswitch")

    def _wanted(self, wish: SwitchWish) -> str | None:
        if wish.state == "off":
            return None
        name = wish.name or self.default_switch
        if name is None and wish.state == "on":
            raise InvalidRequest(
                "this server has no default safety switch: name one (GET /v1/artifacts?kind=switch lists them), "
                "or start the server with --switch NAME",
                param=wish.param,
            )
        return name

    def _weakens_default(self, wish: SwitchWish, name: str | None) -> bool:
        if self.default_switch is None or wish.state == "unsaid":
            return False
        return name != self.default_switch or wish.strength < 1 or not wish.everywhere
