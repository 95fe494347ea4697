"""The log: functions on a connection whose transaction the caller owns.

An experiment's entries (decisions, reward events, outcomes) share one dense sequence, taken
from a counter row inside the writing transaction; so commit order is sequence order, and a
reader that has seen n has seen everything before.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import and_, bindparam, select, update
from sqlalchemy.engine import Connection

from bandit.decision import Reason
from bandit.errors import BanditError, ConflictError, NotFoundError, UnavailableError
from bandit.outcome import OutcomeRule
from bandit.outcome import RewardEvent as Event
from server.prepared import Append, Prepared
from server.schema import AnyRow, decisions, experiments, outcomes, reward_events

LEARNED_REASONS = (Reason.POLICY, Reason.RANDOM_GROUP)

_TAKE = Prepared(
    update(experiments)
    .where(experiments.c.id == bindparam("the_id"))
    .values(next_seq=experiments.c.next_seq + bindparam("n"))
    .returning(experiments.c.next_seq),
    ["n", "the_id"],
)
_TAKE_FENCED = Prepared(
    update(experiments)
    .where(experiments.c.id == bindparam("the_id"), experiments.c.epoch <= bindparam("mine"))
    .values(next_seq=experiments.c.next_seq + bindparam("n"))
    .returning(experiments.c.next_seq),
    ["n", "the_id", "mine"],
)
_INSERT_DECISION = Append(decisions)
_INSERT_EVENT = Append(reward_events)
_INSERT_OUTCOME = Append(outcomes)


class DecisionRow(NamedTuple):
    """A decision about to be logged; the columns of ``decisions`` but its place."""

    decision_id: bytes
    request_id: str
    request_hash: bytes
    customer: bytes
    context: bytes
    exclusions: str | None
    time_zone: str
    action: int | None
    propensity: float
    traffic_group: int
    reason: int
    snapshot_version: int
    decided_at: int
    propensities: bytes | None


class Logged(NamedTuple):
    """Where a decision stands in the log, and whether it stood there before."""

    seq: int
    row: DecisionRow
    repeated: bool


class EventRow(NamedTuple):
    """A reward event about to be logged."""

    event_id: str
    decision_id: bytes
    name: str
    value: float
    occurred_at: int
    received_at: int


class Recorded(NamedTuple):
    """Where a reward event stands in the log, and what became of it."""

    seq: int
    late: bool
    duplicate: bool


class Closed(NamedTuple):
    """What settling outcomes did: decisions settled, outcomes to learn from, next due time."""

    settled: int
    learned: int
    next_due: int | None


def take_seq(connection: Connection, experiment_id: int, n: int) -> int:
    """Take ``n`` places of an experiment's log; give the first.

    A connection with the execution option ``epoch`` takes none once a server with a later
    epoch has begun: a writer that was cut off and comes back can not append.

    Raises
    ------
    NotFoundError
        If the experiment is gone.
    UnavailableError
        If the connection's epoch is over.
    """
    epoch = connection.get_execution_options().get("epoch")
    if epoch is None:
        taken = _TAKE.execute(connection, [(n, experiment_id)]).scalar_one_or_none()
    else:
        fenced = _TAKE_FENCED.execute(connection, [(n, experiment_id, epoch)])
        taken = fenced.scalar_one_or_none()
    if taken is not None:
        return int(taken) - n
    here = select(experiments.c.epoch).where(experiments.c.id == experiment_id)
    now = connection.execute(here).scalar_one_or_none()
    if now is None:
        raise NotFoundError(f"no experiment {experiment_id}")
    raise UnavailableError(
        f"another server has taken over this database (epoch {now}, here {epoch}); "
        "this one writes no more"
    )


def append_decisions(
    connection: Connection, experiment_id: int, jobs: Sequence[Sequence[DecisionRow]]
) -> list[list[Logged]]:
    """Append decisions whose request ids are new.

    Parameters
    ----------
    jobs
        Rows that belong together.

    Raises
    ------
    sqlalchemy.exc.IntegrityError
        If a request id is in the log or twice in the jobs: roll back, and call
        ``merge_decisions``, which looks first and costs a query more.
    """
    rows = [row for job in jobs for row in job]
    first = take_seq(connection, experiment_id, len(rows))
    _INSERT_DECISION.execute(
        connection, [(experiment_id, seq, *row) for seq, row in enumerate(rows, first)]
    )
    logged: list[list[Logged]] = []
    seq = first
    for job in jobs:
        logged.append([Logged(seq + i, row, repeated=False) for i, row in enumerate(job)])
        seq += len(job)
    return logged


def merge_decisions(
    connection: Connection, experiment_id: int, jobs: Sequence[Sequence[DecisionRow]]
) -> list[list[Logged] | BanditError]:
    """Append decisions, giving the stored one where a request id was seen before.

    A job with a conflict is refused whole, and nothing of it is stored.
    """
    seq = _next_seq(connection, experiment_id)  # first: who commits now has committed after it
    known = _known_decisions(connection, experiment_id, [r.request_id for j in jobs for r in j])
    fresh: list[DecisionRow] = []
    results: list[list[Logged] | BanditError] = []
    for job in jobs:
        mine: dict[str, Logged] = {}
        answers: list[Logged] = []
        conflict: BanditError | None = None
        for i, row in enumerate(job):
            before = known.get(row.request_id) or mine.get(row.request_id)
            if before is None:
                before = mine[row.request_id] = Logged(seq + len(mine), row, repeated=False)
            elif before.row.request_hash != row.request_hash:
                conflict = ConflictError(
                    f"request id {row.request_id!r} was used before with other content",
                    field=f"requests[{i}].request_id" if len(job) > 1 else "request_id",
                )
                break
            else:
                before = before._replace(repeated=True)
            answers.append(before)
        results.append(conflict or answers)
        if conflict is None:
            known |= mine
            fresh += [logged.row for logged in mine.values()]
            seq += len(mine)
    if fresh:
        append_decisions(connection, experiment_id, [fresh])
    return results


def repeated(
    connection: Connection, experiment_id: int, keys: Sequence[tuple[str, bytes]]
) -> list[Logged] | None:
    """Give the stored answers to requests (id and hash), or None unless all are stored."""
    known = _known_decisions(connection, experiment_id, [request_id for request_id, _ in keys])
    found = [known.get(request_id) for request_id, _ in keys]
    if any(
        logged is None or logged.row.request_hash != request_hash
        for logged, (_, request_hash) in zip(found, keys, strict=True)
    ):
        return None
    return [logged for logged in found if logged is not None]


def append_events(
    connection: Connection,
    experiment_id: int,
    rule: OutcomeRule,
    events: Sequence[EventRow],
    now: int,
) -> list[Recorded | BanditError]:
    """Append reward events; close outcomes that a terminal event ends.

    Duplicates are absorbed; an unknown decision or a reused id is refused alone.
    """
    seq = _next_seq(connection, experiment_id)  # first, so that nothing below changes meanwhile
    wanted = _by_decision_id(connection, experiment_id, {e.decision_id for e in events})
    known = _known_events(connection, experiment_id, [e.event_id for e in events])
    settled = _settled(connection, experiment_id, {d.seq for d in wanted.values()})
    entries: list[dict[str, Any]] = []
    closing: list[tuple[int, Any]] = []
    results: list[Recorded | BanditError] = []
    for event in events:
        decision = wanted.get(event.decision_id)
        before = known.get(event.event_id)
        if decision is None:
            results.append(
                NotFoundError("no such decision in this experiment", field="decision_id")
            )
        elif before is not None:
            results.append(_repeated(event, decision.seq, before))
        else:
            fact = Event(event.name, event.value, event.occurred_at)
            late = decision.seq in settled or not rule.counts(fact, decision.decided_at)
            entry = _event_entry(experiment_id, seq, decision.seq, event, late=late)
            entries.append(entry)
            known[event.event_id] = entry
            results.append(Recorded(seq, late=late, duplicate=False))
            seq += 1
            if not late and rule.by_name[event.name].terminal:
                settled.add(decision.seq)
                closing.append((seq, decision))
                seq += 1
    if entries:
        take_seq(connection, experiment_id, len(entries) + len(closing))
        _INSERT_EVENT.execute(connection, [tuple(entry.values()) for entry in entries])
    if closing:
        _close(connection, experiment_id, rule, closing, now)
    return results


def close_due(
    connection: Connection, experiment_id: int, rule: OutcomeRule, now: int, limit: int = 2_000
) -> Closed:
    """Settle, in log order, the decisions whose window has passed, and all before them.

    Returns
    -------
    How many were settled, how many outcomes the learner gets, and when the next one is due
    (microseconds since 1970), or None if no decision is open.
    """
    settled_to = connection.execute(
        select(experiments.c.closed_seq).where(experiments.c.id == experiment_id)
    ).scalar_one()
    columns = decisions.c
    is_open = and_(columns.experiment_id == experiment_id, columns.seq > settled_to)
    chosen = select(columns.seq, columns.decided_at, columns.reason).where(is_open)
    head = connection.execute(chosen.order_by(columns.seq).limit(1)).first()
    if head is None:
        return Closed(0, 0, None)
    is_ahead = head.decided_at > now  # stamped by a clock that ran fast: it must not hold up all
    if head.decided_at + rule.window_us > now and not is_ahead:
        return Closed(0, 0, head.decided_at + rule.window_us)
    rows = connection.execute(chosen.order_by(columns.seq).limit(limit)).all()
    last = max(
        (i for i, row in enumerate(rows) if row.decided_at + rule.window_us <= now), default=-1
    )
    due, later = rows[: last + 1], rows[last + 1 :]
    if not due:
        return Closed(0, 0, min(row.decided_at for row in rows) + rule.window_us)
    next_due = min((row.decided_at for row in later), default=now) + rule.window_us * bool(later)
    before = _settled(connection, experiment_id, {row.seq for row in due}, among_closed=False)
    learned = _close_rows(
        connection, experiment_id, rule, [row for row in due if row.seq not in before], now
    )
    connection.execute(
        update(experiments).where(experiments.c.id == experiment_id).values(closed_seq=due[-1].seq)
    )
    return Closed(len(due), learned, next_due)


def unlearned(
    connection: Connection, experiment_id: int, after: int, limit: int
) -> Sequence[AnyRow]:
    """Read outcomes to learn from, in log order: ``seq, value, action, context, decided_at``."""
    return connection.execute(
        select(
            outcomes.c.seq,
            outcomes.c.value,
            decisions.c.action,
            decisions.c.context,
            decisions.c.decided_at,
        )
        .join_from(
            outcomes,
            decisions,
            and_(
                decisions.c.experiment_id == outcomes.c.experiment_id,
                decisions.c.seq == outcomes.c.decision_seq,
            ),
        )
        .where(
            outcomes.c.experiment_id == experiment_id,
            outcomes.c.seq > after,
            outcomes.c.is_learned,
            decisions.c.action.is_not(None),
        )
        .order_by(outcomes.c.seq)
        .limit(limit)
    ).all()


def find_decision(connection: Connection, experiment_id: int, decision_id: bytes) -> AnyRow | None:
    """Read one decision with its place, or None."""
    return connection.execute(
        select(decisions).where(
            decisions.c.experiment_id == experiment_id, decisions.c.decision_id == decision_id
        )
    ).first()


def find_events(connection: Connection, experiment_id: int, decision_seq: int) -> Sequence[AnyRow]:
    """Read a decision's reward events in log order."""
    return connection.execute(
        select(reward_events)
        .where(
            reward_events.c.experiment_id == experiment_id,
            reward_events.c.decision_seq == decision_seq,
        )
        .order_by(reward_events.c.seq)
    ).all()


