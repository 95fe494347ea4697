"""A server of one's own, in a process of its own: for demonstrations and replays."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from bandit.errors import UnavailableError

_ANNOUNCEMENT = "serving on "


class LocalServer:
    """A server process on a free loopback port, stopped on leaving.

    Parameters
    ----------
    folder
        Where its database and its log file go.
    secret
        Its secret; the same gives the same decisions.
    port
        0 takes a free one.
    database
        URL of a database that exists; if empty, an SQLite file in the folder.

    Raises
    ------
    UnavailableError
        If it does not come up; the message is its last line.
    """

    def __init__(
        self, folder: Path, *, secret: bytes | None = None, port: int = 0, database: str = ""
    ) -> None:
        self.database = database or f"sqlite:///{folder / 'bandit.db'}"
        self._log = folder / "server.log"
        secret_file = folder / "bandit.db.secret"
        if secret is not None and not secret_file.exists():
            secret_file.write_bytes(secret)
        command = [sys.executable, "-m", "server", "serve", "--database", self.database]
        if database:
            command += ["--secret-file", str(secret_file)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  our own command
                [*command, "--port", str(port)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        self.address = self._announced()

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def _announced(self) -> str:
        pipe = self._process.stdout
        line = pipe.readline() if pipe is not None else ""
        if not line.startswith(_ANNOUNCEMENT):
            self._process.wait()
            written = self._log.read_text(errors="replace").strip().splitlines()
            raise UnavailableError(written[-1] if written else "the server ended at once")
        return line.removeprefix(_ANNOUNCEMENT).strip()

    def kill(self) -> None:
        """End the process as a crash would."""
        self._process.kill()
        self._process.wait()
        self._close()

    def stop(self) -> int:
        """Ask the process to drain and end; give its exit status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        watchdog = threading.Timer(30.0, self._process.kill)
        watchdog.start()
        status = self._process.wait()
        watchdog.cancel()
        self._close()
        return status

    def _close(self) -> None:
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
