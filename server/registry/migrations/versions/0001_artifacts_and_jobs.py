"""Artifacts with their names and parents; jobs with their events."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_artifacts()
    _create_jobs()


def downgrade() -> None:
    for table in ("job_events", "jobs", "artifact_parents", "artifact_names", "artifacts"):
        op.drop_table(table)


def _create_artifacts() -> None:
    op.create_table(
        "artifacts",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(96), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False, index=True),
        sa.Column("owner", sa.String(128)),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("manifest", sa.Text, nullable=False),
    )
    op.create_table(
        "artifact_names",
        sa.Column("name", sa.String(96), primary_key=True),
        sa.Column(
            "artifact_id", sa.String(64), sa.ForeignKey("artifacts.id", ondelete="CASCADE"), nullable=False, index=True
        ),
        sa.Column("owner", sa.String(128)),
    )
    op.create_table(
        "artifact_parents",
        sa.Column("child", sa.String(64), sa.ForeignKey("artifacts.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("parent", sa.String(64), primary_key=True, index=True),
    )


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("name", sa.String(96), nullable=False),
        sa.Column("owner", sa.String(128)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("parameters", sa.JSON, nullable=False),
        sa.Column("inputs", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("started_at", sa.Float),
        sa.Column("finished_at", sa.Float),
        sa.Column("heartbeat_at", sa.Float),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("attempts_allowed", sa.Integer, nullable=False),
        sa.Column("progress", sa.JSON),
        sa.Column("error", sa.JSON),
        sa.Column("artifacts", sa.JSON, nullable=False),
        sa.Column("events", sa.Integer, nullable=False),
    )
    op.create_index("ix_jobs_state_sequence", "jobs", ["state", "sequence"])
    op.create_table(
        "job_events",
        sa.Column("job_id", sa.String(64), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
    )
