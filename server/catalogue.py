"""Experiments and their snapshots in the database: functions on the caller's transaction."""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from sqlalchemy import func, insert, null, select, update
from sqlalchemy.engine import Connection

from bandit import spec_file
from bandit.errors import (
    ChangedError,
    ConflictError,
    CorruptionError,
    InvalidInputError,
    NotFoundError,
    StateError,
)
from server.schema import AnyRow, experiments, facts, leases, revisions, snapshots

KEPT_POSTERIORS = 3


class State(IntEnum):
    """Where an experiment is in its life; the numbers are stored and never change."""

    DRAFT = 1
    RUNNING = 2
    PAUSED = 3
    ARCHIVED = 4


class Published(NamedTuple):
    """A snapshot's place and content, as stored."""

    version: int
    seq: int
    outcomes: int
    digest: bytes
    published_at: int
    posterior: bytes


def add_experiment(  # noqa: PLR0913
    connection: Connection,
    *,
    tenant: str,
    name: str,
    request_id: str,
    spec: str,
    now: int,
    most: int = 1_000,
    who: str = "",
) -> AnyRow:
    """Add an experiment in state DRAFT, or give the one this request added before.

    Raises
    ------
    ConflictError
        If the name is taken, or the request id was used with another specification.
    StateError
        If the tenant has ``most`` experiments.
    """
    columns = experiments.c
    before = connection.execute(
        select(experiments).where(columns.tenant == tenant, columns.request_id == request_id)
    ).first()
    if before is not None:
        if not _is_same(_created_with(connection, before), spec):
            raise ConflictError(
                f"request id {request_id!r} was used before with another specification",
                field="request_id",
            )
        return before
    count = select(func.count()).where(columns.tenant == tenant)
    if connection.execute(count).scalar_one() >= most:
        raise StateError(f"{most} experiments, and no more are allowed", field="spec.name")
    if find_experiment(connection, tenant, name) is not None:
        raise ConflictError(
            f"an experiment {name!r} exists; a name is never given twice, so choose another, "
            f"or start this one with 'banditctl experiments start {name}'",
            field="spec.name",
        )
    row = {
        "tenant": tenant,
        "name": name,
        "request_id": request_id,
        "spec": spec,
        "state": State.DRAFT,
        "revision": 1,
        "created_at": now,
        "next_seq": 1,
        "epoch": 1,
        "closed_seq": 0,
    }
    added = connection.execute(insert(experiments).returning(experiments), row).one()
    first = {"experiment_id": added.id, "number": 1, "version": 0, "spec": spec, "reason": ""}
    asked = {"request_id": "", "request_hash": b"", "made_by": who, "made_at": now}
    connection.execute(insert(revisions), {**first, **asked})
    return added


def _created_with(connection: Connection, experiment: AnyRow) -> str:
    """Read the specification that an experiment was created with, whatever edits followed."""
    first = connection.execute(
        select(revisions.c.spec).where(
            revisions.c.experiment_id == experiment.id, revisions.c.number == 1
        )
    ).scalar_one_or_none()
    return experiment.spec if first is None else str(first)


def _is_same(stored: str, spec: str) -> bool:
    """Compare specifications; one that was stored with less spelled out is as good."""
    if stored == spec:
        return True
    try:
        return spec_file.to_json(spec_file.parse(stored, "json")) == spec
    except InvalidInputError:
        return False


def find_experiment(connection: Connection, tenant: str, name: str) -> AnyRow | None:
    """Read one experiment, or None."""
    return connection.execute(
        select(experiments).where(experiments.c.tenant == tenant, experiments.c.name == name)
    ).first()


def list_experiments(connection: Connection, tenant: str | None = None) -> Sequence[AnyRow]:
    """Read all experiments, of one tenant or of all, in order of name."""
    chosen = select(experiments).order_by(experiments.c.tenant, experiments.c.name)
    if tenant is not None:
        chosen = chosen.where(experiments.c.tenant == tenant)
    return connection.execute(chosen).all()


class Head(NamedTuple):
    """Where an experiment stands, in a few numbers: what replicas poll.

    Attributes
    ----------
    version
        Of the newest snapshot; None before the first.
    current_at
        Moment to which that snapshot holds all outcomes, as far as its learner said.
    """

    id: int
    tenant: str
    name: str
    revision: int
    version: int | None
    current_at: int | None


