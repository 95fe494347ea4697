"""Revisions: every specification that an experiment had, and which snapshots are of which.

Functions on the caller's transaction. A decision's snapshot version tells its specification: the
newest revision that began with that version or before. So each edit of an experiment that decides
begins with a snapshot of its own; nothing is decided before a start, and edits of a draft need
none.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, insert, select, update
from sqlalchemy.engine import Connection

from bandit import spec_file
from bandit.errors import BanditError, ConflictError, CorruptionError
from bandit.experiment import Experiment
from bandit.posterior import Posterior
from server.live import LiveExperiment
from server.schema import AnyRow, experiments, revisions
from server.storage import Logged


class Revision(NamedTuple):
    """An edit about to be stored.

    Attributes
    ----------
    version
        First snapshot that belongs to it.
    spec
        The specification as it is from now on.
    request_id, request_hash
        Idempotency key, and what it stands for.
    made_by, made_at, reason
        Who, when and why.
    """

    version: int
    spec: str
    request_id: str
    request_hash: bytes
    made_by: str
    made_at: int
    reason: str


def add(connection: Connection, before: AnyRow, made: Revision) -> tuple[AnyRow, AnyRow]:
    """Store an edit of an experiment whose row the caller has locked and read.

    Returns
    -------
    The revision, and the experiment's row as it is now.
    """
    number = before.spec_revision + 1
    row = {"experiment_id": before.id, "number": number, **made._asdict()}
    stored = connection.execute(insert(revisions).returning(revisions), row).one()
    edited = connection.execute(
        update(experiments)
        .where(experiments.c.id == before.id)
        .values(
            spec=made.spec,
            revision=experiments.c.revision + 1,
            spec_revision=number,
            spec_version=made.version,
        )
        .returning(experiments)
    ).one()
    return stored, edited


def requested(
    connection: Connection, experiment_id: int, request_id: str, request_hash: bytes
) -> AnyRow | None:
    """Read the revision that a request made before, or None.

    Raises
    ------
    ConflictError
        If the request id was used with other content.
    """
    found = connection.execute(
        select(revisions).where(
            revisions.c.experiment_id == experiment_id, revisions.c.request_id == request_id
        )
    ).first()
    if found is not None and found.request_hash != request_hash:
        raise ConflictError(
            f"request id {request_id!r} was used before for another edit", field="request_id"
        )
    return found


def find(connection: Connection, experiment_id: int, number: int) -> AnyRow:
    """Read one revision.

    Raises
    ------
    CorruptionError
        If it is not there.
    """
    found = connection.execute(
        select(revisions).where(
            revisions.c.experiment_id == experiment_id, revisions.c.number == number
        )
    ).first()
    if found is None:
        raise CorruptionError(f"revision {number} of experiment {experiment_id} is gone")
    return found


def every(connection: Connection, experiment_id: int) -> Sequence[AnyRow]:
    """Read all revisions, in order."""
    return connection.execute(
        select(revisions)
        .where(revisions.c.experiment_id == experiment_id)
        .order_by(revisions.c.number)
    ).all()


def stages(connection: Connection, experiment_id: int) -> list[tuple[int, str]]:
    """Give the specifications that decided, each with its first snapshot, in order."""
    return sorted({row.version: row.spec for row in every(connection, experiment_id)}.items())


def at(connection: Connection, live: LiveExperiment, version: int) -> LiveExperiment:
    """Give an experiment with the specification that a snapshot's decisions were made with.

    State and belief are those of ``live``: it is for naming and folding, not for deciding.

    Raises
    ------
    CorruptionError
        If the specification is not there, or can not be read.
    """
    if live.spec_version <= version <= live.snapshot.version:
        return live
    columns = revisions.c
    row = connection.execute(
        select(revisions)
        .where(columns.experiment_id == live.id, columns.version <= version)
        .order_by(columns.number.desc())
        .limit(1)
    ).first()
    if row is None:
        raise CorruptionError(
            f"no revision of {live.experiment.spec.name!r} has snapshot {version}"
        )
    return live if row.number == live.spec_revision else _as_of(live, row)


def teller(
    reader: Engine, live: LiveExperiment, logged: Sequence[Logged], *, removed: bool = False
) -> LiveExperiment:
    """Give the experiment that can tell what was decided, also under another specification.

    A stored answer may be older than the present specification, whose rules take other actions
    away; and newer than this process knows, with an action that it has not heard of.

    Parameters
    ----------
    removed
        Whether removed actions are told, too, of a single decision.
    """
    again = [one.row for one in logged if one.repeated]
    if not again:  # as nearly always
        return live
    size = live.experiment.spec.actions.size
    is_unheard = any(row.action is not None and row.action >= size for row in again)
    versions = [row.snapshot_version for row in again]
    is_ours = live.spec_version <= min(versions) and max(versions) <= live.snapshot.version
    if not is_unheard and (is_ours or not removed):
        return live
    with reader.connect() as connection:
        return at(connection, live, max(versions))


def in_order(connection: Connection, live: LiveExperiment, since: int = 0) -> list[LiveExperiment]:
    """Give an experiment as it was under each specification that decided, oldest first.

    Parameters
    ----------
    since
        Leave out those that ended before this snapshot.

    Raises
    ------
    CorruptionError
        If one can not be read, or the newest is not the experiment's own.
    """
    newest: dict[int, AnyRow] = {row.version: row for row in every(connection, live.id)}
    versions = sorted(newest)
    last = newest[versions[-1]] if versions else None
    if last is None or last.number != live.spec_revision:
        raise CorruptionError(f"revision {live.spec_revision} is not the newest one stored")
    first = max((v for v in versions if v <= since), default=0)
    return [_as_of(live, newest[v]) for v in versions if v >= first]


def _as_of(live: LiveExperiment, row: AnyRow) -> LiveExperiment:
    try:
        spec = spec_file.parse(row.spec, "json")
    except BanditError as error:
        raise CorruptionError(
            f"revision {row.number} of {live.experiment.spec.name!r}: {error}"
        ) from None
    return replace(
        live,
        experiment=Experiment(spec, secret=live.experiment.secret),
        snapshot=replace(live.snapshot, version=row.version),  # of no later one is it known here
        spec_revision=row.number,
        spec_version=row.version,
    )


def carry(before: LiveExperiment, posterior: Posterior, after: LiveExperiment) -> Posterior:
    """Give a posterior of one specification as it is under a later one."""
    if before.spec_revision == after.spec_revision:
        return posterior
    return before.experiment.revise(posterior, after.experiment.spec)[1]


_GROUPS_SINCE: WeakKeyDictionary[Experiment, int] = WeakKeyDictionary()
"""What was found, for as long as the revision is in use: reports and metrics ask often."""


def groups_since(connection: Connection, live: LiveExperiment) -> int:
    """Give the first snapshot whose decisions had the traffic groups of today."""
    since = live.spec_version
    if live.spec_revision == 1:
        return since
    known = _GROUPS_SINCE.get(live.experiment)
    if known is not None:
        return known
    today = spec_file.to_data(live.experiment.spec)["groups"]
    for row in reversed(every(connection, live.id)):
        if json.loads(row.spec).get("groups", today) != today:
            break
        since = int(row.version)
    _GROUPS_SINCE[live.experiment] = since
    return since
