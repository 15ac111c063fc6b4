"""What the artifact store reads and writes in the database, and who may."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from mappers.artifact import Manifest, canonical_json
from server.errors import Conflict
from server.registry.rows import ArtifactNameRow, ArtifactParentRow, ArtifactRow

NOBODY = ""
"""Owner of what was found on disk without a row; None, in contrast, is shared with everybody."""

NO_ARTIFACT = "none"
"""Where a name leads that there is not."""

_LISTED_IN_ERRORS = 20


def insert(
    session: Session,
    identity: str,
    manifest: Manifest,
    *,
    name: str,
    owner: str | None,
    now: float,
    alias: bool = True,
) -> ArtifactRow:
    """Writes the row if there is none, gives one that is nobody's to ``owner``, and moves the name."""
    row = session.get(ArtifactRow, identity)
    if row is None:
        row = ArtifactRow(
            id=identity,
            name=name,
            kind=manifest.kind,
            owner=owner,
            created_at=now,
            size=sum(entry.size for entry in manifest.files.values()),
            manifest=canonical_json(manifest).decode(),
        )
        session.add(row)
        session.flush()
        parents = {parent.id for parent in manifest.parents}
        session.add_all(ArtifactParentRow(child=identity, parent=parent) for parent in parents)
    row.name = name
    row.owner = owner if row.owner == NOBODY else row.owner
    if alias:
        session.merge(ArtifactNameRow(name=name, artifact_id=identity, owner=owner))
    return row


def find(session: Session, name_or_id: str) -> ArtifactRow | None:
    """The row with that id, else with that name: jobs and deletions go by ids, which no name may redirect."""
    row = session.get(ArtifactRow, name_or_id)
    if row is not None:
        return row
    alias = session.get(ArtifactNameRow, name_or_id)
    return None if alias is None else session.get(ArtifactRow, alias.artifact_id)


def visible(kind: str | None, owner: str | None) -> Select[Any]:
    """Rows of a kind (None: any) that ``owner`` may see (None: all)."""
    query = select(ArtifactRow)
    if kind is not None:
        query = query.where(ArtifactRow.kind == kind)
    if owner is not None:
        query = query.where(or_(ArtifactRow.owner == owner, ArtifactRow.owner.is_(None)))
    return query


def existing(session: Session, kind: str | None, owner: str | None) -> str:
    """The end of an error message: what could have been named."""
    what = {"switch": "switches", "activations": "activations"}.get(kind, f"{kind}s") if kind else "artifacts"
    seen = visible(kind, owner).subquery()
    query = select(ArtifactNameRow.name).join(seen, ArtifactNameRow.artifact_id == seen.c.id)
    names = session.scalars(query.order_by(ArtifactNameRow.name).limit(_LISTED_IN_ERRORS)).all()
    return f"there are these {what}: {', '.join(names)}" if names else f"there are no {what} yet"


def check_alias(session: Session, name: str, owner: str | None) -> None:
    """Raises Conflict where the name belongs to another owner."""
    alias = session.get(ArtifactNameRow, name)
    if alias is not None and alias.owner not in (None, NOBODY, owner):
        raise Conflict(f"the name {name!r} is in use: choose another", param="name")


def check_expected(session: Session, name: str, expected: str | None) -> None:
    """Raises Conflict unless ``name`` leads where the caller last saw it lead: to an id, or to ``NO_ARTIFACT``."""
    alias = session.get(ArtifactNameRow, name)
    now = NO_ARTIFACT if alias is None else alias.artifact_id
    if expected is not None and expected != now:
        raise Conflict(
            f"the name {name!r} leads to {now} by now, not to {expected}: look again before you move it",
            param="expected",
            code="name_moved",
        )


def check_owner(session: Session, identity: str, name: str, owner: str | None) -> None:
    """Raises Conflict where name or content belong to another owner."""
    check_alias(session, name, owner)
    row = session.get(ArtifactRow, identity)
    if row is not None and row.owner not in (None, NOBODY, owner):
        raise Conflict("this very artifact is stored already by another owner", param="name")


def check_childless(session: Session, row: ArtifactRow) -> None:
    """Raises Conflict where another artifact was made from this one."""
    query = select(ArtifactParentRow.child).where(ArtifactParentRow.parent == row.id).limit(_LISTED_IN_ERRORS)
    if children := session.scalars(query).all():
        raise Conflict(f"{row.name!r} cannot be deleted: {', '.join(children)} was made from it; delete that first")
