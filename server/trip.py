"""Decisions appended to PostgreSQL in one trip: counters, rows and COMMIT are one message.

A counter row is locked from its UPDATE to the end of the transaction, and every other server
that wants to append waits that long. Statement by statement, this process would be asked six
times and more in between, and each time its thread waits for the interpreter. Here rows are
packed before anything is locked; the database then does all on its own, and asks once: for the
rows, which get their places when the counters are known.

What is sent is what libpq and ``psycopg.pq`` document: a simple query of several statements,
which PostgreSQL ends at the first that fails, with one COPY of binary rows in it.
"""

import select
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from struct import Struct
from typing import Any

from psycopg import DatabaseError, OperationalError, errors, pq
from sqlalchemy.engine import Connection

from bandit.errors import NotFoundError
from server.prepared import as_core
from server.storage import DecisionRow

COLUMNS = (
    *("experiment_id", "seq", "propensity", "traffic_group", "reason", "snapshot_version"),
    *("decided_at", "decision_id", "request_hash", "customer", "context", "request_id"),
    *("time_zone", "action", "exclusions", "propensities"),
)
"""In the order in which rows are packed: what has one size comes first."""
COPY = f"COPY decisions ({', '.join(COLUMNS)}) FROM STDIN (FORMAT BINARY)"
COMMIT = "COMMIT"
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END = b"\xff\xff"
_PLACE = Struct(">hiiiq")  # count of columns, then each value after its size
_FIXED = Struct(">idihihiqiqi16si16si16si")  # ends with the size of the context
_SIZE, _NUMBER = Struct(">i"), Struct(">ii")
_NULL = _SIZE.pack(-1)


def append(
    connection: Connection,
    groups: Mapping[int, Sequence[DecisionRow]],
    *,
    locked: Collection[int] = (),
    commits: bool,
) -> dict[int, int]:
    """Append decisions of several experiments; give the place of the first of each.

    Parameters
    ----------
    connection
        At the beginning of its transaction.
    groups
        New decisions by their experiment.
    locked
        Experiments whose counters are wanted later in the same transaction: all are locked
        here, in one order, so that no two servers wait in a ring.
    commits
        Whether that is all, so that the transaction is durable when this returns.

    Raises
    ------
    NotFoundError
        If an experiment is gone.
    sqlalchemy.exc.DBAPIError
        As ``storage.append_decisions`` does.
    """
    lent: Any = connection.connection
    driven = lent.dbapi_connection
    encoding = driven.info.encoding
    packed = {one: [packed_row(row, encoding) for row in rows] for one, rows in groups.items()}
    counts = dict.fromkeys(locked, 0) | {one: len(rows) for one, rows in packed.items()}
    statements = ["BEGIN", *(_take(one, counts[one]) for one in sorted(counts)), COPY]
    query = "; ".join([*statements, COMMIT] if commits else statements)
    try:
        return _carried(_Line(driven.pgconn), query, packed, commits=commits)
    except DatabaseError as error:
        raise as_core(connection, lent, COPY, error) from error


def _take(experiment_id: int, n: int) -> str:
    """Give the statement that locks a counter, and takes places from it."""
    one = f"{experiment_id:d}"
    if n == 0:
        return f"SELECT id, next_seq FROM experiments WHERE id = {one} FOR NO KEY UPDATE"  # noqa: S608
    return (
        f"UPDATE experiments SET next_seq = next_seq + {n:d} WHERE id = {one} "  # noqa: S608
        f"RETURNING id, next_seq - {n:d}"
    )


def packed_row(row: DecisionRow, encoding: str) -> bytes:
    """Pack all of a row but its place."""
    if not len(row.decision_id) == len(row.request_hash) == len(row.customer) == 16:
        raise ValueError("ids of a decision have 16 bytes")
    fixed = _FIXED.pack(
        *(8, row.propensity, 2, row.traffic_group, 2, row.reason, 8, row.snapshot_version),
        *(8, row.decided_at, 16, row.decision_id, 16, row.request_hash, 16, row.customer),
        len(row.context),
    )
    request, zone = row.request_id.encode(encoding), row.time_zone.encode(encoding)
    told = row.exclusions
    return b"".join(
        (
            *(fixed, row.context, _SIZE.pack(len(request)), request, _SIZE.pack(len(zone)), zone),
            _NULL if row.action is None else _NUMBER.pack(4, row.action),
            _NULL if told is None else _sized(told.encode(encoding)),
            _NULL if row.propensities is None else _sized(row.propensities),
        )
    )


