"""The log: functions on a connection whose transaction the caller owns.

An experiment's entries (decisions, exposures, reward events, outcomes, omissions) share one
dense sequence, taken from a counter row inside the writing transaction; so commit order is
sequence order, and a reader that has seen n has seen everything before. This module holds the
counter, the decisions, and what others read; ``ledger.py`` appends what is reported of them.
"""

from collections.abc import Generator, Iterable, Sequence
from typing import Any, NamedTuple, TypeVarTuple

from sqlalchemy import ColumnElement, Select, and_, bindparam, exists, select, update
from sqlalchemy.engine import Connection

from bandit.decision import Reason
from bandit.errors import BanditError, ConflictError, NotFoundError
from server.prepared import Append, Prepared
from server.schema import AnyRow, decisions, experiments, exposures, outcomes, reward_events

Key = tuple[str, bytes]
"""Request id, and the hash of what was asked under it."""

Ts = TypeVarTuple("Ts")
LEARNED_REASONS = (Reason.POLICY, Reason.RANDOM_GROUP)

_TAKE = Prepared(
    update(experiments)
    .where(experiments.c.id == bindparam("the_id"))
    .values(next_seq=experiments.c.next_seq + bindparam("n"))
    .returning(experiments.c.next_seq),
    ["n", "the_id"],
)
_INSERT_DECISION = Append(decisions)


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
    reporter: str = "local"


class ExposureRow(NamedTuple):
    """An exposure about to be logged."""

    event_id: str
    decision_id: bytes
    exposed_at: int
    received_at: int


class Recorded(NamedTuple):
    """Where a reward event or an exposure stands in the log, and what became of it.

    Attributes
    ----------
    late
        Whether it came outside its window, or after the outcome closed.
    corrects
        Whether it counts all the same.
    """

    seq: int
    late: bool
    duplicate: bool
    corrects: bool = False


def take_seq(connection: Connection, experiment_id: int, n: int) -> int:
    """Take ``n`` places of an experiment's log; give the first.

    Raises
    ------
    NotFoundError
        If the experiment is gone.
    """
    taken = _TAKE.execute(connection, n, experiment_id)
    if not taken:
        raise NotFoundError(f"no experiment {experiment_id}")
    return int(taken[0][0]) - n


def lock(connection: Connection, experiment_ids: Iterable[int]) -> None:
    """Lock experiments' counters in one order, so that no two writers wait in a ring."""
    ids = sorted(experiment_ids)
    if ids:
        chosen = select(experiments.c.id).where(experiments.c.id.in_(ids))
        connection.execute(locking(chosen.order_by(experiments.c.id)))


def locking(chosen: Select[*Ts]) -> Select[*Ts]:
    """Lock the counter rows that are read, as their UPDATE does.

    Notes
    -----
    PostgreSQL checks a foreign key by a lock that only forbids to delete the row. The stronger
    FOR UPDATE would make that wait, in whatever order rows that refer to counters are written,
    and two writers could wait in a ring.
    """
    return chosen.with_for_update(key_share=True)


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
    return placed(first, jobs)


def placed(first: int, jobs: Sequence[Sequence[DecisionRow]]) -> list[list[Logged]]:
    """Say of appended decisions where they stand, one after the other."""
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
    seq = next_seq(connection, experiment_id)  # first, so that nothing below changes meanwhile
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


def merge_ranking(
    connection: Connection, experiment_id: int, keys: Sequence[Key], rows: Sequence[DecisionRow]
) -> list[Logged] | BanditError:
    """Append the places of a ranking, or give those stored of the same request, however many.

    Parameters
    ----------
    keys
        Of every place that the request may have.
    rows
        Places that were decided now: used only if none is stored.
    """
    next_seq(connection, experiment_id)  # first, so that nothing below changes meanwhile
    known = _known_decisions(connection, experiment_id, [request_id for request_id, _ in keys])
    stored = _ranking(known, keys)
    if stored:
        return stored
    for row in rows:
        if row.request_id in known:
            return ConflictError(
                f"request id {row.request_id!r} was used before with other content",
                field="request_id",
            )
    return append_decisions(connection, experiment_id, [rows])[0]


def find_ranking(connection: Connection, experiment_id: int, keys: Sequence[Key]) -> list[Logged]:
    """Read the stored places of a ranking, in order; none if the request is new."""
    known = _known_decisions(connection, experiment_id, [request_id for request_id, _ in keys])
    return _ranking(known, keys)


def _ranking(known: dict[str, Logged], keys: Sequence[Key]) -> list[Logged]:
    """Pick those that the request made; another one may have taken an id it did not need."""
    found = [(known.get(request_id), request_hash) for request_id, request_hash in keys]
    return [one for one, content in found if one is not None and one.row.request_hash == content]


def repeated(
    connection: Connection, experiment_id: int, keys: Sequence[Key]
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


def find_exposures(
    connection: Connection, experiment_id: int, decision_seq: int
) -> Sequence[AnyRow]:
    """Read a decision's exposures in log order."""
    return connection.execute(
        select(exposures)
        .where(exposures.c.experiment_id == experiment_id, exposures.c.decision_seq == decision_seq)
        .order_by(exposures.c.seq)
    ).all()


def find_outcomes(
    connection: Connection, experiment_id: int, decision_seq: int
) -> Sequence[AnyRow]:
    """Read a decision's outcomes in log order: the first, and its corrections."""
    return connection.execute(
        select(outcomes)
        .where(outcomes.c.experiment_id == experiment_id, outcomes.c.decision_seq == decision_seq)
        .order_by(outcomes.c.seq)
    ).all()


def find_outcome(connection: Connection, experiment_id: int, decision_seq: int) -> float | None:
    """Read a decision's newest outcome, or None while it has none."""
    found = find_outcomes(connection, experiment_id, decision_seq)
    return float(found[-1].value) if found else None


def newest_of(joined: ColumnElement[Any]) -> ColumnElement[bool]:
    """Say of a join with ``outcomes`` that it takes only those that no other replaces."""
    later = outcomes.alias("later")
    return and_(
        joined,
        ~exists().where(
            later.c.experiment_id == outcomes.c.experiment_id,
            later.c.decision_seq == outcomes.c.decision_seq,
            later.c.replaces == outcomes.c.seq,
        ),
    )


def next_seq(connection: Connection, experiment_id: int) -> int:
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


def settled_after(
    connection: Connection, experiment_id: int, after: int, limit: int
) -> Sequence[AnyRow]:
    """Read outcomes with what their decisions were, in log order."""
    return connection.execute(
        select(outcomes, decisions.c.decided_at, decisions.c.reason, decisions.c.action)
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


def by_snapshot(connection: Connection, experiment_id: int) -> Generator[AnyRow]:
    """Stream all decisions, those of one snapshot together, in log order within."""
    chosen = (
        select(decisions)
        .where(decisions.c.experiment_id == experiment_id)
        .order_by(decisions.c.snapshot_version, decisions.c.seq)
    )
    found = connection.execute(chosen, execution_options={"yield_per": 1_000})
    try:
        yield from found
    finally:  # also where the reading ends early
        found.close()


def decided_after(
    connection: Connection, experiment_id: int, after: int, limit: int
) -> Sequence[AnyRow]:
    """Read decisions with their outcome, None while open, in log order."""
    return connection.execute(
        select(decisions, outcomes.c.value.label("outcome"))
        .outerjoin_from(
            decisions,
            outcomes,
            newest_of(
                and_(
                    outcomes.c.experiment_id == decisions.c.experiment_id,
                    outcomes.c.decision_seq == decisions.c.seq,
                )
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
