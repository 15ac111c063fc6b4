"""What is to be done to a request: the default, a chosen profile and the request's own fields, put together.

``base`` is the profile named by the model id, else the default. The request's switch stands in place of the base's, its
vectors come after the base's. Whether that weakens the default is then for the policy to say.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from server.api.headers import STEERING_HEADER, SWITCH_HEADER, InterventionHeaders
from server.api.schemas.interventions import (
    ApplyIn,
    InlineVectorIn,
    InterventionFields,
    SteeringIn,
    Switch,
    SwitchIn,
    gate_of,
)
from server.api.select import compile_apply
from server.api.services import Services
from server.api.units import in_vector_units
from server.errors import InvalidRequest, RequestError, Unavailable
from server.policy.keys import Principal
from server.policy.policy import Policy, Setting
from server.policy.profiles import Profile
from server.types import Apply, GateSpec, InlineVector, InterventionSpec

if TYPE_CHECKING:
    from server.engine.text import EncodedPrompt

Origin = Literal["request", "profile", "default"]


@dataclass(frozen=True, slots=True)
class Wish:
    """One intervention to be applied, and who asks for it. A switch always has its name.

    ``artifact`` is the id that the name was bound to when the profile was written, ``probe`` likewise that of its gate;
    None looks the name up. ``vouched`` is for what a profile or the operator named: whoever owns it, the caller may use
    it.
    """

    fields: SwitchIn | SteeringIn
    param: str
    origin: Origin
    artifact: str | None = None
    vouched: bool = False
    probe: str | None = None

    @property
    def gate(self) -> GateSpec | None:
        """What it waits for; None where it acts at once."""
        gate = gate_of(self.fields.gate)
        return None if gate is None else gate.spec(self.probe)

    @property
    def name(self) -> str | None:
        """Name of the artifact, None for an inline vector."""
        if isinstance(self.fields, SwitchIn):
            return self.fields.name
        return self.fields.vector if isinstance(self.fields.vector, str) else None

    @property
    def setting(self) -> Setting:
        """As the policy sees it."""
        fields, apply = self.fields, self.fields.apply
        kind: Literal["switch", "vector"] = "switch" if isinstance(fields, SwitchIn) else "vector"
        gate = self.gate
        details = (apply, gate) if kind == "switch" else fields.model_copy(update={"strength": 0.0, "gate": gate})
        everywhere = gate is None and (apply is None or apply.everywhere)
        return Setting(kind, self.name, fields.strength, self.param, details, everywhere, self.artifact, gate)

    def spec(self, prompt: EncodedPrompt | None) -> InterventionSpec | None:
        """For the catalog, with positions in ``prompt``, which is None for a running generation.

        None where a profile has nothing to say about what a running generation still reads.
        """
        apply = self.fields.apply
        if prompt is None and self.origin != "request" and apply is not None:
            if apply.generation == "none" or (apply.generation is None and apply.match is not None):
                return None
            apply = ApplyIn(generation=apply.generation)
        return self._at(compile_apply(apply, prompt, f"{self.param}.apply"))

    def anywhere(self) -> InterventionSpec:
        """For the catalog, to learn which artifact it is and whether it can be used at all."""
        return self._at(Apply())

    def _at(self, positions: Apply) -> InterventionSpec:
        source = self.artifact or self.name
        if isinstance(self.fields, SwitchIn):
            assert source is not None
            return InterventionSpec(
                "switch", source, self.fields.strength, apply=positions, gate=self.gate, param=self.param
            )
        fields = self.fields
        return InterventionSpec(
            operation=fields.operation,
            source=_inline(fields.vector, f"{self.param}.vector") if source is None else source,
            strength=fields.strength,
            sites=None if fields.sites is None else tuple(site.site() for site in fields.sites),
            apply=positions,
            minimum=fields.min,
            maximum=fields.max,
            gate=self.gate,
            param=self.param,
        )


@dataclass(frozen=True, slots=True)
class Bundle:
    """The interventions of a profile; without one those of ``--switch``, or none."""

    switch: Wish | None = None
    steering: tuple[Wish, ...] = ()
    profile: str | None = None

    @property
    def all(self) -> tuple[Wish, ...]:
        """In the order in which they act."""
        return (*_listed(self.switch), *self.steering)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What will be done, and what of the default that leaves out or weakens; the policy has agreed to that much.

    ``switch_param`` is where the request speaks of the switch or, if it does not, of the profile.
    """

    principal: Principal
    policy: Policy
    switch: Wish | None
    steering: tuple[Wish, ...]
    default: tuple[Wish, ...]
    weakened: tuple[Setting, ...]
    profile: str | None
    switch_param: str

    @property
    def all(self) -> tuple[Wish, ...]:
        """In the order in which they act."""
        return (*_listed(self.switch), *self.steering)


