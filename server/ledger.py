"""What is reported of decisions, and the outcomes that follow: the ledger.

Reward events and exposures are facts that come in any order, twice, early or late. All are kept.
An outcome is an entry of its own, computed from the facts before it; a fact that comes too late
changes it by another outcome that replaces it, where the experiment says so. Nothing is edited.

A window begins at the decision, or at the exposure that was confirmed, and then closes on time
or by a terminal event. What became of a fact depends only on the entries before it and on the
clock, never on who shared its transaction.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import and_, bindparam, delete, func, select, update
from sqlalchemy.engine import Connection

from bandit.errors import BanditError, ConflictError, NotFoundError
from bandit.outcome import OutcomeRule
from bandit.outcome import RewardEvent as Event
from server.prepared import Append, Lookup, Prepared
from server.schema import (
    AnyRow,
    decisions,
    experiments,
    exposures,
    open_windows,
    outcomes,
    reward_events,
)
from server.storage import LEARNED_REASONS, EventRow, ExposureRow, Recorded, take_seq

_LOCK = Prepared(
    update(experiments)
    .where(experiments.c.id == bindparam("the_id"))
    .values(next_seq=experiments.c.next_seq)
    .returning(experiments.c.next_seq, experiments.c.closed_seq),
    ["the_id"],
)
_FIND_DECISIONS = Lookup(
    select(
        *(decisions.c.decision_id, decisions.c.seq, decisions.c.decided_at),
        *(decisions.c.reason, decisions.c.action),
    ).where(
        decisions.c.experiment_id == bindparam("the_id"),
        decisions.c.decision_id.in_(bindparam("keys", expanding=True)),
    ),
    ["the_id"],
)
_FIND_EVENTS, _FIND_EXPOSURES = (
    Lookup(
        select(table).where(
            table.c.experiment_id == bindparam("the_id"),
            table.c.event_id.in_(bindparam("keys", expanding=True)),
        ),
        ["the_id"],
    )
    for table in (reward_events, exposures)
)
_FIND_OUTCOMES = Lookup(
    select(outcomes.c.decision_seq, outcomes.c.seq, outcomes.c.value)
    .where(
        outcomes.c.experiment_id == bindparam("the_id"),
        outcomes.c.decision_seq.in_(bindparam("keys", expanding=True)),
    )
    .order_by(outcomes.c.seq),
    ["the_id"],
)
_INSERT_EVENT = Append(reward_events)
_INSERT_EXPOSURE = Append(exposures)
_INSERT_OUTCOME = Append(outcomes)
_INSERT_WINDOW = Append(open_windows)


class Closed(NamedTuple):
    """What settling outcomes did: decisions settled, outcomes to learn from, next due time."""

    settled: int
    learned: int
    next_due: int | None


class Newest(NamedTuple):
    """Place and value of a decision's newest outcome."""

    seq: int
    value: float


class _Standing:
    """How far a decision is, while facts about it are appended.

    Attributes
    ----------
    start
        Where its window begins; None: it was not shown yet.
    exposed_at
        Of the exposure that counts.
    is_open
        Whether a fact may still come on time.
    fresh
        Facts of this batch that may count.
    """

    __slots__ = (
        *("decided_at", "exposed_at", "fresh", "is_learned", "is_open", "is_sent"),
        *("newest", "seq", "start"),
    )

    def __init__(self, decision: AnyRow) -> None:
        _, self.seq, self.decided_at, reason, action = decision
        self.is_learned = reason in LEARNED_REASONS
        self.is_sent = action is not None
        self.start: int | None = self.decided_at
        self.exposed_at: int | None = None
        self.is_open = True
        self.newest: Newest | None = None
        self.fresh: list[Event] = []


def append_events(
    connection: Connection,
    experiment_id: int,
    rule: OutcomeRule,
    events: Sequence[EventRow],
    now: int,
) -> list[Recorded | BanditError]:
    """Append reward events; close outcomes that a terminal event ends, correct those it may.

    Duplicates are absorbed; an unknown decision or a reused id is refused alone.
    """
    batch = _Batch(connection, experiment_id, rule, now)
    batch.look_up({e.decision_id for e in events})
    known = {
        r.event_id: ((r.decision_seq, r.name, r.value), r.seq, r.late)
        for r in _FIND_EVENTS.find(connection, [e.event_id for e in events], experiment_id)
    }
    results = [batch.tell(event, known) for event in events]
    batch.store()
    return results