def find_outcome(connection: Connection, experiment_id: int, decision_seq: int) -> float | None:
    """Read a decision's outcome, or None while it has none."""
    return connection.execute(
        select(outcomes.c.value).where(
            outcomes.c.experiment_id == experiment_id, outcomes.c.decision_seq == decision_seq
        )
    ).scalar_one_or_none()


def _next_seq(connection: Connection, experiment_id: int) -> int:
    """Lock the counter row and read the next place, so that nobody takes it meanwhile."""
    return take_seq(connection, experiment_id, 0)


def _known_decisions(
    connection: Connection, experiment_id: int, request_ids: Sequence[str]
) -> dict[str, Logged]:
    found = connection.execute(
        select(decisions).where(
            decisions.c.experiment_id == experiment_id, decisions.c.request_id.in_(request_ids)
        )
    )
    return {row.request_id: logged(row) for row in found}


def logged(row: AnyRow) -> Logged:
    """Turn a row read from ``decisions`` into a logged decision."""
    fields = row._mapping
    stored = DecisionRow(*(fields[name] for name in DecisionRow._fields))
    return Logged(row.seq, stored, repeated=True)


def _by_decision_id(
    connection: Connection, experiment_id: int, ids: Iterable[bytes]
) -> dict[bytes, AnyRow]:
    columns = decisions.c
    found = connection.execute(
        select(columns.decision_id, columns.seq, columns.decided_at, columns.reason).where(
            columns.experiment_id == experiment_id, columns.decision_id.in_(list(ids))
        )
    )
    return {row.decision_id: row for row in found}


