"""Verdicts of the gate."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "verdicts",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("audit_seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("experiment", sa.String(64), nullable=False),
        sa.Column("spec_hash", sa.String(64), nullable=False),
        sa.Column("passed", sa.Boolean, nullable=False),
        sa.Column("override", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("made_by", sa.String(128), nullable=False),
        sa.Column("made_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("tenant", "request_id", name="uq_verdicts_request"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_verdicts_spec", "verdicts", ["tenant", "spec_hash", "audit_seq"])
