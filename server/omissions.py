"""What is not learned from any more: entries of the log that say which others to leave out.

The log keeps all that was reported, and the report counts it. Only the belief is folded anew
without what an omission names: reward events of one reporter, or outcomes of a time or since a
snapshot. So a rollback is itself a fact of the log, and the belief stays a function of it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, Table, and_, func, insert, select
from sqlalchemy.engine import Connection

from bandit.errors import ConflictError, InvalidInputError
from server.schema import AnyRow, omissions, outcomes, reward_events, snapshots
from server.storage import take_seq

_CONTENT = ("after_seq", "reporter", "since", "until", "reason")


class Scope(NamedTuple):
    """What an omission leaves out.

    Attributes
    ----------
    after_seq
        Only entries behind this place.
    reporter
        Reward events of this reporter; None: outcomes, whoever reported.
    since, until
        Only events received, or outcomes closed, from one time on and before the other,
        microseconds since 1970; None: no limit.
    """

    after_seq: int = 0
    reporter: str | None = None
    since: int | None = None
    until: int | None = None

    def spans(self, at: int) -> bool:
        """Whether a time lies within."""
        return (self.since is None or self.since <= at) and (self.until is None or at < self.until)


class Omission(NamedTuple):
    """An omission in the log; it reaches the entries before its own place."""

    seq: int
    scope: Scope

    def has_outcome(self, outcome: AnyRow) -> bool:
        """Whether it leaves out an outcome itself."""
        scope = self.scope
        return (
            scope.reporter is None
            and scope.after_seq < outcome.seq < self.seq
            and scope.spans(outcome.closed_at)
        )

    def has_event(self, event: AnyRow) -> bool:
        """Whether it leaves out a reward event."""
        scope = self.scope
        return (
            scope.reporter == event.reporter
            and scope.after_seq < event.seq < self.seq
            and scope.spans(event.received_at)
        )


class Omitted(NamedTuple):
    """An omission's place, and how much it leaves out."""

    seq: int
    events: int
    outcomes: int


def append(  # noqa: PLR0913  who, what and why
    connection: Connection,
    experiment_id: int,
    scope: Scope,
    *,
    request_id: str,
    reason: str,
    made_by: str,
    now: int,
) -> Omitted:
    """Append an omission, or give the one that this request appended before.

    Raises
    ------
    ConflictError
        If the request id was used with other content.
    """
    seq = take_seq(connection, experiment_id, 0)  # locks the log
    mine = omissions.c.experiment_id == experiment_id
    before = connection.execute(
        select(omissions).where(mine, omissions.c.request_id == request_id)
    ).first()
    if before is not None:
        if tuple(before._mapping[name] for name in _CONTENT) != (*scope, reason):
            raise ConflictError(
                f"request id {request_id!r} was used before with other content",
                field="request_id",
            )
        return _counted(connection, experiment_id, Omission(before.seq, scope))
    take_seq(connection, experiment_id, 1)
    row = {"experiment_id": experiment_id, "seq": seq, "request_id": request_id}
    why = {"reason": reason, "made_by": made_by, "made_at": now}
    connection.execute(insert(omissions), {**row, **scope._asdict(), **why})
    return _counted(connection, experiment_id, Omission(seq, scope))


def _counted(connection: Connection, experiment_id: int, omission: Omission) -> Omitted:
    """Count what is left out: outcomes themselves, or events and the outcomes after them."""
    if omission.scope.reporter is None:
        chosen = _within(omission, experiment_id, outcomes, outcomes.c.closed_at)
        n = connection.execute(
            select(func.count()).select_from(outcomes).where(chosen)
        ).scalar_one()
        return Omitted(omission.seq, 0, n)
    told = and_(
        _within(omission, experiment_id, reward_events, reward_events.c.received_at),
        reward_events.c.reporter == omission.scope.reporter,
    )
    events = connection.execute(
        select(func.count()).select_from(reward_events).where(told)
    ).scalar_one()
    n = connection.execute(
        select(func.count(outcomes.c.seq.distinct()))
        .join_from(
            reward_events,
            outcomes,
            and_(
                outcomes.c.experiment_id == reward_events.c.experiment_id,
                outcomes.c.decision_seq == reward_events.c.decision_seq,
                outcomes.c.seq > reward_events.c.seq,
            ),
        )
        .where(told)
    ).scalar_one()
    return Omitted(omission.seq, events, n)


def _within(
    omission: Omission,
    experiment_id: int,
    table: Table,
    at: ColumnElement[int],
) -> ColumnElement[bool]:
    columns = table.c
    scope = omission.scope
    chosen = [columns.seq > scope.after_seq, columns.seq < omission.seq]
    if scope.since is not None:
        chosen.append(at >= scope.since)
    if scope.until is not None:
        chosen.append(at < scope.until)
    return and_(columns.experiment_id == experiment_id, *chosen)


def after(connection: Connection, experiment_id: int, seq: int) -> list[Omission]:
    """Read the omissions behind a place, in log order."""
    found = connection.execute(
        select(omissions)
        .where(omissions.c.experiment_id == experiment_id, omissions.c.seq > seq)
        .order_by(omissions.c.seq)
    )
    return [Omission(r.seq, Scope(r.after_seq, r.reporter, r.since, r.until)) for r in found]


def place_of_snapshot(connection: Connection, experiment_id: int, version: int) -> int:
    """Give the place in the log where a snapshot ends; version 0 is the prior.

    Raises
    ------
    InvalidInputError
        If there is no such snapshot.
    """
    if version == 0:
        return 0
    found = connection.execute(
        select(snapshots.c.seq).where(
            snapshots.c.experiment_id == experiment_id, snapshots.c.version == version
        )
    ).scalar_one_or_none()
    if found is None:
        raise InvalidInputError(f"there is no snapshot {version}", field="to_snapshot")
    return int(found)


def events_left_out(events: Sequence[AnyRow], found: Sequence[Omission]) -> set[int]:
    """Give the places of the events that any of the omissions leaves out."""
    return {event.seq for event in events if any(o.has_event(event) for o in found)}