def _known_events(
    connection: Connection, experiment_id: int, event_ids: Sequence[str]
) -> dict[str, dict[str, Any]]:
    found = connection.execute(
        select(reward_events).where(
            reward_events.c.experiment_id == experiment_id, reward_events.c.event_id.in_(event_ids)
        )
    )
    return {row.event_id: dict(row._mapping) for row in found}


def _settled(
    connection: Connection, experiment_id: int, seqs: set[int], *, among_closed: bool = True
) -> set[int]:
    """Give the decisions that have an outcome, or whose window the log has passed."""
    found = connection.execute(
        select(outcomes.c.decision_seq).where(
            outcomes.c.experiment_id == experiment_id, outcomes.c.decision_seq.in_(list(seqs))
        )
    ).scalars()
    settled = set(found)
    if among_closed:
        passed = connection.execute(
            select(experiments.c.closed_seq).where(experiments.c.id == experiment_id)
        ).scalar_one()
        settled |= {seq for seq in seqs if seq <= passed}
    return settled


def _repeated(
    event: EventRow, decision_seq: int, before: Mapping[str, Any]
) -> Recorded | BanditError:
    same = (decision_seq, event.name, event.value) == (
        before["decision_seq"],
        before["name"],
        before["value"],
    )
    if not same:
        return ConflictError(
            f"event id {event.event_id!r} was used before with other content", field="event_id"
        )
    return Recorded(before["seq"], late=before["late"], duplicate=True)


