"""Several server processes on one port: started, watched and stopped together.

Each is a process of its own, spawned and never forked: gRPC does not survive a fork. The kernel
spreads connections over those that listen on the port.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from sqlalchemy import make_url

from bandit.errors import InvalidInputError, UnavailableError
from server.database import check_url
from server.settings import Settings

log = logging.getLogger(__name__)

PAUSE = 1.0
"""Seconds before a worker that died is started again."""


def run_workers(settings: Settings, on_ready: Callable[[int], None]) -> int:
    """Serve with several processes until SIGTERM or SIGINT; give the exit status.

    Parameters
    ----------
    settings
        Of each worker, ``workers`` apart.
    on_ready
        Told the port once all of them serve.

    Raises
    ------
    InvalidInputError
        If the database takes one process only.
    UnavailableError
        If the port can not be shared.
    """
    check_url(settings.database)
    if make_url(settings.database).get_backend_name() == "sqlite":
        raise InvalidInputError(
            f"{settings.workers} processes can not share SQLite, where one connection writes; "
            "use PostgreSQL, or one worker",
            field="workers",
        )
    asked = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    with _shared_port(settings) as port:
        return _Workers(settings, port, asked).run(on_ready)


@contextmanager
def _shared_port(settings: Settings) -> Iterator[int]:
    """Bind the port without listening, so that it stays ours between two workers."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as held:
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind((settings.host.strip("[]"), settings.port))
        except OSError as error:
            raise UnavailableError(
                f"can not share {settings.host}:{settings.port}: {error.strerror}", field="port"
            ) from None
        yield int(held.getsockname()[1])


class _Workers:
    def __init__(self, settings: Settings, port: int, asked: threading.Event) -> None:
        self._settings = settings
        self._port = port
        self._asked = asked
        self._running: list[subprocess.Popen[str]] = []

    def run(self, on_ready: Callable[[int], None]) -> int:
        """Start all, watch them, stop them."""
        try:
            self._running = [self._spawn(i) for i in range(self._settings.workers)]
            if not all(self._is_ready(worker) for worker in self._running):
                return 1
            on_ready(self._port)
            self._watch()
        finally:
            status = self._stop()
        return status

    def _spawn(self, index: int) -> "subprocess.Popen[str]":
        given = self._settings.model_dump(exclude_none=True)
        given |= {"port": self._port, "workers": 1, "share_port": True, "supervised": True}
        if self._settings.metrics_port:
            given["metrics_port"] = self._settings.metrics_port + index
        environment = os.environ | {f"BANDIT_{k.upper()}": str(v) for k, v in given.items()}
        return subprocess.Popen(
            [sys.executable, "-m", "server", "serve"],
            env=environment,
            stdin=subprocess.PIPE,  # closes when this process ends, however it does
            stdout=subprocess.PIPE,
            text=True,
        )

    def _is_ready(self, worker: "subprocess.Popen[str]") -> bool:
        """Wait for a worker's first line: that it serves."""
        return worker.stdout is not None and worker.stdout.readline().startswith("serving on")

    def _watch(self) -> None:
        while not self._asked.wait(0.1):
            for i, worker in enumerate(self._running):
                if worker.poll() is None:
                    continue
                log.error("worker %d ended with status %s", worker.pid, worker.returncode)
                if self._asked.wait(PAUSE):
                    return
                self._running[i] = self._spawn(i)

    def _stop(self) -> int:
        """Let all drain; give 1 if one had to be ended, or ended badly.

        One that was still starting ends by the signal itself: it had nothing to drain.
        """
        for worker in self._running:
            if worker.poll() is None:
                worker.terminate()
        deadline = time.monotonic() + self._settings.grace + 10.0
        for worker in self._running:
            try:
                worker.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        return int(any(w.returncode not in (0, -signal.SIGTERM) for w in self._running))
