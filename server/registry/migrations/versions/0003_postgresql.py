"""On PostgreSQL the audit log cannot be changed either, and an artifact may have more than 2 GiB."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    op.alter_column("artifacts", "size", type_=sa.BigInteger)
    op.execute(
        "CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only' USING ERRCODE = 'integrity_constraint_violation'; "
        "END $$"
    )
    for event in ("UPDATE", "DELETE", "TRUNCATE"):
        op.execute(
            f"CREATE TRIGGER audit_forbids_{event.lower()} BEFORE {event} ON audit "
            "EXECUTE FUNCTION audit_is_append_only()"
        )


def downgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for event in ("update", "delete", "truncate"):
        op.execute(f"DROP TRIGGER audit_forbids_{event} ON audit")
    op.execute("DROP FUNCTION audit_is_append_only")
    op.alter_column("artifacts", "size", type_=sa.Integer)
