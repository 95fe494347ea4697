"""First schema: experiments, their log in three tables, snapshots."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _entry(*columns: sa.schema.SchemaItem) -> list[sa.schema.SchemaItem]:
    """Give the columns of a log table: its place in the experiment's sequence, and more."""
    return [
        sa.Column("experiment_id", sa.Integer, sa.ForeignKey("experiments.id"), primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        *columns,
    ]


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "facts",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_table(
        "experiments",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("next_seq", sa.BigInteger, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("closed_seq", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("tenant", "name", name="uq_experiments_name"),
        sa.UniqueConstraint("tenant", "request_id", name="uq_experiments_request"),
    )
    op.create_table(
        "decisions",
        *_entry(
            sa.Column("decision_id", sa.LargeBinary(16), nullable=False),
            sa.Column("request_id", sa.String(128), nullable=False),
            sa.Column("request_hash", sa.LargeBinary(16), nullable=False),
            sa.Column("customer", sa.LargeBinary(16), nullable=False),
            sa.Column("context", sa.LargeBinary, nullable=False),
            sa.Column("exclusions", sa.Text),
            sa.Column("time_zone", sa.String(64), nullable=False),
            sa.Column("action", sa.Integer),
            sa.Column("propensity", sa.Double, nullable=False),
            sa.Column("traffic_group", sa.SmallInteger, nullable=False),
            sa.Column("reason", sa.SmallInteger, nullable=False),
            sa.Column("snapshot_version", sa.BigInteger, nullable=False),
            sa.Column("decided_at", sa.BigInteger, nullable=False),
            sa.Column("propensities", sa.LargeBinary),
            sa.UniqueConstraint("experiment_id", "request_id", name="uq_decisions_request"),
            sa.UniqueConstraint("experiment_id", "decision_id", name="uq_decisions_id"),
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "reward_events",
        *_entry(
            sa.Column("event_id", sa.String(128), nullable=False),
            sa.Column("decision_seq", sa.BigInteger, nullable=False),
            sa.Column("name", sa.String(64), nullable=False),
            sa.Column("value", sa.Double, nullable=False),
            sa.Column("occurred_at", sa.BigInteger, nullable=False),
            sa.Column("received_at", sa.BigInteger, nullable=False),
            sa.Column("late", sa.Boolean, nullable=False),
            sa.UniqueConstraint("experiment_id", "event_id", name="uq_reward_events_id"),
        ),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_reward_events_decision", "reward_events", ["experiment_id", "decision_seq"])
    op.create_table(
        "outcomes",
        *_entry(
            sa.Column("decision_seq", sa.BigInteger, nullable=False),
            sa.Column("value", sa.Double, nullable=False),
            sa.Column("closed_at", sa.BigInteger, nullable=False),
            sa.Column("is_learned", sa.Boolean, nullable=False),
            sa.UniqueConstraint("experiment_id", "decision_seq", name="uq_outcomes_decision"),
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "snapshots",
        sa.Column("experiment_id", sa.Integer, sa.ForeignKey("experiments.id"), primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("outcomes", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("published_at", sa.BigInteger, nullable=False),
        sa.Column("posterior", sa.LargeBinary),
    )
