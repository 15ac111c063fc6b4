"""Strengths in units of a site's activation norm, made into plain ones before anything else looks at them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.api.schemas.interventions import SteeringIn
from server.errors import InvalidRequest

if TYPE_CHECKING:
    from server.registry.artifacts import ArtifactStore


def in_vector_units(
    artifacts: ArtifactStore, item: SteeringIn, *, artifact: str | None, owner: str | None, param: str
) -> tuple[SteeringIn, str | None]:
    """The same vector with its strength as a factor, and the artifact that the factor holds for.

    Strength ``s`` in norms adds a vector of ``s`` times the root mean square norm of the residual stream at its site,
    as the manifest has it: ``s * site_norm / |v|``. ``artifact`` is the id a profile is bound to; only what ``owner``
    may see is looked at (None: everything). Raises NotFound for a vector that is not there, InvalidRequest where its
    manifest or its sites leave the unit open.
    """
    if item.unit == "vector" or not isinstance(item.vector, str):
        return item, artifact
    record = artifacts.get(artifact or item.vector, kind="vector", owner=owner, param=f"{param}.vector")
    manifest = record.manifest
    sites = manifest.sites if item.sites is None else tuple(str(site.site()) for site in item.sites)
    if len(sites) != 1:
        raise InvalidRequest(
            f"the unit 'norm' is that of one site, and this acts at {', '.join(sites)}: send an item for each, with "
            "one site in 'sites'",
            param=f"{param}.sites",
        )
    norm, site_norm = manifest.norms.get(sites[0]), manifest.site_norms.get(sites[0])
    if not norm or not site_norm:
        raise InvalidRequest(
            f"the manifest of {record.name!r} has no norm of the activations at {sites[0]}, so the unit 'norm' means "
            "nothing there: extract or transfer the vector at that site, or leave 'unit' out",
            param=f"{param}.unit",
        )
    plain = item.model_copy(update={"strength": item.strength * site_norm / norm, "unit": "vector"})
    return plain, record.id