def wishes_of(
    services: Services,
    principal: Principal,
    fields: InterventionFields,
    headers: InterventionHeaders,
    profile: Profile | None = None,
    within: str = "",
) -> Wishes:
    """Reads body and headers over the chosen or the default profile, and asks the policy.

    ``within`` is where in the body the fields are, such as ``settings[0].``, for error messages. A header may repeat
    what the body says, but not contradict it. Raises InvalidRequest, NotPermitted, and Unavailable where the default
    is not to be had.
    """
    policy = services.policy
    default = default_bundle(services, policy, principal)
    base = default if profile is None else bundle_of(services, profile, "profile")
    if profile is not None and base.steering and not profile.shared:
        principal.require("steer")
    return _composed(services, principal, _Said.of(fields, headers, within), base, default)


def changes_of(services: Services, principal: Principal, fields: InterventionFields) -> Wishes:
    """As :func:`wishes_of` for a running generation: the default counts only for the parts that are given."""
    policy = services.policy
    whole = default_bundle(services, policy, principal)
    default = Bundle(
        whole.switch if fields.safety_switch is not None else None,
        whole.steering if fields.steering is not None else (),
        whole.profile,
    )
    return _composed(services, principal, _Said.of(fields, InterventionHeaders()), default, default)


def default_bundle(services: Services, policy: Policy, principal: Principal) -> Bundle:
    """What applies to this caller's requests that say nothing; raises Unavailable where it is not to be had."""
    name = policy.default_profile(principal, services.engine.info.name)
    if name is not None:
        profile = services.profiles.find(name)
        if profile is None:
            raise Unavailable(f"the default profile {name!r} is gone: write it again", code="default_unavailable")
        try:
            return bundle_of(services, profile, "default")
        except RequestError as error:
            raise Unavailable(
                f"the default profile {name!r} cannot be applied: {error.message}", code="default_unavailable"
            ) from error
    if policy.default_switch is None:
        return Bundle()
    switch = SwitchIn(name=policy.default_switch)
    return Bundle(Wish(switch, "safety_switch", "default", policy.switch_artifact, vouched=True))


def bundle_of(services: Services, profile: Profile, origin: Origin) -> Bundle:
    """The interventions of a stored profile, bound to the artifacts it was written with.

    Raises NotFound or InvalidRequest where a strength in norms has lost the vector it counts in.
    """
    fields = InterventionFields.model_validate(profile.content)
    switch, steering = wishes_in(services, fields, "profile.", origin, profile.artifacts)
    return Bundle(switch, steering, profile.name)


def wishes_in(
    services: Services,
    fields: InterventionFields,
    prefix: str,
    origin: Origin,
    artifacts: Mapping[str, str],
    writer: Principal | None = None,
) -> tuple[Wish | None, tuple[Wish, ...]]:
    """The switch and the vectors of a profile, whose names ``writer`` has to be allowed to use; None vouches for them.

    Raises InvalidRequest for a switch without a name, and as :func:`server.api.units.in_vector_units`.
    """
    vouched = writer is None
    switch = _named_switch(fields.safety_switch, f"{prefix}safety_switch")
    named = None
    if switch is not None:
        probe = _bound_probe(switch, artifacts)
        named = Wish(switch, f"{prefix}safety_switch", origin, artifacts.get(switch.name or ""), vouched, probe)
    steering = []
    for i, item in enumerate(fields.steering or ()):
        bound = artifacts.get(item.vector) if isinstance(item.vector, str) else None
        probe = _bound_probe(item, artifacts)
        steering.append(_vector(services, item, f"{prefix}steering[{i}]", origin, writer, bound, probe))
    return named, tuple(steering)