def _sized(value: bytes) -> bytes:
    return _SIZE.pack(len(value)) + value


def placed(packed: Mapping[int, Sequence[bytes]], first: Mapping[int, int]) -> bytes:
    """Give all rows their places."""
    parts = [_HEADER]
    n = len(COLUMNS)
    for experiment_id, rows in packed.items():
        for seq, row in enumerate(rows, first[experiment_id]):
            parts += (_PLACE.pack(n, 4, experiment_id, 8, seq), row)
    parts.append(_END)
    return b"".join(parts)


def _carried(
    line: "_Line", query: str, packed: Mapping[int, Sequence[bytes]], *, commits: bool
) -> dict[int, int]:
    line.send(query.encode())
    first: dict[int, int] = {}
    while (result := line.receive()) is not None and result.status != pq.ExecStatus.COPY_IN:
        for i in range(result.ntuples):
            first[int(result.get_value(i, 0) or 0)] = int(result.get_value(i, 1) or 0)
    gone = packed.keys() - first.keys()
    if gone:
        line.copy(None)
        raise NotFoundError(f"no experiment {min(gone)}")
    line.copy(placed(packed, first))
    last = b""
    while (result := line.receive()) is not None:
        last = result.command_status or b""
    if commits and last != b"COMMIT":  # nothing is answered on any other word
        raise OperationalError(f"the database answered {last!r} to COMMIT")
    return first


class _Line:
    """The wire of a connection, on which nobody else speaks."""

    def __init__(self, wire: pq.abc.PGconn) -> None:
        self._wire = wire
        self._poll = select.poll()

    def send(self, query: bytes) -> None:
        """Send a query of several statements."""
        self._wire.send_query(query)
        self._flush()

    def copy(self, rows: bytes | None) -> None:
        """Send the rows that a COPY waits for; None ends it, and the transaction with it."""
        if rows is None:
            self._wire.put_copy_end(b"an experiment is gone")
            self._flush()
            self._drain()
            return
        while not self._wire.put_copy_data(rows):
            self._flush()
        while not self._wire.put_copy_end():
            self._flush()
        self._flush()

    def receive(self) -> pq.abc.PGresult | None:
        """Give the next result, None after the last.

        Raises
        ------
        psycopg.DatabaseError
            What the database refused; everything is received then.
        """
        result = self._next()
        if result is not None and result.status in (
            pq.ExecStatus.FATAL_ERROR,
            pq.ExecStatus.BAD_RESPONSE,
        ):
            error = _error(result)
            self._drain()
            raise error
        return result

    def _next(self) -> pq.abc.PGresult | None:
        while self._wire.is_busy():
            self._wait(select.POLLIN)
            self._wire.consume_input()
        return self._wire.get_result()

    def _drain(self) -> None:
        with suppress(DatabaseError):  # a second error says nothing new
            while self._next() is not None:
                pass

    def _flush(self) -> None:
        while self._wire.flush():
            if self._wait(select.POLLIN | select.POLLOUT) & select.POLLIN:
                self._wire.consume_input()

    def _wait(self, events: int) -> int:
        self._poll.register(self._wire.socket, events)
        [(_, found)] = self._poll.poll()
        return found


def _error(result: pq.abc.PGresult) -> DatabaseError:
    """Give the error of a result, of the class that psycopg has for its state."""
    state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
    told = pq.error_message(result)
    try:
        kind = errors.lookup(state)
    except KeyError:
        kind = OperationalError
    return kind(told) if issubclass(kind, DatabaseError) else OperationalError(told)
