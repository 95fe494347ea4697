"""Taking turns at an SQLite file: who holds the turn may write and checkpoint, nobody else.

SQLite's releases 3.7.0 to 3.51.2 can lose commits when one connection writes while another
checkpoints, so SQLite's own lock, which orders writers alone, is not enough once a command
writes beside a running server. The turn is a lock on a file that the system gives back when its
holder ends, however it ends.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import OperationalError

PATIENCE = 5.0
"""Seconds to wait for the turn, as long as for SQLite's own lock."""


class Turn:
    """The turn at one SQLite file; at any other database there is nothing to wait for.

    Parameters
    ----------
    url
        Of the database; None where nobody writes.
    """

    def __init__(self, url: URL | None = None) -> None:
        self._file = -1
        if url is not None and url.get_backend_name() == "sqlite" and url.database is not None:
            path = Path(f"{Path(str(url.database)).resolve()}.turn")
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold the turn.

        Raises
        ------
        OperationalError
            If somebody else keeps it for longer than ``PATIENCE``.
        """
        if self._file < 0:
            yield
            return
        self._take()
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _take(self) -> None:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    busy = TimeoutError("another process keeps the turn to write")
                    raise OperationalError("", {}, busy) from None
                time.sleep(0.002)
            else:
                return

    def close(self) -> None:
        """Give up the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


@contextmanager
def beside(url: URL) -> Iterator[Connection]:
    """Open a transaction on a database that a running server may hold.

    On SQLite the turn is held until everything is closed again, and nothing is checkpointed
    while the server has the file open.
    """
    turn = Turn(url)
    try:
        with turn.taken():
            engine = create_engine(url, hide_parameters=True)
            try:
                with engine.begin() as connection:
                    if url.get_backend_name() == "sqlite":
                        connection.exec_driver_sql("PRAGMA wal_autocheckpoint = 0")
                        connection.exec_driver_sql("PRAGMA synchronous = FULL")
                    yield connection
            finally:
                engine.dispose()
    finally:
        turn.close()
