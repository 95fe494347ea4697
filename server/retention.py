"""Dropping what is old: the log becomes shorter, and what it taught stays.

A *base* is the posterior at a place of the log, stored before anything is dropped. From there
the log is whole: every later snapshot is still the fold of the base and the entries after it.
A decision goes together with its events and outcomes, once all of them are before the base.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Table, delete, exists, func, insert, select
from sqlalchemy.engine import Connection

from bandit import encoding
from bandit.errors import BanditError, ChangedError, CorruptionError, InvalidInputError
from bandit.posterior import Posterior
from server import lessons, omissions, revisions, storage
from server.live import LiveExperiment
from server.schema import (
    bases,
    decisions,
    experiments,
    exposures,
    open_windows,
    outcomes,
    reward_events,
    snapshots,
)


class Cut(NamedTuple):
    """What may go: decisions made before a time, whose entries all precede a place."""

    before: int
    seq: int


class Dropped(NamedTuple):
    """What one step dropped, and the last decision it looked at; None if there are no more."""

    decisions: int
    entries: int
    last: int | None


def base(connection: Connection, live: LiveExperiment) -> Posterior | None:
    """Read the posterior that the kept log continues from, or None if the log is whole.

    It is given as it is under the specification of ``live``, which may be a later one than that
    it was stored with.

    Raises
    ------
    CorruptionError
        If it was changed or can not be read.
    """
    row = connection.execute(select(bases).where(bases.c.experiment_id == live.id)).first()
    if row is None:
        return None
    written = revisions.at(connection, live, row.version)
    posterior = written.experiment.prior()
    if encoding.digest(row.posterior) != row.digest:
        raise CorruptionError(f"the base of {live.experiment.spec.name!r} was changed")
    try:
        encoding.load(posterior, row.posterior)
    except BanditError as error:
        raise CorruptionError(f"the base of {live.experiment.spec.name!r}: {error}") from None
    if posterior.seq != row.seq:
        raise CorruptionError(f"the base of {live.experiment.spec.name!r} is of another place")
    return revisions.carry(written, posterior, live)


def version(connection: Connection, experiment_id: int) -> int:
    """Give the snapshot that the base is; 0 if nothing was dropped, or before edits were."""
    chosen = select(bases.c.version).where(bases.c.experiment_id == experiment_id)
    return connection.execute(chosen).scalar_one_or_none() or 0


def place(connection: Connection, experiment_id: int) -> int:
    """Give the place of the base, from which the log is whole; 0 if nothing was dropped."""
    chosen = select(bases.c.seq).where(bases.c.experiment_id == experiment_id)
    return connection.execute(chosen).scalar_one_or_none() or 0


def check_reach(connection: Connection, experiment_id: int, after_seq: int) -> None:
    """Refuse to leave out all that follows a place, if some of it was dropped.

    Raises
    ------
    InvalidInputError
        If the base already believes it.
    """
    began = place(connection, experiment_id)
    if after_seq < began:
        raise InvalidInputError(
            f"entries up to {began} were dropped from the log, and what they taught stays; "
            "name a later snapshot",
            field="to_snapshot",
        )


def fold(
    connection: Connection, live: LiveExperiment, posterior: Posterior, to: int
) -> Posterior | None:
    """Fold outcomes in log order until the place ``to``; None if the last is not there.

    Where an omission lies on the way, the log is folded anew, from the base if there is one.
    """
    experiment = live.experiment
    heard = [one for one in omissions.after(connection, live.id, 0) if one.seq <= to]
    if heard and heard[-1].seq > posterior.seq:
        start = base(connection, live) or experiment.prior()
        anew = lessons.Refold(start, heard)
        while anew.step(connection, experiment, live.id):
            pass
        posterior = anew.posterior
    at = posterior.seq
    while at < to:
        part = lessons.read(
            *(connection, live.id, experiment.spec.outcome), after=at, upto=to, left_out=heard
        )
        if not part.read:
            break
        lessons.learn(experiment, posterior, part.rows)
        at = part.last
    return posterior if posterior.seq == to else None


def advance(connection: Connection, live: LiveExperiment, before: int, now: int) -> Cut:
    """Move the base as far as everything decided or closed since ``before`` can be proved from.

    Returns
    -------
    What may be dropped then; its place is the base's, 0 if nothing may.

    Raises
    ------
    CorruptionError
        If the log does not fold to its snapshots: nothing is dropped from a log in doubt.
    ChangedError
        If what may go changed meanwhile; nothing was done.
    """
    began = place(connection, live.id)
    target = _target(connection, live.id, before)
    if target is None or target.seq <= began:
        return Cut(before, began)
    # What is before a snapshot never changes, so others may write while it is folded.
    then = revisions.at(connection, live, target.version)
    posterior = base(connection, then) or then.experiment.prior()
    reached = fold(connection, then, posterior, target.seq)
    data = b"" if reached is None else encoding.to_bytes(reached)
    if encoding.digest(data) != target.digest:
        raise CorruptionError(
            f"snapshot {target.version} of {live.experiment.spec.name!r} is not the fold of its "
            "log; nothing was dropped"
        )
    storage.take_seq(connection, live.id, 0)  # nobody appends or moves the base from here on
    if place(connection, live.id) != began or _target(connection, live.id, before) != target:
        raise ChangedError(f"the log of {live.experiment.spec.name!r} changed; try again")
    connection.execute(delete(bases).where(bases.c.experiment_id == live.id))
    row = {"seq": target.seq, "digest": target.digest, "made_at": now, "posterior": data}
    row["version"] = target.version
    connection.execute(insert(bases), {"experiment_id": live.id, **row})
    return Cut(before, int(target.seq))


def _target(connection: Connection, experiment_id: int, before: int) -> Any:  # noqa: ANN401  a row
    """Give the newest snapshot that precedes all that is kept and all that decided it.

    None lies within the reach of an omission: from there the log could not be folded anew
    without what is left out.
    """
    recent = select(func.min(outcomes.c.seq)).where(
        outcomes.c.experiment_id == experiment_id, outcomes.c.closed_at >= before
    )
    used = select(func.min(decisions.c.snapshot_version)).where(
        decisions.c.experiment_id == experiment_id, decisions.c.decided_at >= before
    )
    first = connection.execute(recent).scalar_one()
    oldest = connection.execute(used).scalar_one()
    columns = snapshots.c
    wanted = select(snapshots).where(columns.experiment_id == experiment_id)
    if first is not None:
        wanted = wanted.where(columns.seq < first)
    if oldest is not None:
        wanted = wanted.where(columns.version <= oldest)
    for one in omissions.after(connection, experiment_id, 0):
        wanted = wanted.where(~columns.seq.between(one.scope.after_seq + 1, one.seq - 1))
    return connection.execute(wanted.order_by(columns.version.desc()).limit(1)).first()


def drop(
    connection: Connection, experiment_id: int, cut: Cut, after: int = 0, limit: int = 2_000
) -> Dropped:
    """Drop some of the settled decisions that a cut allows to drop, with all that belongs to them.

    Parameters
    ----------
    after
        Where the last step ended.
    """
    storage.take_seq(connection, experiment_id, 0)  # an event that comes now waits, and is refused
    closed = connection.execute(
        select(experiments.c.closed_seq).where(experiments.c.id == experiment_id)
    ).scalar_one()
    seq = decisions.c.seq
    found: Sequence[int] = (
        connection.execute(
            select(seq)
            .where(
                decisions.c.experiment_id == experiment_id,
                seq > after,
                seq <= min(cut.seq, closed),
                decisions.c.decided_at < cut.before,
                ~_refers(outcomes, cut.seq),
                ~_refers(reward_events, cut.seq),
                ~_refers(exposures, cut.seq),
                ~_is_open(),
            )
            .order_by(seq)
            .limit(limit)
        )
        .scalars()
        .all()
    )
    entries = 0
    for table, column in (
        (reward_events, reward_events.c.decision_seq),
        (exposures, exposures.c.decision_seq),
        (outcomes, outcomes.c.decision_seq),
        (decisions, decisions.c.seq),
    ):
        if found:
            gone = delete(table).where(
                table.c.experiment_id == experiment_id,
                column.between(found[0], found[-1]),  # a range of the key, whatever is planned
                column.in_(found),
            )
            entries += connection.execute(gone).rowcount
    return Dropped(len(found), entries, found[-1] if len(found) == limit else None)


def _is_open() -> ColumnElement[bool]:
    """Say whether the decision's window has begun with an exposure and not closed."""
    return exists().where(
        open_windows.c.experiment_id == decisions.c.experiment_id,
        open_windows.c.decision_seq == decisions.c.seq,
    )


def _refers(table: Table, to: int) -> ColumnElement[bool]:
    """Say whether an entry after ``to`` belongs to the decision: then it is kept whole."""
    return exists().where(
        table.c.experiment_id == decisions.c.experiment_id,
        table.c.decision_seq == decisions.c.seq,
        table.c.seq > to,
    )
