"""Statements of the write path, compiled once and handed to the driver as they are.

SQLAlchemy's Core writes the SQL for every database; executing it through Core costs some ten
microseconds a row in parameter handling, which the write path of every decision would pay.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.engine import Connection, CursorResult
from sqlalchemy.sql import ClauseElement


class Prepared:
    """One statement; its parameters are tuples in the order of ``names``.

    Parameters
    ----------
    statement
        With bound parameters of these names.
    names
        Order in which callers give the values.
    """

    def __init__(self, statement: ClauseElement, names: Sequence[str]) -> None:
        self._statement = statement
        self._names = tuple(names)
        self._texts: dict[str, tuple[str, tuple[int, ...] | None]] = {}

    def execute(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> CursorResult[Any]:
        """Execute for every row."""
        text, order = self._text(connection)
        if order is None:
            return connection.exec_driver_sql(
                text, [dict(zip(self._names, row, strict=True)) for row in rows]
            )
        if order == tuple(range(len(self._names))):
            return connection.exec_driver_sql(text, list(rows))
        return connection.exec_driver_sql(text, [tuple(row[i] for i in order) for row in rows])

    def _text(self, connection: Connection) -> tuple[str, tuple[int, ...] | None]:
        """Give the SQL for this database, and the places of its positional parameters."""
        dialect = connection.dialect
        known = self._texts.get(dialect.name)
        if known is None:
            compiled = self._statement.compile(dialect=dialect)
            names = compiled.positiontup  # type: ignore[attr-defined]
            order = None if names is None else tuple(self._names.index(name) for name in names)
            known = self._texts[dialect.name] = (str(compiled), order)
        return known
