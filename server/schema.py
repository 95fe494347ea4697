"""The tables. Every change here is a migration in ``server/migrations/versions``.

Decisions, reward events and outcomes are the three kinds of entries of an experiment's log:
they share one dense sequence, taken from ``experiments.next_seq``. Times are microseconds
since 1970, UTC. The tenant is in ``experiments``; everything else hangs on its id.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.engine import Row

metadata = MetaData()

AnyRow = Row[*tuple[Any, ...]]
"""A row read from any of the tables."""

facts = Table(
    "facts",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)
"""What is true of the whole database, such as the fingerprint of its secret."""

experiments = Table(
    "experiments",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("request_id", String(128), nullable=False),
    Column("spec", Text, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("next_seq", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("closed_seq", BigInteger, nullable=False),
    UniqueConstraint("tenant", "name", name="uq_experiments_name"),
    UniqueConstraint("tenant", "request_id", name="uq_experiments_request"),
)
"""``closed_seq``: every decision up to this position has had its outcome settled."""

decisions = Table(
    "decisions",
    metadata,
    Column("experiment_id", Integer, ForeignKey("experiments.id"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("decision_id", LargeBinary(16), nullable=False),
    Column("request_id", String(128), nullable=False),
    Column("request_hash", LargeBinary(16), nullable=False),
    Column("customer", LargeBinary(16), nullable=False),
    Column("context", LargeBinary, nullable=False),
    Column("exclusions", Text),
    Column("time_zone", String(64), nullable=False),
    Column("action", Integer),
    Column("propensity", Double, nullable=False),
    Column("traffic_group", SmallInteger, nullable=False),
    Column("reason", SmallInteger, nullable=False),
    Column("snapshot_version", BigInteger, nullable=False),
    Column("decided_at", BigInteger, nullable=False),
    Column("propensities", LargeBinary),
    UniqueConstraint("experiment_id", "request_id", name="uq_decisions_request"),
    UniqueConstraint("experiment_id", "decision_id", name="uq_decisions_id"),
    sqlite_with_rowid=False,
)
"""``context`` is the row of float64 in schema order; ``customer`` a keyed hash."""

reward_events = Table(
    "reward_events",
    metadata,
    Column("experiment_id", Integer, ForeignKey("experiments.id"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("event_id", String(128), nullable=False),
    Column("decision_seq", BigInteger, nullable=False),
    Column("name", String(64), nullable=False),
    Column("value", Double, nullable=False),
    Column("occurred_at", BigInteger, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("late", Boolean, nullable=False),
    UniqueConstraint("experiment_id", "event_id", name="uq_reward_events_id"),
    Index("ix_reward_events_decision", "experiment_id", "decision_seq"),
    sqlite_with_rowid=False,
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("experiment_id", Integer, ForeignKey("experiments.id"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("decision_seq", BigInteger, nullable=False),
    Column("value", Double, nullable=False),
    Column("closed_at", BigInteger, nullable=False),
    Column("is_learned", Boolean, nullable=False),
    UniqueConstraint("experiment_id", "decision_seq", name="uq_outcomes_decision"),
    sqlite_with_rowid=False,
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("experiment_id", Integer, ForeignKey("experiments.id"), primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    Column("outcomes", BigInteger, nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
    Column("published_at", BigInteger, nullable=False),
    Column("posterior", LargeBinary),
)
"""Every publication keeps its digest; only the newest keep the posterior itself."""

bases = Table(
    "bases",
    metadata,
    Column("experiment_id", Integer, ForeignKey("experiments.id"), primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
    Column("made_at", BigInteger, nullable=False),
    Column("posterior", LargeBinary, nullable=False),
)
"""After entries were dropped: the place from which the log is whole, and the fold up to it."""