def heads(connection: Connection) -> list[Head]:
    """Read where every experiment stands."""
    newest = (
        select(func.max(snapshots.c.version))
        .where(snapshots.c.experiment_id == experiments.c.id)
        .scalar_subquery()
    )
    columns = experiments.c
    chosen = select(
        columns.id, columns.tenant, columns.name, columns.revision, newest, leases.c.current_at
    ).outerjoin(leases, leases.c.experiment_id == columns.id)
    return [Head(*row) for row in connection.execute(chosen)]


def set_state(connection: Connection, experiment_id: int, state: State) -> AnyRow:
    """Move an experiment to a state and give its row."""
    row = connection.execute(
        update(experiments)
        .where(experiments.c.id == experiment_id)
        .values(state=state, revision=experiments.c.revision + 1)
        .returning(experiments)
    ).first()
    if row is None:
        raise NotFoundError(f"no experiment {experiment_id}")
    return row


def stored_spec(connection: Connection, experiment_id: int) -> str:
    """Read the specification of an experiment as it is written."""
    chosen = select(experiments.c.spec).where(experiments.c.id == experiment_id)
    return str(connection.execute(chosen).scalar_one())


def check_spec(connection: Connection, experiment_id: int, spec_revision: int) -> None:
    """Refuse to go on with a specification that is not the stored one any more.

    Raises
    ------
    ChangedError
        If the experiment was edited since it was read.
    """
    now = connection.execute(
        select(experiments.c.spec_revision).where(experiments.c.id == experiment_id)
    ).scalar_one_or_none()
    if now != spec_revision:
        raise ChangedError(
            f"experiment {experiment_id} has revision {now} by now, not {spec_revision}"
        )


def next_version(connection: Connection, experiment_id: int) -> int:
    """Give the version of the snapshot that comes next."""
    last = connection.execute(
        select(func.max(snapshots.c.version)).where(snapshots.c.experiment_id == experiment_id)
    ).scalar_one()
    return int(last or 0) + 1


def add_snapshot(connection: Connection, experiment_id: int, published: Published) -> None:
    """Store the next snapshot with its posterior; drop the posteriors of old ones.

    Raises
    ------
    ConflictError
        If the version is not the next: somebody else published meanwhile.
    """
    wanted = next_version(connection, experiment_id)
    if published.version != wanted:
        raise ConflictError(f"snapshot {published.version} does not follow {wanted - 1}")
    connection.execute(insert(snapshots), {"experiment_id": experiment_id, **published._asdict()})
    connection.execute(
        update(snapshots)
        .where(
            snapshots.c.experiment_id == experiment_id,
            snapshots.c.version == published.version - KEPT_POSTERIORS,
        )
        .values(posterior=null())
    )


def latest_snapshot(connection: Connection, experiment_id: int) -> Published | None:
    """Read the newest snapshot, or None before the first.

    Raises
    ------
    CorruptionError
        If its posterior is gone.
    """
    row = connection.execute(
        select(snapshots)
        .where(snapshots.c.experiment_id == experiment_id)
        .order_by(snapshots.c.version.desc())
        .limit(1)
    ).first()
    if row is None:
        return None
    if row.posterior is None:
        raise CorruptionError(f"snapshot {row.version} has lost its posterior")
    return Published(*(row._mapping[name] for name in Published._fields))


def list_snapshots(connection: Connection, experiment_id: int) -> Sequence[AnyRow]:
    """Read every snapshot's version, place and digest, in order."""
    return connection.execute(
        select(snapshots)
        .where(snapshots.c.experiment_id == experiment_id)
        .order_by(snapshots.c.version)
    ).all()


def fact(connection: Connection, name: str) -> str | None:
    """Read one fact of the whole database."""
    return connection.execute(
        select(facts.c.value).where(facts.c.name == name)
    ).scalar_one_or_none()


def set_fact(connection: Connection, name: str, value: str) -> None:
    """Write one fact of the whole database."""
    changed = connection.execute(update(facts).where(facts.c.name == name).values(value=value))
    if changed.rowcount == 0:
        connection.execute(insert(facts), {"name": name, "value": value})
