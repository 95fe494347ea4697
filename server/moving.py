"""Moving an experiment from state to state: started, paused, archived; and what edits share."""

from collections.abc import Sequence

from sqlalchemy import Engine
from sqlalchemy.engine import Connection

from bandit.errors import ChangedError, NotFoundError, StateError
from server import audit_log, catalogue, convert, storage
from server.access import Caller
from server.audit_log import MAX_REASON, Change
from server.catalogue import State
from server.clock import Clock
from server.gatekeeping import Gatekeeper
from server.live import Live, LiveExperiment
from server.pb import bandit_pb2 as pb
from server.schema import AnyRow
from server.writer import Writer

Move = pb.StartExperimentRequest | pb.PauseExperimentRequest | pb.ArchiveExperimentRequest
_VERBS = {State.RUNNING: "start", State.PAUSED: "pause", State.ARCHIVED: "archive"}


class Mover:
    """Moves experiments.

    Parameters
    ----------
    live
        Told of every move.
    reader, writer
        The database.
    clock
        Stamps the audit log.
    gate
        Asked before a start.
    """

    def __init__(
        self, live: Live, reader: Engine, writer: Writer, clock: Clock, gate: Gatekeeper
    ) -> None:
        self._live = live
        self._reader = reader
        self._writer = writer
        self._clock = clock
        self._gate = gate

    def move(
        self, request: Move, caller: Caller, to: State, allowed: Sequence[State]
    ) -> LiveExperiment:
        """Move an experiment to a state, from one of those allowed."""
        name, etag = request.name, request.etag
        reason = request.reason and convert.text(request.reason, "reason", MAX_REASON)
        live = self._live.find(caller.tenant, convert.text(name, "name", 64), "name")

        def move(connection: Connection) -> AnyRow:
            storage.next_seq(connection, live.id)  # locks: another process may move it, too
            row = stored(connection, caller.tenant, name)
            check_etag(row, etag)
            if row.state == to:
                return row
            if row.state not in allowed:
                raise StateError(f"experiment {name!r} is {State(row.state).name}", field="name")
            if isinstance(request, pb.StartExperimentRequest) and row.state == State.DRAFT:
                self._gate.admit(connection, row, request.override, caller)
            moved = catalogue.set_state(connection, live.id, to)
            change = Change(
                caller.tenant,
                caller.who,
                f"experiment.{_VERBS[to]}",
                name,
                shown(row),
                shown(moved),
                reason,
            )
            audit_log.record(connection, change, self._clock())
            return moved

        row = self._writer.call(move, experiment_id=live.id, expires=caller.expires)
        if row.spec_revision == live.spec_revision:
            return self._live.set_state(row)
        return newest(self._live, self._reader, caller.tenant, name)[0]


def newest(live: Live, reader: Engine, tenant: str, name: str) -> tuple[LiveExperiment, AnyRow]:
    """Take over an experiment as it is stored, whoever changed it."""
    with reader.connect() as connection:
        row = stored(connection, tenant, name)
        return live.catch_up(connection, row), row


def stored(connection: Connection, tenant: str, name: str) -> AnyRow:
    """Read an experiment's row.

    Raises
    ------
    NotFoundError
        If there is none.
    """
    row = catalogue.find_experiment(connection, tenant, name)
    if row is None:
        raise NotFoundError(f"no experiment {name!r}", field="name")
    return row


def check_etag(row: AnyRow, etag: str) -> None:
    """Refuse a change by who saw an older experiment.

    Raises
    ------
    ChangedError
        If the etag is another one now.
    """
    if etag and etag != f"{row.id}-{row.revision}":
        raise ChangedError("the experiment was changed since; read it again", field="etag")


def shown(row: AnyRow) -> dict[str, object]:
    """Give what an audit entry tells of an experiment."""
    return {"state": State(row.state).name, "revision": row.revision}
