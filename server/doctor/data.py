"""The data directory: who may read it, room, schema, artifacts, what profiles need, the audit chain. Reads only."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from mappers.artifact import artifact_id, verify
from mappers.errors import ArtifactCorrupt
from server.canary import kept_canaries
from server.data_dir import ARTIFACTS_FOLDER, CANARIES_FOLDER, DATABASE_FILE
from server.doctor.finding import Finding
from server.policy import audit
from server.registry.database import Database, DatabaseError, known_revisions
from server.registry.rows import ArtifactRow, ProfileRow
from server.sizes import binary_size

_LITTLE_ROOM: Final = 2 * 2**30
_OTHERS_MODE: Final = 0o077


def examine_data(data_dir: Path, database_url: str | None = None) -> Iterator[Finding]:
    """Findings about a data directory, and the database at ``database_url`` instead of the file in it.

    A directory that is not there yet is fine.
    """
    if not data_dir.is_dir():
        yield Finding("data directory", "ok", f"{data_dir} is not there yet: serve makes it")
    else:
        yield _access(data_dir)
        yield _room(data_dir)
        yield _artifacts(data_dir / ARTIFACTS_FOLDER)
        yield _canaries(data_dir / CANARIES_FOLDER)
    file = data_dir / DATABASE_FILE
    if database_url is None:
        if not file.is_file():
            yield Finding("database", "ok", "none yet: serve makes it")
            return
        if (damage := _damage(file)) is not None:
            yield Finding("database", "fail", f"{file}: {damage}", "restore the folder from a backup")
            return
        database_url = f"sqlite:///{file.as_uri()}?mode=ro&uri=true"
    yield from _database(database_url)


def _access(data_dir: Path) -> Finding:
    mode = data_dir.stat().st_mode & 0o777
    found = f"{data_dir}, mode {mode:03o}"
    if mode & _OTHERS_MODE:
        return Finding("data directory", "warn", f"{found}: others may look into it", f"chmod 700 {data_dir}")
    return Finding("data directory", "ok", found)


def _room(data_dir: Path) -> Finding:
    free = shutil.disk_usage(data_dir).free
    if free < _LITTLE_ROOM:
        remedy = "make room, or move --data-dir: artifacts and checkpoints need it"
        return Finding("disk", "warn", f"{binary_size(free)} free", remedy)
    return Finding("disk", "ok", f"{binary_size(free)} free")


def _damage(file: Path) -> str | None:
    """What is wrong with an SQLite file, None where it is whole."""
    try:
        connection = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=5)
        try:
            (check,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return f"it cannot be read: {error}"
    return None if check == "ok" else str(check)


def _artifacts(root: Path) -> Finding:
    """Every digest is computed anew."""
    count, bad = 0, []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        count += 1
        try:
            whole = artifact_id(verify(folder)) == folder.name
        except ArtifactCorrupt:
            whole = False
        if not whole:
            bad.append(folder.name[:12])
    if bad:
        remedy = "import them again, or train them again; the server does not use them as they are"
        return Finding(
            "artifacts", "fail", f"{len(bad)} of {count} are not what their ids say: {', '.join(bad)}", remedy
        )
    return Finding("artifacts", "ok", f"{count}, every digest as it should be")


def _canaries(folder: Path) -> Finding:
    """What was seen when the server last started."""
    canaries = dict(kept_canaries(folder))
    if broken := [name for name, canary in canaries.items() if canary is None]:
        return Finding("canaries", "warn", f"{broken[0]}.json cannot be read", "the next start writes it anew")
    failed = {name: canary.failed for name, canary in canaries.items() if canary is not None and canary.failed}
    if failed:
        name, reason = next(iter(failed.items()))
        identity, _, served = name.partition(".")
        remedy = "delete the artifact, or do what the reason says; until then requests that name it are refused"
        return Finding(
            "canaries", "fail", f"{len(failed)} of {len(canaries)} failed: {identity[:12]} ({served}): {reason}", remedy
        )
    return Finding("canaries", "ok", f"{len(canaries)}, as they were at first" if canaries else "none yet")


def _database(url: str) -> Iterator[Finding]:
    try:
        database = Database(url)
    except DatabaseError as error:
        yield Finding("database", "fail", error.message, "correct --database-url")
        return
    try:
        schema = _schema(database)
        yield schema
        if schema.status == "ok":
            yield _profiles(database)
            yield _audit(database)
    except SQLAlchemyError as error:
        reason = str(error).splitlines()[0]
        yield Finding("database", "fail", f"it cannot be read: {reason}", "start it, or correct --database-url")
    finally:
        database.close()


def _schema(database: Database) -> Finding:
    revision, known = database.revision(), known_revisions()
    head = known[0]
    if revision == head:
        return Finding("database", "ok", f"schema {revision}, this version's")
    if revision is None:
        return Finding("database", "ok", "empty: serve makes the tables")
    if revision in known:
        remedy = "keep a copy of the data, then start the server: it brings the schema up to date"
        return Finding("database", "warn", f"schema {revision} of an older version (now {head})", remedy)
    remedy = "run the version of Interlock that wrote it, or a newer one"
    return Finding("database", "fail", f"schema {revision} is not known to this version ({head})", remedy)


def _profiles(database: Database) -> Finding:
    """Whether every artifact is there that a profile is bound to."""
    with database.read() as session:
        there = set(session.scalars(select(ArtifactRow.id)))
        profiles = {row.name: row.artifacts for row in session.scalars(select(ProfileRow))}
    broken = [
        f"{profile} ({name})"
        for profile, bound in profiles.items()
        for name, identity in bound.items()
        if identity not in there
    ]
    if broken:
        remedy = "import what is missing, or write these profiles again: requests that use them are refused"
        return Finding("profiles", "fail", f"artifacts are gone: {', '.join(broken)}", remedy)
    return Finding("profiles", "ok", f"{len(profiles)}, every artifact of theirs is there")


def _audit(database: Database) -> Finding:
    found = audit.verify(database)
    if found.problem is None:
        return Finding("audit log", "ok", f"{found.entries} entries, the chain holds")
    remedy = "keep a copy of the folder and find out who wrote to the database: `interlock audit verify` shows more"
    return Finding("audit log", "fail", found.problem, remedy)