def append_exposures(
    connection: Connection,
    experiment_id: int,
    rule: OutcomeRule,
    rows: Sequence[ExposureRow],
    now: int,
) -> list[Recorded | BanditError]:
    """Append exposures; the first that counts begins the window of its decision.

    Duplicates are absorbed; an unknown decision or a reused id is refused alone.
    """
    batch = _Batch(connection, experiment_id, rule, now)
    batch.look_up({e.decision_id for e in rows}, exposed=True)
    known = {
        r.event_id: ((r.decision_seq,), r.seq, r.late)
        for r in _FIND_EXPOSURES.find(connection, [e.event_id for e in rows], experiment_id)
    }
    results = [batch.show(row, known) for row in rows]
    batch.store()
    return results


class _Batch:
    """Facts that are appended together; each finds what those before it left."""

    def __init__(
        self, connection: Connection, experiment_id: int, rule: OutcomeRule, now: int
    ) -> None:
        self._connection = connection
        self._id = experiment_id
        self._rule = rule
        self._now = now
        locked = _LOCK.execute(connection, experiment_id)
        if not locked:  # the lock comes first, so that nothing below changes meanwhile
            raise NotFoundError(f"no experiment {experiment_id}")
        self._first: int = locked[0][0]
        self._closed_seq: int = locked[0][1]
        self._seq = self._first
        self._standings: dict[bytes, _Standing] = {}
        self._past: dict[int, list[Event]] | None = None
        self._events: list[tuple[Any, ...]] = []
        self._exposures: list[tuple[Any, ...]] = []
        self._outcomes: list[tuple[Any, ...]] = []
        self._begun: dict[int, int] = {}
        self._ended: list[int] = []

    def look_up(self, ids: Collection[bytes], *, exposed: bool = False) -> None:
        """Read how far the decisions are."""
        found = _FIND_DECISIONS.find(self._connection, ids, self._id)
        self._standings = {row.decision_id: _Standing(row) for row in found}
        seqs = [s.seq for s in self._standings.values()]
        newest = newest_outcomes(self._connection, self._id, seqs)
        for standing in self._standings.values():
            seq = standing.seq
            standing.newest = newest.get(seq)
            standing.is_open = standing.newest is None and seq > self._closed_seq
        if exposed or self._rule.is_confirmed:
            self._look_up_exposures(seqs)

    def _look_up_exposures(self, seqs: Sequence[int]) -> None:
        shown = exposed_at(self._connection, self._id, seqs)
        mine = (open_windows.c.experiment_id == self._id, open_windows.c.decision_seq.in_(seqs))
        running = set(
            self._connection.execute(select(open_windows.c.decision_seq).where(*mine)).scalars()
        )
        for standing in self._standings.values():
            seq = standing.seq
            standing.exposed_at = shown.get(seq)
            if not self._rule.is_confirmed:
                continue
            if standing.is_sent:
                standing.start = standing.exposed_at
            if standing.exposed_at is not None:
                standing.is_open = seq in running
            elif seq in running:
                standing.is_open = True

    def tell(self, event: EventRow, known: "Known") -> Recorded | BanditError:
        """Append one reward event and what follows from it."""
        event_id, decision_id, name, value, occurred_at, received_at, reporter = event
        standing = self._standings.get(decision_id)
        if standing is None:
            return NotFoundError("no such decision in this experiment", field="decision_id")
        decision_seq = standing.seq
        content = (decision_seq, name, value)
        if (before := known.get(event_id)) is not None:
            return _repeated(event_id, content, before)
        fact = Event(name, value, occurred_at)
        rule, start = self._rule, standing.start
        if start is None:
            late = not standing.is_open or not rule.may_count(fact, standing.decided_at)
        else:
            late = not standing.is_open or not rule.counts(fact, start)
        corrects = late and start is not None and rule.corrects(fact, start)
        seq = self._seq
        self._events.append(
            (self._id, seq, event_id, *content, occurred_at, received_at, late, reporter)
        )
        known[event_id] = (content, seq, late)
        self._seq += 1
        if corrects or not late:
            standing.fresh.append(fact)
        ends = not late and start is not None and rule.by_name[name].terminal
        if ends or (corrects and not standing.is_open):
            self._settle(standing)
        return Recorded(seq, late, False, corrects)  # noqa: FBT003  late, duplicate, corrects

    def show(self, row: ExposureRow, known: "Known") -> Recorded | BanditError:
        """Append one exposure and what follows from it."""
        standing = self._standings.get(row.decision_id)
        if standing is None:
            return NotFoundError("no such decision in this experiment", field="decision_id")
        content = (standing.seq,)
        if (before := known.get(row.event_id)) is not None:
            return _repeated(row.event_id, content, before)
        rule = self._rule
        is_needed = rule.is_confirmed and standing.is_sent
        late = (
            standing.exposed_at is not None
            or (rule.is_confirmed and not (is_needed and standing.is_open))
            or not rule.is_exposure(row.exposed_at, standing.decided_at)
        )
        times = (row.exposed_at, row.received_at)
        self._exposures.append((self._id, self._seq, row.event_id, *content, *times, late))
        known[row.event_id] = (content, self._seq, late)
        recorded = Recorded(self._seq, late=late, duplicate=False)
        self._seq += 1
        if not late:
            standing.exposed_at = row.exposed_at
            if is_needed:
                self._begin(standing, row.exposed_at)
        return recorded

    def _begin(self, standing: _Standing, start: int) -> None:
        """Let a window begin; a terminal event that came before ends it at once."""
        rule = self._rule
        standing.start = start
        ended = any(
            rule.by_name[fact.name].terminal and rule.counts(fact, start)
            for fact in self._facts(standing)
        )
        if ended:
            self._settle(standing)
        else:
            self._begun[standing.seq] = start + rule.window_us

    def _facts(self, standing: _Standing) -> list[Event]:
        """Give the facts about a decision so far; read when the first is needed."""
        if self._past is None:
            seqs = [s.seq for s in self._standings.values()]
            self._past = facts_of(self._connection, self._id, self._rule, seqs)
        return [*self._past.get(standing.seq, []), *standing.fresh]

    def _settle(self, standing: _Standing) -> None:
        """Append the outcome as it is now, unless that is what the newest one says."""
        seq, start, newest = standing.seq, standing.start, standing.newest
        if start is None:
            return
        value = self._rule.outcome(self._facts(standing), start)
        if standing.is_open:
            standing.is_open = False
            self._begun.pop(seq, None)
            self._ended.append(seq)
        if value is None or (newest is not None and newest.value == value):
            return
        replaces = 0 if newest is None else newest.seq
        self._outcomes.append(
            (self._id, self._seq, seq, value, self._now, standing.is_learned, replaces)
        )
        standing.newest = Newest(self._seq, value)
        self._seq += 1

    def store(self) -> None:
        """Write all of it."""
        if self._seq == self._first:
            return
        take_seq(self._connection, self._id, self._seq - self._first)
        if self._events:
            _INSERT_EVENT.execute(self._connection, self._events)
        if self._exposures:
            _INSERT_EXPOSURE.execute(self._connection, self._exposures)
        if self._outcomes:
            _INSERT_OUTCOME.execute(self._connection, self._outcomes)
        if self._rule.is_confirmed:
            _end_windows(self._connection, self._id, self._ended)
            _begin_windows(self._connection, self._id, self._begun)