def _event_entry(
    experiment_id: int, seq: int, decision_seq: int, event: EventRow, *, late: bool
) -> dict[str, Any]:
    return {
        "experiment_id": experiment_id,
        "seq": seq,
        "event_id": event.event_id,
        "decision_seq": decision_seq,
        "name": event.name,
        "value": event.value,
        "occurred_at": event.occurred_at,
        "received_at": event.received_at,
        "late": late,
    }


def _close_rows(
    connection: Connection,
    experiment_id: int,
    rule: OutcomeRule,
    rows: Sequence[AnyRow],
    now: int,
) -> int:
    """Append the outcomes of decisions whose windows have passed; give how many are learned."""
    facts = _events_of(connection, experiment_id, [row.seq for row in rows])
    values = [(row, rule.outcome(facts.get(row.seq, []), row.decided_at)) for row in rows]
    settled = [(row, value) for row, value in values if value is not None]
    if not settled:
        return 0
    first = take_seq(connection, experiment_id, len(settled))
    entries = [
        _outcome_entry(experiment_id, seq, row, value, now)
        for seq, (row, value) in enumerate(settled, first)
    ]
    _INSERT_OUTCOME.execute(connection, [tuple(entry.values()) for entry in entries])
    return sum(entry["is_learned"] for entry in entries)


