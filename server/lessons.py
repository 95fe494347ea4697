"""What the learner learns, in log order: outcomes, corrections, what omissions leave of them."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from sqlalchemy import and_, select
from sqlalchemy.engine import Connection

from bandit.experiment import Experiment
from bandit.kernels.compiling import Floats
from bandit.outcome import OutcomeRule
from bandit.outcome import RewardEvent as Event
from bandit.posterior import Posterior
from server import ledger, omissions
from server.omissions import Omission
from server.schema import AnyRow, decisions, outcomes, reward_events

FOLD_ROWS = 10_000


class Lesson(NamedTuple):
    """One outcome to learn from.

    Attributes
    ----------
    replaced
        What was learned of the same decision before, and leaves; NaN: nothing.
    """

    seq: int
    value: float
    action: int
    context: bytes
    decided_at: int
    replaced: float


class Lessons(NamedTuple):
    """A stretch of the log: what there is to learn, the last outcome read, how many were."""

    rows: list[Lesson]
    last: int
    read: int


def read(  # noqa: PLR0913  a stretch, and how it is read
    connection: Connection,
    experiment_id: int,
    rule: OutcomeRule,
    *,
    after: int,
    upto: int | None = None,
    left_out: Sequence[Omission] = (),
    limit: int = FOLD_ROWS,
) -> Lessons:
    """Read what there is to learn behind one place, up to another."""
    columns = outcomes.c
    chosen = (
        select(
            *(columns.seq, columns.value, columns.decision_seq, columns.closed_at),
            *(columns.replaces, decisions.c.action, decisions.c.context, decisions.c.decided_at),
        )
        .join_from(
            outcomes,
            decisions,
            and_(
                decisions.c.experiment_id == columns.experiment_id,
                decisions.c.seq == columns.decision_seq,
            ),
        )
        .where(
            columns.experiment_id == experiment_id,
            columns.seq > after,
            columns.is_learned,
            decisions.c.action.is_not(None),
        )
        .order_by(columns.seq)
        .limit(limit)
    )
    if upto is not None:
        chosen = chosen.where(columns.seq <= upto)
    rows = connection.execute(chosen).all()
    if not rows:
        return Lessons([], after, 0)
    if left_out:
        values = _what_is_left(connection, experiment_id, rule, rows, left_out)
    else:
        values = _replaced(connection, experiment_id, rows)
    lessons = [
        Lesson(row.seq, values[row.seq][0], row.action, row.context, row.decided_at, before)
        for row in rows
        if row.seq in values
        for before in [values[row.seq][1]]
    ]
    return Lessons(lessons, rows[-1].seq, len(rows))


def learn(experiment: Experiment, posterior: Posterior, lessons: Sequence[Lesson]) -> None:
    """Fold lessons into the posterior."""
    if not lessons:
        return
    replaced = np.array([lesson.replaced for lesson in lessons])
    experiment.learn(
        posterior,
        rows_of([lesson.context for lesson in lessons]),
        [lesson.action for lesson in lessons],
        np.array([lesson.value for lesson in lessons]),
        times=np.array([lesson.decided_at for lesson in lessons]) / 1e6,
        replaced=None if np.isnan(replaced).all() else replaced,
        seq=lessons[-1].seq,
    )


def rows_of(contexts: list[bytes]) -> Floats:
    """Read stored contexts, each a row of little-endian float64, shape (n, fields)."""
    return np.frombuffer(b"".join(contexts), dtype="<f8").reshape(len(contexts), -1).copy()


Values = dict[int, tuple[float, float]]
"""By the place of an outcome: what is learned, and what it replaces or NaN."""


def _replaced(connection: Connection, experiment_id: int, rows: Sequence[AnyRow]) -> Values:
    """Give the values as they are logged."""
    before: dict[int, float] = {}
    if any(row.replaces for row in rows):
        later = outcomes.alias("later")
        found = connection.execute(
            select(later.c.seq, outcomes.c.value)
            .join_from(
                later,
                outcomes,
                and_(
                    outcomes.c.experiment_id == later.c.experiment_id,
                    outcomes.c.seq == later.c.replaces,
                ),
            )
            .where(
                later.c.experiment_id == experiment_id,
                later.c.seq >= rows[0].seq,
                later.c.seq <= rows[-1].seq,
                later.c.replaces > 0,
            )
        )
        before = {row.seq: row.value for row in found}
    return {row.seq: (row.value, before.get(row.seq, math.nan)) for row in rows}


def _what_is_left(
    connection: Connection,
    experiment_id: int,
    rule: OutcomeRule,
    rows: Sequence[AnyRow],
    left_out: Sequence[Omission],
) -> Values:
    """Give the values that omissions leave; what they leave out has none.

    An outcome that is left out takes with it those that replace it. An outcome with events that
    are left out is computed from the others; if only such events speak, nothing is known.
    """
    seqs = sorted({row.decision_seq for row in rows})
    columns = outcomes.c
    chain = connection.execute(
        select(columns.seq, columns.decision_seq, columns.value, columns.closed_at)
        .where(
            columns.experiment_id == experiment_id,
            columns.decision_seq.in_(seqs),
            columns.seq <= rows[-1].seq,
        )
        .order_by(columns.decision_seq, columns.seq)
    ).all()
    told = _spoilt(connection, experiment_id, rule, rows, left_out)
    values: Values = {}
    for decision_seq, entries in groupby(chain, lambda entry: entry.decision_seq):
        before = math.nan
        for entry in entries:
            if any(o.has_outcome(entry) for o in left_out):
                break
            value = entry.value
            if decision_seq in told:
                value = told[decision_seq].at(entry, rule)
            if value is not None and value != before:
                values[entry.seq] = (value, before)
                before = value
    return values


class _Spoilt(NamedTuple):
    """A decision of which some events are left out: all that may count, and those."""

    start: int
    events: list[AnyRow]
    gone: set[int]

    def at(self, outcome: AnyRow, rule: OutcomeRule) -> float | None:
        """Compute an outcome from what is left of the events before it."""
        facts = {
            row.seq: Event(row.name, row.value, row.occurred_at)
            for row in self.events
            if row.seq < outcome.seq
        }
        counted = {seq for seq, fact in facts.items() if rule.takes(fact, self.start)}
        if not counted & self.gone:
            return float(outcome.value)
        kept = [fact for seq, fact in facts.items() if seq in counted - self.gone]
        return rule.outcome(kept, self.start) if kept else None


def _spoilt(
    connection: Connection,
    experiment_id: int,
    rule: OutcomeRule,
    rows: Sequence[AnyRow],
    left_out: Sequence[Omission],
) -> dict[int, _Spoilt]:
    """Find the decisions of which events are left out."""
    reporters = {o.scope.reporter for o in left_out if o.scope.reporter is not None}
    if not reporters:
        return {}
    touched = set(
        connection.execute(
            select(reward_events.c.decision_seq).where(
                reward_events.c.experiment_id == experiment_id,
                reward_events.c.decision_seq.in_({row.decision_seq for row in rows}),
                reward_events.c.reporter.in_(reporters),
            )
        ).scalars()
    )
    mine = [row for row in rows if row.decision_seq in touched]
    starts = ledger.starts_of(connection, experiment_id, rule, mine)
    events: dict[int, list[AnyRow]] = {}
    for event in ledger.counted_events(connection, experiment_id, rule, sorted(touched)):
        events.setdefault(event.decision_seq, []).append(event)
    return {
        seq: _Spoilt(starts[seq], found, gone)
        for seq, found in events.items()
        if (gone := omissions.events_left_out(found, left_out))
    }


class Refold:
    """The log folded anew, a stretch at a time, without what omissions leave out.

    Parameters
    ----------
    start
        The prior, or what retention left of the entries it dropped; taken over.
    left_out
        At least one omission, in log order: the log is folded up to the last one's place.

    Attributes
    ----------
    posterior
        The belief so far; at the end its place is the last omission's, so that it is known to
        have heard it.
    start, last
        Places where this begins and ends.
    """

    def __init__(self, start: Posterior, left_out: list[Omission]) -> None:
        self.posterior = start
        self.left_out = left_out
        self.start = start.seq
        self.last = left_out[-1].seq
        self._at = start.seq

    def step(self, connection: Connection, experiment: Experiment, experiment_id: int) -> bool:
        """Fold a stretch; give whether there may be more."""
        found = read(
            *(connection, experiment_id, experiment.spec.outcome),
            after=self._at,
            upto=self.last,
            left_out=self.left_out,
        )
        learn(experiment, self.posterior, found.rows)
        self._at = found.last
        if not found.read:
            self.posterior.seq = self.last
        return found.read > 0
