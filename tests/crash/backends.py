"""Databases that servers are killed on, and server processes on them.

Another database joins by a class with the methods of ``Sqlite`` and an entry in ``BACKENDS``.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, Self

from tests.postgres import PostgresServer

SERVE = ("server",)
_ANNOUNCEMENT = "serving on "


class Backend(Protocol):
    """A database of one test.

    Attributes
    ----------
    url, secret
        Of the database, and the file with the server's secret.
    """

    url: str
    secret: Path

    def __init__(self, folder: Path) -> None:
        """Make it; ``folder`` is the test's own."""

    @contextmanager
    def still(self) -> Iterator[str]:
        """Give the URL of the log as it is now, to be read while no server runs.

        What is read must not be mended by the reading: the next server has to do that.
        """
        yield ""

    def close(self) -> None:
        """End what was started for it."""


class Sqlite:
    """A file in the test's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.url = f"sqlite:///{folder / 'bandit.db'}"
        self.secret = folder / "secret"
        if not self.secret.exists():
            self.secret.write_text(secrets.token_hex(32))

    @contextmanager
    def still(self) -> Iterator[str]:
        """Read a copy: whoever opens the file itself would do the recovery."""
        aside = self._folder / "aside"
        aside.mkdir()
        try:
            for name in ("bandit.db", "bandit.db-wal"):
                if (self._folder / name).exists():
                    shutil.copy(self._folder / name, aside / name)
            yield f"sqlite:///{aside / 'bandit.db'}"
        finally:
            shutil.rmtree(aside)

    def close(self) -> None:
        """Nothing was started."""


class PostgreSQL:
    """A database server of its own, which lives on while our server is killed."""

    def __init__(self, folder: Path) -> None:
        self._server = PostgresServer()
        self.url = self._server.fresh()
        self.secret = folder / "secret"
        self.secret.write_text(secrets.token_hex(32))

    @contextmanager
    def still(self) -> Iterator[str]:
        """Read the database itself: a reader mends nothing there."""
        yield self.url

    def close(self) -> None:
        """End the database server."""
        self._server.stop()


BACKENDS: dict[str, type[Backend]] = {"sqlite": Sqlite, "postgresql": PostgreSQL}


class Served:
    """A server process on a database.

    Parameters
    ----------
    backend
        Where it stores.
    log
        File that its log is appended to.
    port
        0 takes a free one.
    module
        Module to run, with arguments that stand before ``serve``.
    """

    def __init__(
        self, backend: Backend, log: Path, *, port: int = 0, module: Sequence[str] = SERVE
    ) -> None:
        command = [sys.executable, "-m", *module, "serve", "--port", str(port)]
        where = ["--database", backend.url, "--secret-file", str(backend.secret)]
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [*command, *where],
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        line = self._process.stdout.readline()
        if not line.startswith(_ANNOUNCEMENT):
            self._process.wait()
            raise RuntimeError(f"the server did not start: {log.read_text()[-2_000:]}")
        self.address = line.removeprefix(_ANNOUNCEMENT).strip()
        self.port = int(self.address.rpartition(":")[2])
        self.pid = self._process.pid

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        self.wait()

    def wait(self, seconds: float = 120.0) -> int:
        """Wait until it has ended by itself; give its status."""
        status = self._process.wait(seconds)
        self._process.stdout.close()
        return status

    def stop(self, seconds: float = 60.0) -> int:
        """Ask it to drain and end; give its exit status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        watchdog = threading.Timer(seconds, self._process.kill)
        watchdog.start()
        try:
            return self.wait()
        finally:
            watchdog.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
