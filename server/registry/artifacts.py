"""Artifacts: content-addressed folders ``<root>/<id>`` with movable names in the database.

A folder appears under its id by one rename, after every digest in its manifest was checked and everything was synced;
its row comes last. A crash therefore leaves a complete artifact or none, and :meth:`ArtifactStore.reconcile` puts the
two in agreement at start.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from mappers.artifact import MANIFEST_FILE, Manifest, artifact_id, verify
from mappers.errors import ArtifactCorrupt
from server.errors import InvalidRequest, NotFound
from server.registry.artifact_rows import (
    NOBODY,
    check_alias,
    check_childless,
    check_expected,
    check_owner,
    existing,
    find,
    insert,
    visible,
)
from server.registry.database import Database
from server.registry.garbage import garbage
from server.registry.lineage import Lineage, lineage_of
from server.registry.names import check_name
from server.registry.rows import ArtifactNameRow, ArtifactRow

_STAGING = ".staging"


@dataclass(frozen=True, slots=True)
class ArtifactRecord:
    """A stored artifact. ``name`` is the alias it was found by, else the one it was last registered under.

    ``size`` counts the bytes of its files. ``owner`` None means that everybody may see it, ``NOBODY`` that its row was
    lost: only who sees everything sees it, and it goes to the first who registers the same content.
    """

    id: str
    name: str
    kind: str
    path: Path
    manifest: Manifest
    created_at: float
    owner: str | None
    size: int


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What :meth:`ArtifactStore.reconcile` did: ids of rows without folder, of folders without row, bad folders."""

    removed: tuple[str, ...] = ()
    adopted: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ArtifactChange:
    """An artifact was registered under ``name``, given it, lost it, or was deleted.

    ``by`` is the owner who did it, None nobody known.
    """

    kind: Literal["artifact.registered", "artifact.deleted", "artifact.named", "artifact.unnamed"]
    id: str
    name: str
    by: str | None


OnChange = Callable[[Session, ArtifactChange], None]


def _ignored(_session: Session, _change: ArtifactChange) -> None:
    pass


