"""Opening a database: SQLite made durable, PostgreSQL as it is, both migrated.

On SQLite exactly one connection writes and checkpoints (releases 3.7.0 to 3.51.2 can lose
commits with two); all others are query-only. A lock file keeps a second server away.
"""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alembic.command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from filelock import FileLock, Timeout
from sqlalchemy import Engine, Pool, StaticPool, create_engine, event, make_url
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from bandit.errors import (
    BanditError,
    CorruptionError,
    InvalidInputError,
    StateError,
    UnavailableError,
)
from server import planner
from server.prepared import driven
from server.turn import Turn

_LOCK_KEY = 0x62616E646974  # "bandit"
_PATIENCE = {
    "statement_timeout": 60_000,
    "lock_timeout": 30_000,
    "idle_in_transaction_session_timeout": 10_000,
}
"""Milliseconds after which PostgreSQL ends what hangs, so that its locks hold up nobody. A process
that is paused in a transaction gives way before those who wait for its locks give up."""
_ABSENCE = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""When a PostgreSQL that says nothing is taken for gone; else a lost machine is waited for for
many minutes. What the URL says goes before."""
_AGAIN = ("40P01", "40001", "55P03")
"""What PostgreSQL says of transactions that may well succeed the next time: chosen to end a ring
of waiters, not serialisable, a lock was not to be had."""
_READ_ONLY = {"postgresql_readonly": True}
LOOK = 0.01
"""Seconds for which SQLite's files are taken to be those that were seen."""
_DURABLE = {"journal_mode": "wal", "synchronous": 2, "wal_autocheckpoint": 1000}


class Database:
    """One database, opened for writing or only for reading.

    Parameters
    ----------
    url
        Any SQLAlchemy URL, such as ``sqlite:///bandit.db`` or ``postgresql+psycopg://...``.
    beside
        Open for short writes beside a running server: on PostgreSQL neither lock nor migration.
        SQLite takes one writing process, so that there is no beside.
    read_only
        Open for ``verify`` and ``export`` beside a running server: no lock, no migration.

    Raises
    ------
    InvalidInputError
        If the URL is not one, or the database does not exist and is only to be read.
    UnavailableError
        If the database can not be opened or written, or another server holds it.
    CorruptionError
        If the file is no database, or its schema is newer than this release.
    """

    def __init__(self, url: str, *, read_only: bool = False, beside: bool = False) -> None:
        self.url = check_url(url)
        self._lock: FileLock | None = None
        self.turn = Turn()
        path = _path(self.url)
        self._identities: dict[str, tuple[int, int]] = {}
        self._looked_at = -math.inf
        if read_only and path is not None and not path.is_file():
            raise InvalidInputError(f"there is no database {path}", field="database")
        if not read_only and path is not None:
            self._lock = _locked(path)
        try:
            if not read_only:
                self.turn = Turn(self.url)
                self.writer = _engine(self.url, pool=StaticPool if path else None, write=True)
                if path is not None or not beside:
                    with self.alone() as connection:
                        migrate(connection)
                if path is not None:
                    files = (str(path), f"{path}-wal", f"{path}.lock")
                    self._identities = {one: _identity(one) for one in files}
            self.reader = _engine(self.url, pool=None, write=False)
            with self.reader.connect() as connection:
                _check_revision(connection)
        except (DBAPIError, OSError) as error:
            self.close()
            raise _opening_error(self.url, error) from None
        except Exception:
            self.close()
            raise

    @property
    def is_shared(self) -> bool:
        """Whether several servers may use it at a time."""
        return self.url.get_backend_name() != "sqlite"

    @contextmanager
    def alone(self) -> Iterator[Connection]:
        """Begin a transaction beside which no other server can begin one like it."""
        with self.turn.taken(), self.writer.begin() as connection:
            if self.url.get_backend_name() == "postgresql":
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_KEY})")
            yield connection

    def check_file(self) -> None:
        """Refuse to go on once SQLite's file is not the one that was opened.

        A file that was deleted or replaced stays open: what is written to it is gone at the end
        of the process. So it is with the write-ahead log, which any reader that comes makes anew.
        And where the lock was deleted, another server may hold a new one. It is looked at most
        every ``LOOK`` seconds: each look lets another thread have the interpreter, which small
        transactions waited for.

        Raises
        ------
        UnavailableError
            If the file, its write-ahead log or its lock is gone or another one.
        """
        now = time.monotonic()
        if now < self._looked_at + LOOK:
            return
        for path, identity in self._identities.items():
            if _identity(path) != identity:
                raise _gone(path)
        self._looked_at = now

    def close(self) -> None:
        """Close every connection and give up the lock."""
        for name in ("reader", "writer"):
            engine: Engine | None = getattr(self, name, None)
            if engine is not None:
                engine.dispose()
        self.turn.close()
        if self._lock is not None:
            self._lock.release()


