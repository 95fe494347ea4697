"""Decisions appended to PostgreSQL in one trip: one statement, which may be the transaction.

A counter row is locked from its UPDATE to the end of the transaction, and every other server
that wants to append waits that long. Statement by statement, this process would be asked six
times and more in between, each time its thread would wait for the interpreter, and a process
that is paused would keep the lock. Here all is sent before anything is locked: the database takes
the places, gives them to the rows, appends and commits without asking.

The rows travel as one array of the table's own row type, in PostgreSQL's binary form. That costs
the database no more than COPY, which can not give the rows their places.
"""

from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Any

from psycopg import DatabaseError, adapt, pq
from sqlalchemy.engine import Connection

from bandit.errors import CorruptionError
from server.prepared import as_core
from server.schema import decisions
from server.storage import DecisionRow

COLUMNS = tuple(decisions.c.keys())
"""In the order of the table, which is the order of its row type."""
_APPEND = f"""
WITH told AS (SELECT * FROM unnest(%b::int4[], %b::int4[]) AS told (id, n)),
locked AS (
  SELECT id FROM experiments WHERE id IN (SELECT id FROM told) ORDER BY id FOR NO KEY UPDATE
),
taken AS (
  UPDATE experiments SET next_seq = next_seq + n FROM told JOIN locked USING (id)
  WHERE experiments.id = told.id RETURNING experiments.id, next_seq - n AS first
),
appended AS (
  INSERT INTO decisions ({", ".join(COLUMNS)})
  SELECT {", ".join(["experiment_id", "first + seq", *COLUMNS[2:]])}
  FROM unnest(%b::decisions[]) LEFT JOIN taken ON id = experiment_id
)
SELECT id, first FROM taken
"""  # noqa: S608
"""An experiment that is gone gives its rows no place, which the table refuses."""
_SHAPE = """
SELECT 'decisions'::regtype::oid, array_agg(attname::text ORDER BY attnum) FROM pg_attribute
WHERE attrelid = 'decisions'::regclass AND attnum > 0 AND NOT attisdropped
"""
_BYTES, _LONG, _SHORT, _INT, _TEXT, _DOUBLE, _VARCHAR = 17, 20, 21, 23, 25, 701, 1043
"""PostgreSQL's numbers for types."""
_ARRAY, _EXTENT = Struct(">iiI"), Struct(">ii")  # dimensions, NULLs, type; length, lower bound
_HEAD = Struct(">iiiiiiqii16sii")  # count of columns; place, decision id, size of request id
_HASHES = Struct(">ii16sii16sii")  # request hash, customer, size of context
_LAST = Struct(">iidiihiihiiqiiq")  # propensity, group, reason, snapshot, time
_NUMBER, _SIZED, _SIZE = Struct(">iii"), Struct(">ii"), Struct(">i")
_NO_TEXT, _NO_NUMBER, _NO_BYTES = (_SIZED.pack(one, -1) for one in (_TEXT, _INT, _BYTES))


class _Array:
    """An array as PostgreSQL receives it."""

    def __init__(self, kind: int, elements: Sequence[bytes]) -> None:
        parts = [_ARRAY.pack(bool(elements), 0, kind)]
        if elements:
            parts.append(_EXTENT.pack(len(elements), 1))
        for element in elements:
            parts += (_SIZE.pack(len(element)), element)
        self.data = b"".join(parts)


class _Dumper(adapt.Dumper):
    """Sends an array as it is."""

    format = pq.Format.BINARY

    def dump(self, obj: _Array) -> bytes:
        """Give the bytes."""
        return obj.data


def append(
    connection: Connection, groups: Mapping[int, Sequence[DecisionRow]], *, commits: bool
) -> dict[int, int]:
    """Append decisions of several experiments; give the place of the first of each.

    Parameters
    ----------
    connection
        Within a transaction; at its beginning, if this commits.
    groups
        New decisions by their experiment.
    commits
        Whether that is all, so that it is durable when this returns.

    Raises
    ------
    sqlalchemy.exc.DBAPIError
        As ``storage.append_decisions`` does; IntegrityError also if an experiment is gone.
    """
    driven: Any = connection.connection.dbapi_connection
    try:
        if commits:
            driven.autocommit = True
        kind = _row_type(connection, driven)
        rows = packed(groups, driven.info.encoding)
        counts = [len(told) for told in groups.values()]
        with driven.cursor() as cursor:
            cursor.adapters.register_dumper(_Array, _Dumper)
            cursor.execute(_APPEND, (_integers([*groups]), _integers(counts), _Array(kind, rows)))
            return dict(cursor.fetchall())
    except DatabaseError as error:
        raise as_core(connection, _APPEND, error) from error
    finally:
        if commits and driven.info.transaction_status == pq.TransactionStatus.IDLE:
            driven.autocommit = False  # else it broke, and is not used again


def _row_type(connection: Connection, driven: Any) -> int:  # noqa: ANN401  psycopg.Connection
    """Give the number of the table's row type; asked once of every connection."""
    known = connection.info.get(_SHAPE)
    if known is None:
        known, columns = driven.execute(_SHAPE).fetchone()
        if tuple(columns) != COLUMNS:
            raise CorruptionError(f"decisions has the columns {columns}", field="database")
        connection.info[_SHAPE] = known
    return int(known)


def _integers(values: Sequence[int]) -> _Array:
    return _Array(_INT, [_SIZE.pack(value) for value in values])


def packed(groups: Mapping[int, Sequence[DecisionRow]], encoding: str) -> list[bytes]:
    """Pack rows as values of the table's row type; places count from 0 in each experiment."""
    return [
        _packed(row, experiment_id, place, encoding)
        for experiment_id, rows in groups.items()
        for place, row in enumerate(rows)
    ]


def _packed(row: DecisionRow, experiment_id: int, place: int, encoding: str) -> bytes:
    """Pack one row: of every column its type, its size and its value."""
    if not len(row.decision_id) == len(row.request_hash) == len(row.customer) == 16:
        raise ValueError("ids of a decision have 16 bytes")
    request, zone = row.request_id.encode(encoding), row.time_zone.encode(encoding)
    told, kept = row.exclusions, row.propensities
    return b"".join(
        (
            _HEAD.pack(
                *(len(COLUMNS), _INT, 4, experiment_id, _LONG, 8, place),
                *(_BYTES, 16, row.decision_id, _VARCHAR, len(request)),
            ),
            request,
            _HASHES.pack(
                *(_BYTES, 16, row.request_hash, _BYTES, 16, row.customer),
                *(_BYTES, len(row.context)),
            ),
            row.context,
            _NO_TEXT if told is None else _sized(_TEXT, told.encode(encoding)),
            _sized(_VARCHAR, zone),
            _NO_NUMBER if row.action is None else _NUMBER.pack(_INT, 4, row.action),
            _LAST.pack(
                *(_DOUBLE, 8, row.propensity, _SHORT, 2, row.traffic_group),
                *(_SHORT, 2, row.reason, _LONG, 8, row.snapshot_version),
                *(_LONG, 8, row.decided_at),
            ),
            _NO_BYTES if kept is None else _sized(_BYTES, kept),
        )
    )


def _sized(kind: int, value: bytes) -> bytes:
    return _SIZED.pack(kind, len(value)) + value
