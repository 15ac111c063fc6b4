"""Tables, as SQLAlchemy rows. Times are seconds since the epoch (UTC), JSON columns hold plain objects.

A change here needs a script in ``migrations/versions``; a test compares the two.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Float, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Declarative base of every table."""


class ArtifactRow(Base):
    """One artifact; its folder is ``<root>/<id>`` and exists before the row does."""

    __tablename__ = "artifacts"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(96))
    kind: Mapped[str] = mapped_column(String(32), index=True)
    owner: Mapped[str | None] = mapped_column(String(128))
    created_at: Mapped[float] = mapped_column(Float)
    size: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"))
    manifest: Mapped[str] = mapped_column(Text)


class ArtifactNameRow(Base):
    """A name that points at an artifact; registering under the same name moves it."""

    __tablename__ = "artifact_names"

    name: Mapped[str] = mapped_column(String(96), primary_key=True)
    artifact_id: Mapped[str] = mapped_column(ForeignKey("artifacts.id", ondelete="CASCADE"), index=True)
    owner: Mapped[str | None] = mapped_column(String(128))


class ArtifactParentRow(Base):
    """``child`` was made from ``parent``, which therefore cannot be deleted before it."""

    __tablename__ = "artifact_parents"

    child: Mapped[str] = mapped_column(ForeignKey("artifacts.id", ondelete="CASCADE"), primary_key=True)
    parent: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)


class JobRow(Base):
    """One background job. ``sequence`` is the order of submission; ``attempt`` fences late reports."""

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_state_sequence", "state", "sequence"),)

    sequence: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    kind: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(String(96))
    owner: Mapped[str | None] = mapped_column(String(128))
    state: Mapped[str] = mapped_column(String(16))
    parameters: Mapped[dict[str, Any]] = mapped_column(JSON)
    inputs: Mapped[dict[str, str]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Float)
    started_at: Mapped[float | None] = mapped_column(Float)
    finished_at: Mapped[float | None] = mapped_column(Float)
    heartbeat_at: Mapped[float | None] = mapped_column(Float)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    attempts_allowed: Mapped[int] = mapped_column(Integer)
    priority: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    artifacts: Mapped[list[dict[str, str]]] = mapped_column(JSON, default=list)
    events: Mapped[int] = mapped_column(Integer, default=0)


class JobEventRow(Base):
    """What happened to a job, numbered from 1 within it, so that a client can go on where it stopped."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(16))
    at: Mapped[float] = mapped_column(Float)
    data: Mapped[dict[str, Any]] = mapped_column(JSON)


class ApiKeyRow(Base):
    """An issued key; ``digest`` is the SHA-256 of its secret in hex, the secret itself is not kept."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(96))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    owner: Mapped[str] = mapped_column(String(128))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    profile: Mapped[str | None] = mapped_column(ForeignKey("profiles.name"), index=True)
    limits: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Float)
    expires_at: Mapped[float | None] = mapped_column(Float)
    last_used_at: Mapped[float | None] = mapped_column(Float)


class ProfileRow(Base):
    """A named bundle of interventions; ``artifacts`` maps the names in ``content`` to the ids they are bound to."""

    __tablename__ = "profiles"

    name: Mapped[str] = mapped_column(String(96), primary_key=True)
    owner: Mapped[str] = mapped_column(String(128))
    shared: Mapped[bool] = mapped_column(Boolean)
    content: Mapped[dict[str, Any]] = mapped_column(JSON)
    artifacts: Mapped[dict[str, str]] = mapped_column(JSON)
    fits_every_prompt: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[float] = mapped_column(Float)
    updated_at: Mapped[float] = mapped_column(Float)


class PolicyRow(Base):
    """One version of the policy; the highest holds, the earlier ones tell what receipts refer to."""

    __tablename__ = "policies"

    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    document: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Float)
    created_by: Mapped[str] = mapped_column(String(128))


class AuditRow(Base):
    """One entry of the audit log. ``digest`` covers the entry and ``previous``, the digest before it; both in hex."""

    __tablename__ = "audit"

    sequence: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    at: Mapped[float] = mapped_column(Float)
    action: Mapped[str] = mapped_column(String(32), index=True)
    actor: Mapped[str] = mapped_column(String(128), index=True)
    request_id: Mapped[str | None] = mapped_column(String(128))
    detail: Mapped[str] = mapped_column(Text)
    previous: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64))
