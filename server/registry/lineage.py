"""What an artifact was made from, down to datasets and models, and what was made from it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from mappers.artifact import Manifest, ModelBinding, Parent
from server.registry.artifact_rows import visible
from server.registry.rows import ArtifactParentRow, ArtifactRow

MAX_ARTIFACTS = 1000


@dataclass(frozen=True, slots=True)
class Ancestor:
    """One artifact of a lineage. Where it is deleted, or not the caller's, only what its child says of it is known.

    ``models`` are those whose activations it holds or maps, by role (``target``, ``source``).
    """

    id: str
    name: str
    kind: str | None = None
    models: tuple[tuple[str, ModelBinding], ...] = ()
    parents: tuple[Parent, ...] = ()


@dataclass(frozen=True, slots=True)
class Lineage:
    """``ancestors`` in breadth-first order, the artifact itself first, each once; ``children`` are direct ones.

    ``complete`` is False where there are more than ``MAX_ARTIFACTS``.
    """

    ancestors: tuple[Ancestor, ...]
    children: tuple[Ancestor, ...]
    complete: bool


def lineage_of(session: Session, row: ArtifactRow, owner: str | None) -> Lineage:
    """The lineage as ``owner`` may see it (None: all of it)."""
    found = [_ancestor(row)]
    seen = {row.id}
    for child in found:  # which grows while it is read: breadth first
        for parent in child.parents:
            if parent.id not in seen and len(found) < MAX_ARTIFACTS:
                seen.add(parent.id)
                stored = session.scalar(visible(None, owner).where(ArtifactRow.id == parent.id))
                found.append(Ancestor(parent.id, parent.name) if stored is None else _ancestor(stored))
    made = select(ArtifactParentRow.child).where(ArtifactParentRow.parent == row.id)
    children = (
        visible(None, owner).where(ArtifactRow.id.in_(made)).order_by(ArtifactRow.created_at).limit(MAX_ARTIFACTS)
    )
    complete = {parent.id for one in found for parent in one.parents} <= seen
    return Lineage(tuple(found), tuple(_ancestor(one) for one in session.scalars(children)), complete)


def _ancestor(row: ArtifactRow) -> Ancestor:
    manifest = Manifest.model_validate_json(row.manifest)
    bindings = (("target", manifest.target), ("source", manifest.source))
    models = tuple((role, binding) for role, binding in bindings if binding is not None)
    return Ancestor(row.id, row.name, row.kind, models, manifest.parents)
