"""From what a request says to interventions ready for the engine: wish, policy, positions, catalog.

Everything that can be wrong is found here, before a token is drawn.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.api.headers import STEERING_HEADER, SWITCH_HEADER, InterventionHeaders
from server.api.schemas.interventions import (
    ApplyIn,
    InlineVectorIn,
    InterventionFields,
    SteeringIn,
    Switch,
    SwitchIn,
)
from server.api.select import compile_apply
from server.errors import InvalidRequest
from server.policy.keys import Principal
from server.policy.policy import Policy, SwitchWish
from server.types import InlineVector, InterventionSpec

if TYPE_CHECKING:
    from server.engine.text import EncodedPrompt
    from server.interventions.catalog import Catalog, ResolvedIntervention
    from server.registry.artifacts import ArtifactStore


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a request asks for, body and headers taken together; the policy has agreed."""

    switch_name: str | None
    switch: SwitchWish
    switch_apply: ApplyIn | None
    steering: tuple[SteeringIn, ...]
    steering_param: str = "steering"

    def names(self) -> list[tuple[str, str]]:
        """Artifacts named by the caller, each with the request field that names it."""
        named = [] if self.switch.name is None else [(self.switch.name, self.switch.param)]
        items = enumerate(self.steering)
        return named + [(v.vector, f"{self.steering_param}[{i}].vector") for i, v in items if isinstance(v.vector, str)]

    def switch_spec(self, prompt: EncodedPrompt | None) -> list[InterventionSpec]:
        """The switch as a list of none or one; positions in ``prompt``, which is None for a running generation."""
        if self.switch_name is None:
            return []
        apply = compile_apply(self.switch_apply, prompt, f"{self.switch.param}.apply")
        return [
            InterventionSpec(
                operation="switch",
                source=self.switch_name,
                strength=self.switch.strength,
                apply=apply,
                param=self.switch.param,
            )
        ]

    def steering_specs(self, prompt: EncodedPrompt | None) -> list[InterventionSpec]:
        """The vectors in the order of the request."""
        return [_steering_spec(item, prompt, f"{self.steering_param}[{i}]") for i, item in enumerate(self.steering)]


def wishes_of(
    fields: InterventionFields, headers: InterventionHeaders, principal: Principal, policy: Policy, within: str = ""
) -> Wishes:
    """Reads body and headers and asks the policy; raises InvalidRequest or NotPermitted.

    ``within`` is where in the body the fields are, such as ``settings[0].``, for error messages.

    A header may repeat what the body says, but not contradict it.
    """
    by_header, vectors_by_header = headers.switch(), headers.steering()
    switch_param = _said_in(fields.safety_switch, by_header, f"{within}safety_switch", SWITCH_HEADER)
    steering_param = _said_in(fields.steering, vectors_by_header, f"{within}steering", STEERING_HEADER)
    switch = fields.safety_switch if by_header is None else by_header
    steering = fields.steering if vectors_by_header is None else vectors_by_header
    wish, apply = _switch_wish(switch, switch_param)
    name = policy.switch_for(principal, wish)
    if steering:
        principal.require("steer")
    for i, item in enumerate(steering or ()):
        policy.check_strength(item.strength, f"{steering_param}[{i}].strength")
    return Wishes(name, wish, apply, tuple(steering or ()), steering_param)


def check_visible(wishes: Wishes, principal: Principal, artifacts: ArtifactStore, policy: Policy) -> None:
    """Raises NotFound for a named artifact of somebody else's, the default switch apart. Reads the database."""
    if "admin" not in principal.scopes:
        for name, param in wishes.names():
            if name != policy.default_switch:
                artifacts.get(name, owner=principal.owner, param=param)


def resolve(specs: list[InterventionSpec], catalog: Catalog) -> tuple[ResolvedIntervention, ...]:
    """Looks each up; raises InvalidRequest or NotFound. May read files: not for the event loop."""
    return tuple(catalog.resolve(spec) for spec in specs)


def _switch_wish(switch: Switch, param: str) -> tuple[SwitchWish, ApplyIn | None]:
    match switch:
        case None:
            return SwitchWish(param=param), None
        case bool():
            return SwitchWish("on" if switch else "off", param=param), None
        case str():
            return SwitchWish("on", switch, param=param), None
        case SwitchIn(name=name, strength=strength, apply=apply):
            everywhere = apply is None or apply.everywhere
            return SwitchWish("on", name, strength, everywhere, param), apply


def _steering_spec(item: SteeringIn, prompt: EncodedPrompt | None, param: str) -> InterventionSpec:
    return InterventionSpec(
        operation=item.operation,
        source=item.vector if isinstance(item.vector, str) else _inline(item.vector, f"{param}.vector"),
        strength=item.strength,
        sites=None if item.sites is None else tuple(site.site() for site in item.sites),
        apply=compile_apply(item.apply, prompt, f"{param}.apply"),
        minimum=item.min,
        maximum=item.max,
        param=param,
    )


def _inline(vector: InlineVectorIn, param: str) -> InlineVector:
    try:
        data = b64decode(vector.data, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(
            "the vector must be base64 of little-endian float32 values, without line breaks", param=f"{param}.data"
        ) from None
    return InlineVector(data, tuple(site.site() for site in vector.sites))


def _said_in(body: object, header: object, field: str, name: str) -> str:
    """Which of the two to blame in errors."""
    if header is None:
        return field
    if body is not None and body != header:
        raise InvalidRequest(f"the header {name} contradicts the body's {field}: send one of them", param=name)
    return name