def check_url(text: str) -> URL:
    """Read a database URL.

    Raises
    ------
    InvalidInputError
        If it is none, or none that keeps what is written.
    """
    try:
        url = make_url(text)
        url.get_dialect().import_dbapi()
    except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
        raise InvalidInputError(
            f"{text.split('@')[-1][:100]!r} is no database URL that can be used here, such as "
            f"sqlite:///bandit.db: {error}",
            field="database",
        ) from None
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise InvalidInputError(
            "an in-memory database would lose what was acknowledged; name a file",
            field="database",
        )
    return url


def _path(url: URL) -> Path | None:
    is_file = url.get_backend_name() == "sqlite" and url.database is not None
    return Path(str(url.database)).resolve() if is_file else None


def _gone(path: str) -> UnavailableError:
    """Say what is wrong with a file that is not the one that was opened, and what to do."""
    if path.endswith("-wal"):
        told = f"the write-ahead log {path} was removed under the server"
        advice = "start again, and then verify"
    elif path.endswith(".lock"):
        told = f"the lock {path} was removed under the server, and others may write beside it"
        advice = "see that no other server runs, and start again"
    else:
        told = f"the database file {path} was removed or replaced under the server"
        advice = "put it back, or restore and start again"
    return UnavailableError(f"{told}: nothing more is acknowledged; {advice}", field="database")


def _identity(path: str) -> tuple[int, int]:
    """Give what stays the same as long as a file is the same one; (0, 0) if it is gone."""
    try:
        found = os.stat(path)  # noqa: PTH116  at every commit, and half as dear
    except FileNotFoundError:
        return 0, 0
    return found.st_dev, found.st_ino


def _locked(path: Path) -> FileLock:
    if not path.parent.is_dir():
        raise UnavailableError(f"there is no folder {path.parent}", field="database")
    lock = FileLock(f"{path}.lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UnavailableError(
            f"another server holds {path}; SQLite takes one serving process", field="database"
        ) from None
    except OSError as error:
        raise UnavailableError(
            f"{path.parent} can not be written: {error.strerror}", field="database"
        ) from None
    return lock