class ArtifactStore:
    """All artifacts of one server. Thread-safe. ``clock`` gives seconds since the epoch.

    ``on_change`` is called inside the transaction of each change: if it raises, there is none.
    """

    def __init__(
        self, root: Path, database: Database, *, clock: Callable[[], float], on_change: OnChange = _ignored
    ) -> None:
        self._root = root
        self._database = database
        self._clock = clock
        self._on_change = on_change
        self._lock = threading.Lock()

    def new_staging(self) -> Path:
        """A fresh empty folder on the store's own file system; what is left in it goes at the next start."""
        staging = self._root / _STAGING
        staging.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=staging))

    def register(self, folder: Path, *, name: str, owner: str | None, expected: str | None = None) -> ArtifactRecord:
        """Moves a staged folder into the store and points ``name`` at it.

        Registering the same content again moves the name only. ``expected`` as for :meth:`point`. Raises
        ArtifactCorrupt where files and manifest disagree, InvalidRequest for a bad name, Conflict where name or content
        belong to another owner.
        """
        check_name(name)
        manifest = _verify_folder(folder)
        identity = artifact_id(manifest)
        with self._lock, self._database.write() as session:
            check_owner(session, identity, name, owner)
            check_expected(session, name, expected)
            self._on_change(session, ArtifactChange("artifact.registered", identity, name, owner))
            self._move_in(folder, identity)
            row = insert(session, identity, manifest, name=name, owner=owner, now=self._clock())
            return self._record(row, name)

    def check_name(self, name: str, owner: str | None) -> None:
        """Raises InvalidRequest for a bad name and Conflict for one that belongs to another owner."""
        check_name(name)
        with self._database.read() as session:
            check_alias(session, name, owner)

    def get(
        self, name_or_id: str, *, kind: str | None = None, owner: str | None = None, param: str | None = None
    ) -> ArtifactRecord:
        """The artifact with that name or id; ``owner`` None sees all, otherwise only its own and the unowned.

        Raises NotFound, naming what there is, and InvalidRequest where it is of another kind than ``kind``; both name
        the request's field ``param``.
        """
        with self._database.read() as session:
            found = find(session, name_or_id)
            if found is None or (owner is not None and found.owner not in (None, owner)):
                raise NotFound(
                    f"there is no artifact {name_or_id[:96]!r}; {existing(session, kind, owner)}", param=param
                )
            if kind is not None and found.kind != kind:
                raise InvalidRequest(
                    f"{name_or_id[:96]!r} is a {found.kind}, not a {kind}; {existing(session, kind, owner)}",
                    param=param,
                )
            return self._record(found, found.name if name_or_id == found.id else name_or_id)

    def list(self, kind: str | None = None, *, owner: str | None = None) -> list[ArtifactRecord]:
        """All artifacts, newest first; ``kind`` and ``owner`` as in :meth:`get`.

        One whose name has moved on to another artifact goes by its id.
        """
        query = visible(kind, owner).order_by(ArtifactRow.created_at.desc(), ArtifactRow.id)
        with self._database.read() as session:
            names = {row.name: row.artifact_id for row in session.scalars(select(ArtifactNameRow))}
            rows = session.scalars(query)
            return [self._record(row, row.name if names.get(row.name) == row.id else row.id) for row in rows]

    def names_of(self, identity: str) -> tuple[frozenset[str], frozenset[str]]:
        """The names that lead to an artifact now, and those it was registered under or has in its manifest."""
        with self._database.read() as session:
            aliases = session.scalars(select(ArtifactNameRow.name).where(ArtifactNameRow.artifact_id == identity)).all()
            row = session.get(ArtifactRow, identity)
            others = () if row is None else (row.name, Manifest.model_validate_json(row.manifest).name)
        return frozenset(aliases), frozenset(others)

    def point(
        self, name: str, identity: str, *, by: str | None, everybody: bool = False, expected: str | None = None
    ) -> ArtifactRecord:
        """Makes ``name`` lead to the artifact with that id, wherever it led before; a new one belongs to ``by``.

        ``expected`` is the id that it has to lead to until now, ``NO_ARTIFACT`` for a name that must be new, None where
        that does not matter. Raises NotFound, InvalidRequest for a bad name, Conflict for one that leads elsewhere by
        now and for another owner's, unless ``everybody``'s may be moved.
        """
        check_name(name)
        with self._lock, self._database.write() as session:
            row = self._row(session, identity)
            if not everybody:
                check_alias(session, name, by)
            check_expected(session, name, expected)
            self._on_change(session, ArtifactChange("artifact.named", identity, name, by))
            alias = session.get(ArtifactNameRow, name) or ArtifactNameRow(name=name, owner=by)
            alias.artifact_id = identity
            session.add(alias)
            return self._record(row, name)

    def unname(self, name: str, identity: str, *, by: str | None, everybody: bool = False) -> None:
        """Takes the name from the artifact, which stays; raises NotFound where it does not lead there (any more).

        Raises Conflict for a name of another owner than ``by``, unless ``everybody``'s may be taken.
        """
        with self._lock, self._database.write() as session:
            alias = session.get(ArtifactNameRow, name)
            if alias is None or alias.artifact_id != identity:
                raise NotFound(f"{identity[:96]!r} has no name {name[:96]!r}", param="alias")
            if not everybody:
                check_alias(session, name, by)
            self._on_change(session, ArtifactChange("artifact.unnamed", identity, name, by))
            session.delete(alias)

    def lineage(self, identity: str, *, owner: str | None = None) -> Lineage:
        """What the artifact was made from, and from it; ``owner`` None sees all. Raises NotFound."""
        with self._database.read() as session:
            return lineage_of(session, self._row(session, identity), owner)

    def collect(
        self, in_use: Set[str], *, older_than_s: float, by: str | None, dry_run: bool
    ) -> Sequence[ArtifactRecord]:
        """Removes what nothing refers to (:mod:`server.registry.garbage`) and returns it; ``dry_run`` removes nothing.

        ``in_use`` are ids that the running server holds. What is registered or referred to while this runs waits for
        it, or is seen by it.
        """
        with self._lock, self._database.write() as session:
            rows = garbage(session, in_use, self._clock() - older_than_s)
            taken = [self._record(row, row.name) for row in rows]
            graves = [] if dry_run else [self._remove(session, row, by) for row in rows]
        for grave in graves:
            shutil.rmtree(grave)
        return taken

    def delete(self, name_or_id: str, *, by: str | None = None) -> None:
        """Removes an artifact and its names; raises NotFound, or Conflict while another was made from it."""
        with self._lock, self._database.write() as session:
            row = find(session, name_or_id)
            if row is None:
                raise NotFound(f"there is no artifact {name_or_id[:96]!r}; {existing(session, None, None)}")
            check_childless(session, row)
            grave = self._remove(session, row, by)
        shutil.rmtree(grave)

    def reconcile(self) -> Reconciliation:
        """At start: drops rows without folder, adopts whole folders without row, empties the staging area.

        An adopted artifact belongs to ``NOBODY``, and has a name only if its manifest's is free. A folder that is not
        what its id says is left where it is, unlisted, and reported.
        """
        shutil.rmtree(self._root / _STAGING, ignore_errors=True)
        self._root.mkdir(parents=True, exist_ok=True)
        with self._lock, self._database.write() as session:
            rows = set(session.scalars(select(ArtifactRow.id)))
            folders = {entry.name for entry in self._root.iterdir() if entry.is_dir() and not entry.is_symlink()}
            removed = sorted(rows - folders)
            session.execute(delete(ArtifactRow).where(ArtifactRow.id.in_(removed)))
            unknown = sorted(folders - rows)
            adopted = [name for name in unknown if self._adopt(session, name)]
        rejected = [name for name in unknown if name not in adopted]
        return Reconciliation(tuple(removed), tuple(adopted), tuple(rejected))

    def _remove(self, session: Session, row: ArtifactRow, by: str | None) -> Path:
        """Takes row and folder out of sight; gives the folder to delete once that is committed."""
        self._on_change(session, ArtifactChange("artifact.deleted", row.id, row.name, by))
        grave = self.new_staging()
        if (self._root / row.id).exists():
            (self._root / row.id).rename(grave / "deleted")
        session.delete(row)
        return grave

    def _row(self, session: Session, identity: str) -> ArtifactRow:
        row = session.get(ArtifactRow, identity)
        if row is None:
            raise NotFound(f"there is no artifact {identity[:96]!r}; {existing(session, None, None)}")
        return row

    def _adopt(self, session: Session, identity: str) -> bool:
        try:
            manifest = _verify_folder(self._root / identity)
        except ArtifactCorrupt:
            return False
        if artifact_id(manifest) != identity:
            return False
        taken = session.get(ArtifactNameRow, manifest.name) is not None
        insert(session, identity, manifest, name=manifest.name, owner=NOBODY, now=self._clock(), alias=not taken)
        return True

    def _move_in(self, folder: Path, identity: str) -> None:
        """The staged folder becomes ``<root>/<id>``; a whole one that is there already stays."""
        target = self._root / identity
        if target.exists():
            try:
                _verify_folder(target)
            except ArtifactCorrupt:
                target.rename(self.new_staging() / "corrupt")
            else:
                shutil.rmtree(folder)
                return
        for path in (*folder.iterdir(), folder):
            _sync(path)
        folder.rename(target)
        _sync(self._root)

    def _record(self, row: ArtifactRow, name: str) -> ArtifactRecord:
        return ArtifactRecord(
            id=row.id,
            name=name,
            kind=row.kind,
            path=self._root / row.id,
            manifest=Manifest.model_validate_json(row.manifest),
            created_at=row.created_at,
            owner=row.owner,
            size=row.size,
        )


def _verify_folder(folder: Path) -> Manifest:
    """The manifest of a folder that holds its files and nothing else; raises ArtifactCorrupt otherwise."""
    if folder.is_symlink() or any(path.is_symlink() or not path.is_file() for path in folder.iterdir()):
        raise ArtifactCorrupt("an artifact holds plain files only: no links, no folders")
    manifest = verify(folder)
    if extra := {path.name for path in folder.iterdir()} - {*manifest.files, MANIFEST_FILE}:
        raise ArtifactCorrupt(f"the manifest of {manifest.name!r} does not list {', '.join(sorted(extra))}")
    return manifest


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