Known = dict[str, tuple[tuple[Any, ...], int, bool]]
"""Facts in the log by their id: content, place, and whether they were late."""


def _repeated(
    event_id: str, content: tuple[Any, ...], before: tuple[tuple[Any, ...], int, bool]
) -> Recorded | BanditError:
    """Absorb what is in the log; refuse other content under its id."""
    same, seq, late = before
    if content != same:
        return ConflictError(
            f"event id {event_id!r} was used before with other content", field="event_id"
        )
    return Recorded(seq, late=bool(late), duplicate=True)


def _begin_windows(connection: Connection, experiment_id: int, due: Mapping[int, int]) -> None:
    if due:
        _INSERT_WINDOW.execute(connection, [(experiment_id, seq, at) for seq, at in due.items()])


def _end_windows(connection: Connection, experiment_id: int, seqs: Sequence[int]) -> None:
    if seqs:
        mine = open_windows.c.experiment_id == experiment_id
        connection.execute(delete(open_windows).where(mine, open_windows.c.decision_seq.in_(seqs)))


# --- reading ------------------------------------------------------------------------------


def newest_outcomes(
    connection: Connection, experiment_id: int, seqs: Sequence[int]
) -> dict[int, Newest]:
    """Read the newest outcome of decisions, by their places."""
    found = _FIND_OUTCOMES.find(connection, seqs, experiment_id)
    return {row.decision_seq: Newest(row.seq, row.value) for row in found}


