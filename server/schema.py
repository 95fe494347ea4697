"""The tables. Every change here is a migration in ``server/migrations/versions``.

Decisions, exposures, reward events, outcomes and omissions are the kinds of entries of an
experiment's log: they share one dense sequence, taken from ``experiments.next_seq``. Times are
microseconds since 1970, UTC. The tenant is in ``experiments``; everything else hangs on its id.
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
    Column("spec_revision", Integer, nullable=False, server_default="1"),
    Column("spec_version", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("tenant", "name", name="uq_experiments_name"),
    UniqueConstraint("tenant", "request_id", name="uq_experiments_request"),
)
"""``closed_seq``: of every decision up to this position the window has passed; where windows begin
at exposures, the time for one has. ``spec_revision``: number of the revision that ``spec`` is of;
``spec_version``: the first snapshot that belongs to it."""

revisions = Table(
    "revisions",
    metadata,
    Column("experiment_id", Integer, ForeignKey("experiments.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("version", BigInteger, nullable=False),
    Column("spec", Text, nullable=False),
    Column("request_id", String(128), nullable=False),
    Column("request_hash", LargeBinary(16), nullable=False),
    Column("made_by", String(128), nullable=False),
    Column("made_at", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    UniqueConstraint("experiment_id", "request_id", name="uq_revisions_request"),
    sqlite_with_rowid=False,
)
"""Every specification that an experiment had, from 1 without gaps; rows are never changed.

``version`` is the first snapshot that belongs to it: what snapshot v decided was decided with the
newest revision whose version is at most v. Edits of a draft all have version 0. The first has no
request id: it is that of the experiment."""

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
    Column("reporter", String(64), nullable=False, server_default="local"),
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
    Column("replaces", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("experiment_id", "decision_seq", "replaces", name="uq_outcomes_decision"),
    sqlite_with_rowid=False,
)
"""``replaces``: place of the decision's outcome before; 0: this is the first. So a decision has
one first outcome, and no outcome is replaced twice."""

exposures = Table(
    "exposures",
    metadata,
    Column("experiment_id", Integer, ForeignKey("experiments.id"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("event_id", String(128), nullable=False),
    Column("decision_seq", BigInteger, nullable=False),
    Column("exposed_at", BigInteger, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("late", Boolean, nullable=False),
    UniqueConstraint("experiment_id", "event_id", name="uq_exposures_id"),
    Index("ix_exposures_decision", "experiment_id", "decision_seq"),
    sqlite_with_rowid=False,
)
"""``late``: kept, and does not count; a decision has at most one that does."""

open_windows = Table(
    "open_windows",
    metadata,
    Column("experiment_id", Integer, ForeignKey("experiments.id"), primary_key=True),
    Column("decision_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("due_at", BigInteger, nullable=False),
    Index("ix_open_windows_due", "experiment_id", "due_at"),
    sqlite_with_rowid=False,
)
"""Windows that a confirmed exposure began and that have not closed: a list of work, no entries
of the log. Where windows begin at decisions, ``experiments.closed_seq`` is all there is."""

omissions = Table(
    "omissions",
    metadata,
    Column("experiment_id", Integer, ForeignKey("experiments.id"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("request_id", String(128), nullable=False),
    Column("after_seq", BigInteger, nullable=False),
    Column("reporter", String(64)),
    Column("since", BigInteger),
    Column("until", BigInteger),
    Column("reason", Text, nullable=False),
    Column("made_by", String(64), nullable=False),
    Column("made_at", BigInteger, nullable=False),
    UniqueConstraint("experiment_id", "request_id", name="uq_omissions_request"),
    sqlite_with_rowid=False,
)
"""What is not learned from any more, see ``server/omissions.py``."""

ENTRIES = (decisions, exposures, reward_events, outcomes, omissions)
"""The tables whose rows are the entries of the log."""

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

leases = Table(
    "leases",
    metadata,
    Column("experiment_id", Integer, ForeignKey("experiments.id"), primary_key=True),
    Column("holder", String(64), nullable=False),
    Column("until", BigInteger, nullable=False),
    Column("current_at", BigInteger, nullable=False),
    Index("ix_leases_holder", "holder"),
)
"""Which process learns for an experiment, until when, and up to which moment it has.

A lease only says who shall learn; what keeps two from doing so is ``experiments.epoch``, which
every change of holder raises and every write of a learner compares.
"""

tokens = Table(
    "tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("roles", String(64), nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    UniqueConstraint("hash", name="uq_tokens_hash"),
)
"""Who may call: the SHA-256 of each bearer token, never the token. Rows are never deleted."""

audit_log = Table(
    "audit_log",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("who", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("what", String(128), nullable=False),
    Column("before", Text),
    Column("after", Text),
    Column("reason", Text, nullable=False),
    sqlite_with_rowid=False,
)
"""Every administrative change, numbered from 1 in each tenant; rows are never changed."""

verdicts = Table(
    "verdicts",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("audit_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("request_id", String(128), nullable=False),
    Column("experiment", String(64), nullable=False),
    Column("spec_hash", String(64), nullable=False),
    Column("passed", Boolean, nullable=False),
    Column("override", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("made_by", String(128), nullable=False),
    Column("made_at", BigInteger, nullable=False),
    UniqueConstraint("tenant", "request_id", name="uq_verdicts_request"),
    Index("ix_verdicts_spec", "tenant", "spec_hash", "audit_seq"),
    sqlite_with_rowid=False,
)
"""What the gate found, by the hash of the specification it was made of, which need not be stored
yet. ``audit_seq`` is the place of its entry in the audit log; rows are never changed."""

bases = Table(
    "bases",
    metadata,
    Column("experiment_id", Integer, ForeignKey("experiments.id"), primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
    Column("made_at", BigInteger, nullable=False),
    Column("posterior", LargeBinary, nullable=False),
    Column("version", BigInteger, nullable=False, server_default="0"),
)
"""After entries were dropped: the place from which the log is whole, and the fold up to it.

``version``: the snapshot that it is, which tells the specification it was written with."""
