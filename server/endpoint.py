"""HTTP for operators: /metrics for Prometheus, /healthz and /readyz for Kubernetes.

A port of its own, so that it can be open to the machines that watch and closed to those that
call. It answers GET and nothing else, with few threads and short patience.
"""

import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from bandit.errors import UnavailableError
from server.health import State

log = logging.getLogger(__name__)

THREADS = 4
MOST_WAITING = 64
"""Connections that may wait for a thread; more are closed at once."""
PATIENCE = 5.0
"""Seconds that a connection may take from its first thread's look to its end."""


class Endpoint:
    """An HTTP server on one port.

    Parameters
    ----------
    host, port
        Where; port 0 takes a free one.
    registry
        What ``/metrics`` shows.
    health
        Asked by ``/healthz`` and ``/readyz``.

    Raises
    ------
    UnavailableError
        If the address can not be bound.
    """

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, health: Callable[[], State]
    ) -> None:
        class Handler(_Handler):
            timeout = PATIENCE
            pages = _Pages(registry, health)

        try:
            self._server = _Server((host.strip("[]"), port), Handler)
        except OSError as error:
            raise UnavailableError(
                f"can not listen on {host}:{port}: {error.strerror}; metrics need a port of their "
                "own, in every process",
                field="metrics_port",
            ) from None
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="endpoint", daemon=True
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        if self._thread.ident is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Pages:
    """What each path answers: status, type of content, content."""

    def __init__(self, registry: CollectorRegistry, health: Callable[[], State]) -> None:
        self._registry = registry
        self._health = health

    def find(self, path: str, accepted: str) -> tuple[HTTPStatus, str, bytes]:
        if path == "/metrics":
            encoder, kind = choose_encoder(accepted)
            return HTTPStatus.OK, kind, encoder(self._registry)
        if path == "/healthz":
            return self._told(self._health().dead)
        if path == "/readyz":
            return self._told(self._health().unready)
        text = b"there are /metrics, /healthz and /readyz\n"
        return HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", text

    @staticmethod
    def _told(problems: tuple[str, ...]) -> tuple[HTTPStatus, str, bytes]:
        status = HTTPStatus.SERVICE_UNAVAILABLE if problems else HTTPStatus.OK
        text = "\n".join(problems or ("ok",)) + "\n"
        return status, "text/plain; charset=utf-8", text.encode()


class _Server(HTTPServer):
    """Gives connections to a few threads."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="endpoint")
        self._places = threading.Semaphore(THREADS + MOST_WAITING)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        if self._places.acquire(blocking=False):
            self._pool.submit(self._answer, request, client_address)
        else:
            self.shutdown_request(request)

    def _answer(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        late = threading.Timer(PATIENCE, _cut, (request,))  # also who sends a byte at a time
        late.daemon = True
        late.start()
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # whoever asked went away
        except Exception:
            log.exception("a page of the metrics port could not be made")
        finally:
            late.cancel()
            self.shutdown_request(request)
            self._places.release()

    def server_close(self) -> None:
        super().server_close()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _cut(request: socket.socket) -> None:
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    pages: _Pages
    server_version = "banditctl"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer with a page."""
        path = self.path.partition("?")[0]
        status, kind, data = self.pages.find(path, self.headers.get("Accept", ""))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet: a scrape every few seconds is no event."""
