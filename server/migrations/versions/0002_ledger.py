"""The ledger: exposures, outcomes that replace others, who reported, and what is left out."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
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
    """Add what the ledger needs; what was logged before stays as it is."""
    op.add_column(
        "reward_events",
        sa.Column("reporter", sa.String(64), nullable=False, server_default="local"),
    )
    with op.batch_alter_table(
        "outcomes", recreate="auto", table_kwargs={"sqlite_with_rowid": False}
    ) as outcomes:
        outcomes.add_column(
            sa.Column("replaces", sa.BigInteger, nullable=False, server_default="0")
        )
        outcomes.drop_constraint("uq_outcomes_decision", type_="unique")
        outcomes.create_unique_constraint(
            "uq_outcomes_decision", ["experiment_id", "decision_seq", "replaces"]
        )
    op.create_table(
        "exposures",
        *_entry(
            sa.Column("event_id", sa.String(128), nullable=False),
            sa.Column("decision_seq", sa.BigInteger, nullable=False),
            sa.Column("exposed_at", sa.BigInteger, nullable=False),
            sa.Column("received_at", sa.BigInteger, nullable=False),
            sa.Column("late", sa.Boolean, nullable=False),
            sa.UniqueConstraint("experiment_id", "event_id", name="uq_exposures_id"),
        ),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_exposures_decision", "exposures", ["experiment_id", "decision_seq"])
    op.create_table(
        "open_windows",
        sa.Column("experiment_id", sa.Integer, sa.ForeignKey("experiments.id"), primary_key=True),
        sa.Column("decision_seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_open_windows_due", "open_windows", ["experiment_id", "due_at"])
    op.create_table(
        "omissions",
        *_entry(
            sa.Column("request_id", sa.String(128), nullable=False),
            sa.Column("after_seq", sa.BigInteger, nullable=False),
            sa.Column("reporter", sa.String(64)),
            sa.Column("since", sa.BigInteger),
            sa.Column("until", sa.BigInteger),
            sa.Column("reason", sa.Text, nullable=False),
            sa.Column("made_by", sa.String(64), nullable=False),
            sa.Column("made_at", sa.BigInteger, nullable=False),
            sa.UniqueConstraint("experiment_id", "request_id", name="uq_omissions_request"),
        ),
        sqlite_with_rowid=False,
    )