def _close(
    connection: Connection,
    experiment_id: int,
    rule: OutcomeRule,
    closing: Sequence[tuple[int, AnyRow]],
    now: int,
) -> None:
    """Append outcomes at places already taken, from the events before each place."""
    facts = _events_of(connection, experiment_id, [d.seq for _, d in closing])
    entries = []
    for seq, decision in closing:
        value = rule.outcome(facts.get(decision.seq, []), decision.decided_at)
        entries.append(_outcome_entry(experiment_id, seq, decision, value, now))
    _INSERT_OUTCOME.execute(connection, [tuple(entry.values()) for entry in entries])


def _outcome_entry(
    experiment_id: int, seq: int, decision: AnyRow, value: float | None, now: int
) -> dict[str, Any]:
    return {
        "experiment_id": experiment_id,
        "seq": seq,
        "decision_seq": decision.seq,
        "value": value,
        "closed_at": now,
        "is_learned": decision.reason in LEARNED_REASONS,
    }


def _events_of(
    connection: Connection, experiment_id: int, decision_seqs: Sequence[int]
) -> dict[int, list[Event]]:
    columns = reward_events.c
    found = connection.execute(
        select(columns.decision_seq, columns.name, columns.value, columns.occurred_at)
        .where(
            columns.experiment_id == experiment_id,
            columns.decision_seq.in_(decision_seqs),
            columns.late.is_(False),
        )
        .order_by(columns.seq)
    )
    facts: dict[int, list[Event]] = {}
    for row in found:
        facts.setdefault(row.decision_seq, []).append(Event(row.name, row.value, row.occurred_at))
    return facts


def settled_after(
    connection: Connection, experiment_id: int, after: int, limit: int
) -> Sequence[AnyRow]:
    """Read outcomes with when their decisions were made, in log order."""
    return connection.execute(
        select(
            outcomes.c.seq,
            outcomes.c.value,
            outcomes.c.is_learned,
            outcomes.c.decision_seq,
            decisions.c.decided_at,
            decisions.c.reason,
        )
        .join_from(
            outcomes,
            decisions,
            and_(
                decisions.c.experiment_id == outcomes.c.experiment_id,
                decisions.c.seq == outcomes.c.decision_seq,
            ),
        )
        .where(outcomes.c.experiment_id == experiment_id, outcomes.c.seq > after)
        .order_by(outcomes.c.seq)
        .limit(limit)
    ).all()


def facts_before(
    connection: Connection, experiment_id: int, rows: Sequence[AnyRow]
) -> dict[int, list[Event]]:
    """Read the events that counted for outcomes, by the decision's place."""
    return _events_of(connection, experiment_id, [row.decision_seq for row in rows])


def by_snapshot(connection: Connection, experiment_id: int) -> Iterator[AnyRow]:
    """Stream all decisions, those of one snapshot together, in log order within."""
    chosen = (
        select(decisions)
        .where(decisions.c.experiment_id == experiment_id)
        .order_by(decisions.c.snapshot_version, decisions.c.seq)
    )
    yield from connection.execute(chosen, execution_options={"yield_per": 1_000})


def decided_after(
    connection: Connection, experiment_id: int, after: int, limit: int
) -> Sequence[AnyRow]:
    """Read decisions with their outcome, None while open, in log order."""
    return connection.execute(
        select(decisions, outcomes.c.value.label("outcome"))
        .outerjoin_from(
            decisions,
            outcomes,
            and_(
                outcomes.c.experiment_id == decisions.c.experiment_id,
                outcomes.c.decision_seq == decisions.c.seq,
            ),
        )
        .where(decisions.c.experiment_id == experiment_id, decisions.c.seq > after)
        .order_by(decisions.c.seq)
        .limit(limit)
    ).all()


class LoggedIds(NamedTuple):
    """Ids of everything in an experiment's log."""

    decisions: set[bytes]
    events: set[str]


def logged_ids(connection: Connection, experiment_id: int) -> LoggedIds:
    """Read the ids of all decisions and reward events."""
    decided = select(decisions.c.decision_id).where(decisions.c.experiment_id == experiment_id)
    told = select(reward_events.c.event_id).where(reward_events.c.experiment_id == experiment_id)
    return LoggedIds(
        set(connection.execute(decided).scalars()), set(connection.execute(told).scalars())
    )
