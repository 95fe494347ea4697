"""Leases: one of several processes learns for an experiment, and another takes over if it stops.

Time decides only who tries. That two processes never both write is the epoch's doing: it rises
with every change of holder, and a learner's writes compare it under the experiment's row lock,
so one that was paused and wakes up finds the door shut.
"""

import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

from sqlalchemy import Engine, bindparam, insert, or_, select, update
from sqlalchemy.engine import Connection

from bandit.errors import ConflictError
from server.clock import Clock
from server.schema import experiments, leases
from server.storage import locking
from server.writer import Writer

log = logging.getLogger(__name__)

T = TypeVar("T")
TERM = 6_000_000
"""Microseconds that a lease lasts; it is renewed after a third of that."""
FEW = 8
"""Experiments taken at a time, so that processes that start together share them."""


def take(
    connection: Connection, experiment_id: int, holder: str, now: int, term: int = TERM
) -> int | None:
    """Take the lease of an experiment, unless another's has not run out.

    Returns
    -------
    The epoch under which the holder writes, or None.
    """
    epoch = int(
        connection.execute(
            locking(select(experiments.c.epoch).where(experiments.c.id == experiment_id))
        ).scalar_one()
    )
    mine = leases.c.experiment_id == experiment_id
    row = connection.execute(select(leases).where(mine)).first()
    if row is not None and row.holder != holder and row.until > now:
        return None
    if row is None:
        values = {"experiment_id": experiment_id, "holder": holder, "until": now + term}
        connection.execute(insert(leases), {**values, "current_at": 0})
    else:
        connection.execute(update(leases).where(mine).values(holder=holder, until=now + term))
    if row is None or row.holder != holder:
        epoch += 1
        connection.execute(
            update(experiments).where(experiments.c.id == experiment_id).values(epoch=epoch)
        )
    return epoch


def free(connection: Connection, now: int, limit: int) -> list[int]:
    """Give some experiments whose lease nobody has, or has run out."""
    chosen = (
        select(experiments.c.id)
        .outerjoin(leases, leases.c.experiment_id == experiments.c.id)
        .where(or_(leases.c.until.is_(None), leases.c.until <= now))
        .order_by(experiments.c.id)
        .limit(limit)
    )
    return list(connection.execute(chosen).scalars())


def renew(connection: Connection, holder: str, until: int, current: Mapping[int, int]) -> set[int]:
    """Lengthen all leases of a holder and note what they are current to; give those it has."""
    mine = leases.c.holder == holder
    held = connection.execute(
        select(leases.c.experiment_id, leases.c.current_at)
        .where(mine)
        .order_by(leases.c.experiment_id)
        .with_for_update()
    ).all()
    told = [{"one": i, "at": current.get(i, at)} for i, at in held]
    if told:  # each row once: PostgreSQL checks the key of one that is changed again
        connection.execute(
            update(leases)
            .where(leases.c.experiment_id == bindparam("one"))
            .values(until=until, current_at=bindparam("at")),
            told,
        )
    return {i for i, _ in held}


def release(connection: Connection, holder: str) -> None:
    """Let all leases of a holder run out at once."""
    connection.execute(update(leases).where(leases.c.holder == holder).values(until=0))


def check(connection: Connection, experiment_id: int, epoch: int) -> None:
    """Refuse to go on under an old epoch; the row stays locked until the transaction ends.

    Raises
    ------
    ConflictError
        If the lease changed hands.
    """
    now = connection.execute(
        locking(select(experiments.c.epoch).where(experiments.c.id == experiment_id))
    ).scalar_one()
    if now != epoch:
        raise ConflictError(f"epoch {epoch} of experiment {experiment_id} ended: it is {now}")


class Leases:
    """The leases of one process.

    Parameters
    ----------
    holder
        Name of the process, unique among all that share the database.
    writer, reader
        The database.
    clock
        Tells when they run out.
    term
        Microseconds that a lease lasts.
    """

    def __init__(
        self, holder: str, writer: Writer, reader: Engine, clock: Clock, *, term: int = TERM
    ) -> None:
        self.holder = holder
        self._writer = writer
        self._reader = reader
        self._clock = clock
        self._term = term
        self._epochs: dict[int, int] = {}
        self._renewed_at = 0
        self._looked_at = 0

    def epoch(self, experiment_id: int) -> int | None:
        """Give the epoch under which this process learns for an experiment, or None."""
        return self._epochs.get(experiment_id)

    def look(self, current: Mapping[int, int]) -> None:
        """Renew what is held if that is due, and take some of what is free.

        Parameters
        ----------
        current
            Moment to which each experiment's published belief holds all outcomes.
        """
        now = self._clock()
        if now < self._looked_at:  # the clock was set back
            self._renewed_at = self._looked_at = 0
        if now - self._renewed_at >= self._term // 3:
            held = self._writer.call(lambda c: renew(c, self.holder, now + self._term, current))
            for lost in self._epochs.keys() - held:
                self.lose(lost)
            self._renewed_at = now
        if now - self._looked_at < self._term // 12:
            return
        self._looked_at = now
        with self._reader.connect() as connection:
            unheld = free(connection, now, FEW)
        for one in unheld:
            self.acquire(one)

    def acquire(self, experiment_id: int) -> bool:
        """Take the lease of one experiment, if it is free or held already."""
        now = self._clock()
        epoch = self._writer.call(
            lambda c: take(c, experiment_id, self.holder, now, self._term),
            experiment_id=experiment_id,
        )
        if epoch is not None:
            self._epochs[experiment_id] = epoch
        return epoch is not None

    def lose(self, experiment_id: int) -> None:
        """Forget a lease that another process has taken."""
        if self._epochs.pop(experiment_id, None) is not None:
            log.warning("the lease of experiment %d went to another process", experiment_id)

    def fenced(self, experiment_id: int, write: Callable[[Connection], T]) -> T:
        """Write for an experiment, if its lease is still held when that is done.

        Raises
        ------
        ConflictError
            If it is not; nothing is written then.
        """
        epoch = self._epochs.get(experiment_id)
        if epoch is None:
            raise ConflictError(f"the lease of experiment {experiment_id} is not held")

        def checked(connection: Connection) -> T:
            check(connection, experiment_id, epoch)
            return write(connection)

        return self._writer.call(checked, experiment_id=experiment_id)

    def release(self) -> None:
        """Give up everything, so that others need not wait."""
        self._writer.call(lambda c: release(c, self.holder))
        self._epochs.clear()