def replaced_by(
    connection: Connection, experiment_id: int, outcome_seqs: Sequence[int]
) -> dict[int, int]:
    """Give the place of the outcome before each, of the same decision; 0: it is the first."""
    columns, earlier = outcomes.c, outcomes.alias("earlier")
    found = connection.execute(
        select(columns.seq, func.coalesce(func.max(earlier.c.seq), 0).label("before"))
        .outerjoin_from(
            outcomes,
            earlier,
            and_(
                earlier.c.experiment_id == columns.experiment_id,
                earlier.c.decision_seq == columns.decision_seq,
                earlier.c.seq < columns.seq,
            ),
        )
        .where(columns.experiment_id == experiment_id, columns.seq.in_(outcome_seqs))
        .group_by(columns.seq)
    )
    return {row.seq: row.before for row in found}


def exposed_at(connection: Connection, experiment_id: int, seqs: Sequence[int]) -> dict[int, int]:
    """Read when decisions were shown, of those that were, by their places."""
    columns = exposures.c
    found = connection.execute(
        select(columns.decision_seq, columns.exposed_at).where(
            columns.experiment_id == experiment_id,
            columns.decision_seq.in_(seqs),
            columns.late.is_(False),
        )
    )
    return {row.decision_seq: row.exposed_at for row in found}


def starts_of(
    connection: Connection, experiment_id: int, rule: OutcomeRule, rows: Sequence[AnyRow]
) -> dict[int, int]:
    """Give where windows begin, of decisions that have one: rows with ``action, decided_at``.

    Rows name their decision by ``decision_seq``.
    """
    if not rule.is_confirmed:
        return {row.decision_seq: row.decided_at for row in rows}
    starts = exposed_at(connection, experiment_id, [row.decision_seq for row in rows])
    silent = {row.decision_seq: row.decided_at for row in rows if row.action is None}
    return {**starts, **silent}


def facts_of(
    connection: Connection, experiment_id: int, rule: OutcomeRule, decision_seqs: Sequence[int]
) -> dict[int, list[Event]]:
    """Read the events that may count, by the decision's place, in log order."""
    facts: dict[int, list[Event]] = {}
    for row in counted_events(connection, experiment_id, rule, decision_seqs):
        facts.setdefault(row.decision_seq, []).append(Event(row.name, row.value, row.occurred_at))
    return facts


def counted_events(
    connection: Connection, experiment_id: int, rule: OutcomeRule, decision_seqs: Sequence[int]
) -> Sequence[AnyRow]:
    """Read the rows of events that may count, in log order."""
    columns = reward_events.c
    chosen = select(reward_events).where(
        columns.experiment_id == experiment_id, columns.decision_seq.in_(decision_seqs)
    )
    if not rule.is_correcting:
        chosen = chosen.where(columns.late.is_(False))
    return connection.execute(chosen.order_by(columns.seq)).all()


# --- settling -----------------------------------------------------------------------------


def close_due(
    connection: Connection, experiment_id: int, rule: OutcomeRule, now: int, limit: int = 2_000
) -> Closed:
    """Settle the decisions whose window has passed.

    Where windows begin at decisions they settle in log order, and all before one that is due
    settle with it. Where they begin at exposures each settles when it is due; the cursor in log
    order then passes decisions whose time for an exposure is over.

    Returns
    -------
    How many were settled, how many outcomes the learner gets, and when the next one is due
    (microseconds since 1970), or None if no decision is open.
    """
    closed = Closed(0, 0, None)
    period = rule.window_us
    if rule.is_confirmed:
        closed = _close_windows(connection, experiment_id, rule, now, limit)
        period = rule.exposure_us
    due, next_due = _passing(connection, experiment_id, period, now, limit)
    if due:
        closed = _pass(connection, experiment_id, rule, due, now, closed)
    dates = [at for at in (closed.next_due, next_due) if at is not None]
    return closed._replace(next_due=min(dates, default=None))


