"""The data directory: who may read it, room, schema, artifacts, what profiles need, the audit chain. Reads only."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from alembic.script import ScriptDirectory
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from mappers.artifact import artifact_id, verify
from mappers.errors import ArtifactCorrupt
from server.data_dir import ARTIFACTS_FOLDER, DATABASE_FILE
from server.doctor.finding import Finding, size
from server.policy import audit
from server.registry.database import MIGRATIONS, Database
from server.registry.rows import ArtifactRow, ProfileRow

_LITTLE_ROOM: Final = 2 * 2**30
_OTHERS_MODE: Final = 0o077


def examine_data(data_dir: Path) -> Iterator[Finding]:
    """Findings about a data directory; one that is not there yet is fine."""
    if not data_dir.is_dir():
        yield Finding("data directory", "ok", f"{data_dir} is not there yet: serve makes it")
        return
    yield _access(data_dir)
    yield _room(data_dir)
    file = data_dir / DATABASE_FILE
    if not file.is_file():
        yield Finding("database", "ok", "none yet: serve makes it")
        return
    schema = _schema(file)
    yield schema
    if schema.status == "fail":
        return
    yield _artifacts(data_dir / ARTIFACTS_FOLDER)
    if schema.status == "ok":
        yield from _contents(file)


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
        return Finding("disk", "warn", f"{size(free)} free", remedy)
    return Finding("disk", "ok", f"{size(free)} free")


def _schema(file: Path) -> Finding:
    """Whether the database is whole, and of this version's schema."""
    scripts = ScriptDirectory(str(MIGRATIONS))
    head = scripts.get_current_head()
    try:
        connection = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=5)
        try:
            (check,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        finally:
            connection.close()
    except (sqlite3.Error, TypeError) as error:
        return Finding("database", "fail", f"{file} cannot be read: {error}", "restore the folder from a backup")
    if check != "ok":
        return Finding("database", "fail", f"{file} is damaged: {check}", "restore the folder from a backup")
    if revision == head:
        return Finding("database", "ok", f"whole, schema {revision}")
    if revision in {script.revision for script in scripts.walk_revisions()}:
        remedy = "keep a copy of the folder, then start the server: it brings the schema up to date"
        return Finding("database", "warn", f"whole, schema {revision} of an older version (now {head})", remedy)
    remedy = "run the version of Interlock that wrote it, or a newer one"
    return Finding("database", "fail", f"schema {revision} is not known to this version ({head})", remedy)


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


def _contents(file: Path) -> Iterator[Finding]:
    database = Database(f"sqlite:///{file.as_uri()}?mode=ro&uri=true")
    try:
        yield _profiles(database)
        yield _audit(database)
    except SQLAlchemyError as error:
        reason = str(error).splitlines()[0]
        yield Finding("database", "fail", f"cannot be read: {reason}", "stop the server and run this again")
    finally:
        database.close()


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
