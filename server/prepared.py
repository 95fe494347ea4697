"""Statements of the write path, compiled once and handed to the driver as they are.

SQLAlchemy's Core writes the SQL for every database; executing it through Core costs some ten
microseconds a row in parameter handling, which the write path of every decision would pay.
"""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Table, insert
from sqlalchemy.engine import Connection, Row
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import ClauseElement


class Prepared:
    """One statement, executed once at a time by the driver itself.

    Parameters
    ----------
    statement
        With bound parameters of these names.
    names
        Order in which callers give the values.

    Notes
    -----
    Core's connection makes a context and a result of every execution, some 30 us, which every
    small transaction paid several times.
    """

    def __init__(self, statement: ClauseElement, names: Sequence[str]) -> None:
        self._statement = statement
        self._names = tuple(names)
        self._texts: dict[str, tuple[str, tuple[int, ...] | None]] = {}

    def execute(self, connection: Connection, *values: object) -> list[tuple[Any, ...]]:
        """Execute, and give the rows that it returns.

        Raises
        ------
        sqlalchemy.exc.DBAPIError
            As any statement does.
        """
        text, order = self.text(connection)
        told = (
            dict(zip(self._names, values, strict=True))
            if order is None
            else tuple(values[i] for i in order)
        )
        with begun(connection, text) as cursor:
            cursor.execute(text, told)
            return cursor.fetchall()  # type: ignore[no-any-return]

    def text(self, connection: Connection) -> tuple[str, tuple[int, ...] | None]:
        """Give the SQL for this database, and the places of its positional parameters."""
        dialect = connection.dialect
        known = self._texts.get(dialect.name)
        if known is None:
            compiled = self._statement.compile(dialect=dialect)
            names = compiled.positiontup  # type: ignore[attr-defined]
            order = None if names is None else tuple(self._names.index(name) for name in names)
            known = self._texts[dialect.name] = (str(compiled), order)
        return known


class Lookup:
    """Rows found by any number of values of one column, which the statement calls ``keys``.

    Parameters
    ----------
    statement
        With ``column.in_(bindparam("keys", expanding=True))`` and other parameters.
    names
        Order in which callers give the other parameters; ``keys`` is the last.

    Notes
    -----
    Core writes a list of that length anew each time, at 4 us a value. Here it is padded to a
    power of two, so that few texts are ever made; on PostgreSQL an array takes all lengths.
    Values come as the driver gives them.
    """

    def __init__(self, statement: ClauseElement, names: Sequence[str]) -> None:
        self._statement = statement
        self._names = (*names, "keys")
        self._texts: dict[str, tuple[str, str]] = {}

    def find(
        self, connection: Connection, keys: Collection[Any], *others: object
    ) -> Sequence[Row[Any]]:
        """Give the rows."""
        if not keys:
            return []
        before, after = self._text(connection)
        listed = list(keys)
        if connection.dialect.driver == "psycopg":
            told = dict(zip(self._names, (*others, listed), strict=True))
            return connection.exec_driver_sql(f"{before}= ANY(%(keys)s){after}", told).all()
        listed += listed[-1:] * ((1 << (len(listed) - 1).bit_length()) - len(listed))
        marks = "?," * (len(listed) - 1)
        return connection.exec_driver_sql(f"{before}IN ({marks}?){after}", (*others, *listed)).all()

    def _text(self, connection: Connection) -> tuple[str, str]:
        """Give the SQL for this database, before and after the list."""
        dialect = connection.dialect
        known = self._texts.get(dialect.name)
        if known is None:
            compiled = self._statement.compile(dialect=dialect)
            before, _, after = str(compiled).partition("IN (__[POSTCOMPILE_keys])")
            names = compiled.positiontup  # type: ignore[attr-defined]
            if names is not None and tuple(names) != self._names:
                raise ValueError(f"parameters come as {names}, not as {self._names}")
            known = self._texts[dialect.name] = before, after
        return known


class Append:
    """Rows appended to a table; tuples in the order of its columns.

    Notes
    -----
    On PostgreSQL by COPY: at 256 rows it took 17 us a row, INSERT by pipeline 42 and from
    arrays 27, and a quarter of their work on this side; for one row it was no slower. Keys are
    checked as by INSERT, and a row that is refused refuses all.
    """

    def __init__(self, table: Table) -> None:
        names = table.c.keys()
        self._insert = Prepared(insert(table), names)
        self._copy = f"COPY {table.name} ({', '.join(names)}) FROM STDIN"

    def execute(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Append every row.

        Raises
        ------
        sqlalchemy.exc.DBAPIError
            As any statement does; IntegrityError for a key that is there.
        """
        if connection.dialect.driver != "psycopg":
            text, _ = self._insert.text(connection)
            with begun(connection, text) as cursor:
                cursor.executemany(text, rows)
            return
        with begun(connection, self._copy) as cursor, cursor.copy(self._copy) as copy:
            for row in rows:
                copy.write_row(row)


class driven:  # noqa: N801  used as contextlib's functions are, at a tenth of their cost
    """A cursor of the driver's own, whose errors come as Core's."""

    __slots__ = ("_connection", "_cursor", "_text")

    def __init__(self, connection: Connection, text: str) -> None:
        self._connection = connection
        self._text = text

    def __enter__(self) -> Any:  # noqa: ANN401
        self._cursor = self._connection.connection.cursor()
        return self._cursor

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._cursor.close()
        if isinstance(error, self._connection.dialect.loaded_dbapi.Error):
            raise as_core(self._connection, self._text, error) from error


def begun(connection: Connection, text: str) -> driven:
    """Give a cursor inside a transaction, which begins here unless it has begun."""
    if not connection.in_transaction():
        connection.begin()
    return driven(connection, text)


def as_core(connection: Connection, text: str, error: Any) -> BaseException:  # noqa: ANN401
    """Turn a driver's error into the one that Core would have raised."""
    dialect = connection.dialect
    is_lost = dialect.is_disconnect(error, connection.connection.dbapi_connection, None)
    if is_lost:
        connection.invalidate(error)
    told: BaseException = DBAPIError.instance(
        text,
        None,
        error,
        dialect.loaded_dbapi.Error,
        hide_parameters=True,
        connection_invalidated=is_lost,
        dialect=dialect,
    )
    return told