def _passing(
    connection: Connection, experiment_id: int, period: int, now: int, limit: int
) -> tuple[Sequence[AnyRow], int | None]:
    """Read decisions that the cursor passes now, and when it moves next."""
    settled_to = connection.execute(
        select(experiments.c.closed_seq).where(experiments.c.id == experiment_id)
    ).scalar_one()
    columns = decisions.c
    is_open = and_(columns.experiment_id == experiment_id, columns.seq > settled_to)
    chosen = select(columns.seq, columns.decided_at, columns.reason, columns.action).where(is_open)
    head = connection.execute(chosen.order_by(columns.seq).limit(1)).first()
    if head is None:
        return [], None
    is_ahead = head.decided_at > now  # stamped by a clock that ran fast: it must not hold up all
    if head.decided_at + period > now and not is_ahead:
        return [], head.decided_at + period
    rows = connection.execute(chosen.order_by(columns.seq).limit(limit)).all()
    last = max((i for i, row in enumerate(rows) if row.decided_at + period <= now), default=-1)
    due, later = rows[: last + 1], rows[last + 1 :]
    if not due:
        return [], min(row.decided_at for row in rows) + period
    return due, min((row.decided_at for row in later), default=now) + period * bool(later)


def _pass(  # noqa: PLR0913
    connection: Connection,
    experiment_id: int,
    rule: OutcomeRule,
    due: Sequence[AnyRow],
    now: int,
    closed: Closed,
) -> Closed:
    """Move the cursor past decisions; settle those whose window began with them."""
    before = newest_outcomes(connection, experiment_id, [row.seq for row in due])
    mine = [row for row in due if row.seq not in before]
    if rule.is_confirmed:  # what sends nothing has nothing to show
        mine = [row for row in mine if row.action is None]
        later = {r.seq: r.decided_at + rule.window_us for r in mine}
        later = {seq: at for seq, at in later.items() if at > now}
        _begin_windows(connection, experiment_id, later)
        mine = [row for row in mine if row.seq not in later]
        dates = [at for at in (closed.next_due, *later.values()) if at is not None]
        closed = closed._replace(next_due=min(dates, default=None))
    starts = {row.seq: row.decided_at for row in mine}
    learned = _close(connection, experiment_id, rule, mine, starts, now)
    connection.execute(
        update(experiments).where(experiments.c.id == experiment_id).values(closed_seq=due[-1].seq)
    )
    return Closed(closed.settled + len(due), closed.learned + learned, closed.next_due)


def _close_windows(
    connection: Connection, experiment_id: int, rule: OutcomeRule, now: int, limit: int
) -> Closed:
    """Settle exposed decisions whose window has passed, in order of that time."""
    columns = open_windows.c
    waiting = (
        select(columns.due_at, decisions.c.seq, decisions.c.reason)
        .join_from(
            open_windows,
            decisions,
            and_(
                decisions.c.experiment_id == columns.experiment_id,
                decisions.c.seq == columns.decision_seq,
            ),
        )
        .where(columns.experiment_id == experiment_id)
        .order_by(columns.due_at, columns.decision_seq)
    )
    rows = connection.execute(waiting.where(columns.due_at <= now).limit(limit)).all()
    starts = {row.seq: row.due_at - rule.window_us for row in rows}
    learned = _close(connection, experiment_id, rule, rows, starts, now)
    _end_windows(connection, experiment_id, [row.seq for row in rows])
    head = connection.execute(waiting.limit(1)).first()
    return Closed(len(rows), learned, None if head is None else head.due_at)


def _close(  # noqa: PLR0913
    connection: Connection,
    experiment_id: int,
    rule: OutcomeRule,
    rows: Sequence[AnyRow],
    starts: Mapping[int, int],
    now: int,
) -> int:
    """Append the outcomes of decisions whose windows have passed; give how many are learned."""
    facts = facts_of(connection, experiment_id, rule, [row.seq for row in rows]) if rows else {}
    values = [(row, rule.outcome(facts.get(row.seq, []), starts[row.seq])) for row in rows]
    settled = [(row, value) for row, value in values if value is not None]
    if not settled:
        return 0
    first = take_seq(connection, experiment_id, len(settled))
    entries = [
        (experiment_id, seq, row.seq, value, now, row.reason in LEARNED_REASONS, 0)
        for seq, (row, value) in enumerate(settled, first)
    ]
    _INSERT_OUTCOME.execute(connection, entries)
    return sum(entry[5] for entry in entries)
