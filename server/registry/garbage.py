"""Which artifacts nothing refers to any more, so that a collection may take them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Set

from pydantic import JsonValue
from sqlalchemy import select
from sqlalchemy.orm import Session

from server.registry.rows import (
    ApiKeyRow,
    ArtifactNameRow,
    ArtifactParentRow,
    ArtifactRow,
    JobRow,
    PolicyRow,
    ProfileRow,
)

_ID = re.compile("art_[0-9a-f]{24}")
_DONE = "succeeded"
"""The one state in which a job needs its inputs no more: every other one waits, runs, or can be resumed."""


def unreferenced(parents: Mapping[str, Collection[str]], roots: Set[str]) -> set[str]:
    """Of all artifacts (id -> ids it was made from): those that are neither roots nor what a root was made from."""
    reached: set[str] = set()
    ahead = list(roots)
    while ahead:
        one = ahead.pop()
        if one not in reached:
            reached.add(one)
            ahead.extend(parents.get(one, ()))
    return parents.keys() - reached


def garbage(session: Session, in_use: Set[str], before: float) -> list[ArtifactRow]:
    """Rows made before ``before`` (seconds since the epoch) that may go, children before their parents.

    ``in_use`` are the ids that the running server holds. Younger ones are roots: whoever made one may be about to
    refer to it.
    """
    rows = {row.id: row for row in session.scalars(select(ArtifactRow))}
    parents: dict[str, set[str]] = {identity: set() for identity in rows}
    for link in session.scalars(select(ArtifactParentRow)):
        parents[link.child].add(link.parent)
    young = {row.id for row in rows.values() if row.created_at >= before}
    doomed = unreferenced(parents, _roots(session) | in_use | young)
    return sorted((rows[one] for one in doomed), key=lambda row: (-row.created_at, row.id))


def _roots(session: Session) -> set[str]:
    """Ids that names, profiles, the policy, keys and unfinished jobs refer to; names in rules are roots as names."""
    found = set(session.scalars(select(ArtifactNameRow.artifact_id)))
    documents = [
        *session.scalars(select(ProfileRow.artifacts)),
        *session.scalars(select(ProfileRow.content)),
        *session.scalars(select(ApiKeyRow.limits)),
        *session.scalars(select(PolicyRow.document).order_by(PolicyRow.version.desc()).limit(1)),
    ]
    for job in session.scalars(select(JobRow).where(JobRow.state != _DONE)):
        documents += [job.inputs, job.parameters]
    for document in documents:
        found.update(_ids(document))
    return found


def _ids(value: JsonValue) -> Iterator[str]:
    """Every artifact id in a JSON value, keys of objects included."""
    if isinstance(value, str):
        if _ID.fullmatch(value):
            yield value
    elif isinstance(value, dict):
        yield from (one for item in value.items() for part in item for one in _ids(part))
    elif isinstance(value, list):
        yield from (one for part in value for one in _ids(part))
