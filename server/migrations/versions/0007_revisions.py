"""Revisions: specifications may be edited, and every one is kept."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table; what every experiment was created with is its first revision."""
    op.add_column(
        "experiments", sa.Column("spec_revision", sa.Integer, nullable=False, server_default="1")
    )
    op.add_column(
        "experiments", sa.Column("spec_version", sa.BigInteger, nullable=False, server_default="0")
    )
    op.add_column("bases", sa.Column("version", sa.BigInteger, nullable=False, server_default="0"))
    revisions = op.create_table(
        "revisions",
        sa.Column("experiment_id", sa.Integer, sa.ForeignKey("experiments.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("request_hash", sa.LargeBinary(16), nullable=False),
        sa.Column("made_by", sa.String(128), nullable=False),
        sa.Column("made_at", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.UniqueConstraint("experiment_id", "request_id", name="uq_revisions_request"),
        sqlite_with_rowid=False,
    )
    experiments = sa.table("experiments", *map(sa.column, ("id", "spec", "created_at")))
    first = {
        "experiment_id": experiments.c.id,
        "number": sa.literal(1),
        "version": sa.literal(0),
        "spec": experiments.c.spec,
        "request_id": sa.literal(""),
        "request_hash": sa.literal(b"", sa.LargeBinary),
        "made_by": sa.literal(""),
        "made_at": experiments.c.created_at,
        "reason": sa.literal(""),
    }
    op.execute(sa.insert(revisions).from_select(list(first), sa.select(*first.values())))