@dataclass(frozen=True, slots=True)
class _Said:
    """Body and headers taken together, each part with the field to blame."""

    switch: Switch
    switch_param: str
    steering: Sequence[SteeringIn] | None
    steering_param: str

    @classmethod
    def of(cls, fields: InterventionFields, headers: InterventionHeaders, within: str = "") -> _Said:
        switch, steering = headers.switch(), headers.steering()
        return cls(
            fields.safety_switch if switch is None else switch,
            _said_in(fields.safety_switch, switch, f"{within}safety_switch", SWITCH_HEADER),
            fields.steering if steering is None else steering,
            _said_in(fields.steering, steering, f"{within}steering", STEERING_HEADER),
        )


def _composed(services: Services, principal: Principal, said: _Said, base: Bundle, default: Bundle) -> Wishes:
    policy, switch = services.policy, _switch(said, base, default)
    if said.steering:
        principal.require("steer")
    own = tuple(
        _vector(services, item, f"{said.steering_param}[{i}]", "request", principal)
        for i, item in enumerate(said.steering or ())
    )
    steering = (*base.steering, *own)
    wanted = [wish.setting for wish in (*_listed(switch), *steering)]
    param = "model" if said.switch is None else said.switch_param
    weakened = policy.check_default(principal, [wish.setting for wish in default.all], wanted, param)
    policy.check_strengths(wanted)
    return Wishes(principal, policy, switch, steering, default.all, weakened, base.profile, param)


def _vector(
    services: Services,
    item: SteeringIn,
    param: str,
    origin: Origin,
    caller: Principal | None,
    bound: str | None = None,
    probe: str | None = None,
) -> Wish:
    """One vector with a plain strength; ``caller`` None stands for an item that is vouched for."""
    owner = None if caller is None or "admin" in caller.scopes else caller.owner
    plain, artifact = in_vector_units(services.artifacts, item, artifact=bound, owner=owner, param=param)
    return Wish(plain, param, origin, artifact, caller is None, probe)


def _switch(said: _Said, base: Bundle, default: Bundle) -> Wish | None:
    known = [wish for wish in (base.switch, default.switch) if wish is not None]
    match said.switch:
        case None:
            return base.switch
        case False:
            return None
        case True | SwitchIn(name=None) if not known:
            raise InvalidRequest(
                "this server has no default safety switch: name one (GET /v1/artifacts?kind=switch lists them), "
                "or start the server with --switch NAME",
                param=said.switch_param,
            )
        case True:
            return known[0]
        case str() as name:
            fields = SwitchIn(name=name)
        case SwitchIn() as fields:
            pass
    for wish in known:
        if fields.name in (None, wish.name, wish.artifact):
            named = fields.model_copy(update={"name": wish.name})
            gate, known_gate = gate_of(fields.gate), gate_of(wish.fields.gate)
            same = gate is not None and known_gate is not None and gate.probe in (known_gate.probe, wish.probe)
            probe = wish.probe if same else None
            return Wish(named, said.switch_param, "request", wish.artifact, vouched=True, probe=probe)
    return Wish(fields, said.switch_param, "request")


def _named_switch(switch: Switch, param: str) -> SwitchIn | None:
    match switch:
        case None | False:
            return None
        case str() as name:
            return SwitchIn(name=name)
        case SwitchIn(name=str()) as fields:
            return fields
        case _:
            raise InvalidRequest("a profile names its switch: give a name", param=param)


def _bound_probe(fields: SwitchIn | SteeringIn, artifacts: Mapping[str, str]) -> str | None:
    gate = gate_of(fields.gate)
    return None if gate is None else artifacts.get(gate.probe)


def _listed(wish: Wish | None) -> tuple[Wish, ...]:
    return () if wish is None else (wish,)


def _inline(vector: str | InlineVectorIn, param: str) -> InlineVector:
    assert isinstance(vector, InlineVectorIn)
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