def _engine(url: URL, *, pool: type[Pool] | None, write: bool) -> Engine:
    if url.get_backend_name() != "sqlite":
        return _postgresql_engine(url, write=write)
    arguments = {"check_same_thread": False, "timeout": 5.0, "isolation_level": None}
    sizes = {} if pool is not None else {"pool_size": 16, "max_overflow": 64}
    engine = create_engine(
        url, poolclass=pool, connect_args=arguments, hide_parameters=True, **sizes
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:  # noqa: ANN401  sqlite3.Connection
        if write:
            _make_durable(connection)
        else:
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            connection.execute("PRAGMA query_only = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        text = "BEGIN IMMEDIATE" if write else "BEGIN"
        with driven(connection, text) as cursor:
            cursor.execute(text)

    return engine


def _postgresql_engine(url: URL, *, write: bool) -> Engine:
    """Give an engine: its readers see one moment, its writers do not wait for ever."""
    reading = {"isolation_level": "REPEATABLE READ", "execution_options": _READ_ONLY}
    absence = {name: told for name, told in _ABSENCE.items() if name not in url.query}
    engine = create_engine(
        url,
        pool_pre_ping=True,
        pool_size=16,
        hide_parameters=True,
        connect_args=absence,
        **({} if write else reading),
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:  # noqa: ANN401  psycopg.Connection
        if not write:
            return
        for name, milliseconds in _PATIENCE.items():
            connection.execute(f"SET {name} = {milliseconds}")
        for name in ("fsync", "full_page_writes"):
            (found,) = connection.execute(f"SHOW {name}").fetchone()
            if found != "on":
                raise UnavailableError(f"PostgreSQL runs with {name} = {found}, needed is on")
        (found,) = connection.execute("SHOW synchronous_commit").fetchone()
        if found == "off":  # stricter settings are kept
            connection.execute("SET synchronous_commit = on")
        connection.commit()

    return engine


def _make_durable(connection: Any) -> None:  # noqa: ANN401  sqlite3.Connection
    """Set what durability needs, and read it back: drivers and builds override defaults."""
    for name, wanted in _DURABLE.items():
        connection.execute(f"PRAGMA {name} = {wanted}")
        (found,) = connection.execute(f"PRAGMA {name}").fetchone()
        if found != wanted:
            raise UnavailableError(f"SQLite keeps {name} = {found}, needed is {wanted}")
    connection.execute("PRAGMA fullfsync = ON")
    connection.execute("PRAGMA checkpoint_fullfsync = ON")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "server:migrations")
    config.set_main_option("path_separator", "os")
    return config


def migrate(connection: Connection, revision: str = "head") -> None:
    """Bring the schema to a revision, forwards only.

    Raises
    ------
    CorruptionError
        If the database is damaged, or its schema newer than this release.
    """
    if connection.dialect.name == "sqlite":
        verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        if verdict != "ok":
            raise CorruptionError(
                f"the database is damaged: {' '.join(verdict.split())}; restore a backup",
                field="database",
            )
    _check_revision(connection, may_be_old=True)
    config = _config()
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, revision)
    planner.tell(connection)


def _check_revision(connection: Connection, *, may_be_old: bool = False) -> None:
    script = ScriptDirectory.from_config(_config())
    head = script.get_current_head()
    found = MigrationContext.configure(connection).get_current_revision()
    if found == head:
        return
    if found is not None and found not in {r.revision for r in script.walk_revisions()}:
        raise CorruptionError(
            f"the database has schema {found}, this release knows up to {head}; upgrade it",
            field="database",
        )
    if not may_be_old:
        raise StateError(
            f"the database has schema {found or 'none'}, needed is {head}; "
            "start the server once to migrate it",
            field="database",
        )


def _opening_error(url: URL, error: Exception) -> Exception:
    cause = getattr(error, "orig", None) or error
    shown = url.render_as_string(hide_password=True)
    text = " ".join(str(cause).split())
    if "not a database" in text or "malformed" in text:
        return CorruptionError(f"{shown} is no database: {text}", field="database")
    return UnavailableError(f"{shown} can not be opened or written: {text}", field="database")


def storage_error(error: BaseException) -> BanditError | None:
    """Give the domain error of a failed statement, or None for any other error."""
    if not isinstance(error, SQLAlchemyError):
        return None
    cause = cause_of(error)
    if "malformed" in cause or "not a database" in cause:
        return CorruptionError(f"the database is damaged: {cause}")
    return UnavailableError(f"the database does not answer: {cause}")


def is_passing(error: DBAPIError) -> bool:
    """Whether the database ended a transaction that it asks to try again."""
    return getattr(error.orig, "sqlstate", None) in _AGAIN


def cause_of(error: BaseException) -> str:
    """Tell what the driver said, in its first line: later ones may quote rows."""
    said = str(getattr(error, "orig", None) or type(error).__name__)
    return (said.strip().splitlines() or [type(error).__name__])[0]
