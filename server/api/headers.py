"""``X-Safety-Switch`` and ``X-Steering``: the two added fields for clients that cannot add fields to a body."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request
from pydantic import TypeAdapter, ValidationError

from server.api.schemas.bounds import Name, Strength
from server.api.schemas.interventions import Steering, SteeringIn, Switch, SwitchIn
from server.errors import InvalidRequest

SWITCH_HEADER = "X-Safety-Switch"
STEERING_HEADER = "X-Steering"
_NAME: TypeAdapter[str] = TypeAdapter(Name)
_STRENGTH: TypeAdapter[float] = TypeAdapter(Strength)
_STEERING: TypeAdapter[list[SteeringIn] | None] = TypeAdapter(Steering)
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class InterventionHeaders:
    """The two headers as they were sent."""

    switch_text: str | None = None
    steering_text: str | None = None

    def switch(self) -> Switch:
        """As the body's ``safety_switch``; raises InvalidRequest."""
        if self.switch_text is None:
            return None
        word = self.switch_text.strip()
        if word.lower() in ("on", "off"):
            return word.lower() == "on"
        name, strength = _name_and_strength(word, SWITCH_HEADER, "on, off or NAME[=STRENGTH]")
        return name if strength is None else SwitchIn(name=name, strength=strength)

    def steering(self) -> list[SteeringIn] | None:
        """As the body's ``steering``; raises InvalidRequest."""
        if self.steering_text is None:
            return None
        form = "NAME[=STRENGTH], separated by commas"
        parts = [_name_and_strength(part.strip(), STEERING_HEADER, form) for part in self.steering_text.split(",")]
        items = [{"vector": name, "strength": 1.0 if strength is None else strength} for name, strength in parts]
        try:
            return _STEERING.validate_python(items)
        except ValidationError:
            raise InvalidRequest(f"{STEERING_HEADER} names too many vectors", param=STEERING_HEADER) from None


async def _said(
    request: Request,
    safety_switch: Annotated[
        str | None,
        Header(alias=SWITCH_HEADER, max_length=256, description="on, off or NAME[=STRENGTH], as `safety_switch`"),
    ] = None,
    steering: Annotated[
        str | None,
        Header(alias=STEERING_HEADER, max_length=2048, description="NAME[=STRENGTH], ..., as `steering` with `add`"),
    ] = None,
) -> InterventionHeaders:
    for name in (SWITCH_HEADER, STEERING_HEADER):
        if len(request.headers.getlist(name)) > 1:
            raise InvalidRequest(f"the header {name} was sent more than once: send one", param=name)
    return InterventionHeaders(safety_switch, steering)


SaidInHeaders = Annotated[InterventionHeaders, Depends(_said)]


def _name_and_strength(text: str, header: str, form: str) -> tuple[str, float | None]:
    name, equals, strength = text.partition("=")
    try:
        if equals and _NUMBER.fullmatch(strength) is None:  # float() also takes spaces, underscores and other digits
            raise ValueError
        return _NAME.validate_python(name), _STRENGTH.validate_python(float(strength)) if equals else None
    except ValueError:
        raise InvalidRequest(f"the header {header} must be {form}", param=header) from None
