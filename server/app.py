"""One server process, put together: database, writer, learner, services, transport."""

import logging
import os
import secrets
import socket
import threading

from sqlalchemy.engine import Connection

from bandit.errors import InvalidInputError
from bandit.rng import keyed
from bandit.warm_up import warm_up
from server import catalogue
from server.access import OpenAccess, TokenAccess
from server.clock import Clock, system_clock
from server.database import Database, check_url
from server.follower import Follower
from server.learner import Learner
from server.leasing import Leases
from server.live import Live
from server.service import DecisionService, ExperimentService
from server.settings import Settings, load_secret
from server.transport import Transport
from server.writer import Writer

log = logging.getLogger(__name__)


class Server:
    """A server that recovers when it starts and loses nothing when it stops.

    Parameters
    ----------
    settings
        What was asked for.
    clock
        The time; another one in tests and simulations.

    Raises
    ------
    BanditError
        If the database, the secret or the port can not be used; nothing is left open then.
    """

    def __init__(self, settings: Settings, *, clock: Clock = system_clock) -> None:
        _check_address(settings)
        self.settings = settings
        check_url(settings.database)
        secret = load_secret(settings)
        self.database = Database(settings.database)
        try:
            with self.database.alone() as connection:
                check_secret(connection, secret)
            self.live = Live(secret, clock)
            with self.database.reader.connect() as connection:
                self.live.load(connection)
            reader = self.database.reader
            self.writer = Writer(
                self.database.writer,
                on_health=self._tell_health,
                turn=self.database.turn,
                most_waiting=settings.queue_rows,
            )
            self._tokens = TokenAccess(reader, clock) if settings.has_tokens else None
            leases, self.follower = None, None
            if self.database.is_shared:
                holder = f"{socket.gethostname()[:24]}-{os.getpid()}-{secrets.token_hex(6)}"
                term = round(settings.lease * 1e6)
                leases = Leases(holder, self.writer, reader, clock, term=term)
                self.follower = Follower(self.live, reader, every=settings.poll)
            self.learner = Learner(self.live, reader, self.writer, clock, leases)
            self._transport = Transport(
                settings,
                DecisionService(self.live, reader, self.writer, clock, self.learner.notify),
                ExperimentService(
                    *(self.live, reader, self.writer, clock, secret, settings.max_experiments),
                    learned=self.learner.notify,
                ),
                self.writer,
                self._tokens or OpenAccess(),
            )
        except BaseException:
            self.database.close()
            raise
        self._clock = clock
        self._is_open = False
        self.port = self._transport.port

    def start(self) -> None:
        """Compile kernels, prove that a commit works, listen, and only then say SERVING."""
        warm_up()
        self.writer.start()
        probe = str(self._clock())
        self.writer.call(lambda c: catalogue.set_fact(c, "last_start", probe))
        self.learner.start()
        if self.follower is not None:
            self.follower.start()
        if self._tokens is not None:
            self._tokens.start()
        elif not self.settings.is_loopback:
            log.warning("whoever reaches %s may do everything: no tokens", self.settings.host)
        self._transport.start()
        self._is_open = True
        self._transport.set_serving(is_serving=True)
        log.info("serving on %s:%d", self.settings.host, self.port)

    def _tell_health(self, is_healthy: bool) -> None:  # noqa: FBT001
        """Let health checks know that writes fail, or work again."""
        log.warning("writes %s", "work again" if is_healthy else "fail")
        if self._is_open:
            self._transport.set_serving(is_serving=is_healthy)

    def stop(self) -> None:
        """Drain: refuse new requests, finish those under way, write what waits, close.

        Notes
        -----
        If that takes longer than the grace period and five seconds more, the process ends
        all the same: whatever was acknowledged is durable by then.
        """
        deadline = threading.Timer(self.settings.grace + 5.0, os._exit, args=(1,))
        deadline.daemon = True
        deadline.start()
        self._is_open = False
        try:
            self._transport.stop(self.settings.grace)
            if self.follower is not None:
                self.follower.stop()
            if self._tokens is not None:
                self._tokens.stop()
            self.learner.stop()
            self.writer.stop()
            self.database.close()
        finally:
            deadline.cancel()
        log.info("stopped")


def check_secret(connection: Connection, secret: bytes) -> None:
    """Refuse another secret than the one this database was written with.

    Raises
    ------
    InvalidInputError
        If it is another one.
    """
    mine = keyed(secret, "fingerprint", "", b"").hex()
    written = catalogue.fact(connection, "secret_fingerprint")
    if written is None:
        catalogue.set_fact(connection, "secret_fingerprint", mine)
    elif written != mine:
        raise InvalidInputError(
            "is not the secret this database was written with: draws, groups and customers "
            "would all change",
            field="secret_file",
        )


def _check_address(settings: Settings) -> None:
    """Refuse to be reached by others in plain text, or by everybody."""
    if settings.insecure or settings.is_loopback:
        return
    if settings.tls_certificate is None:
        raise InvalidInputError(
            f"{settings.host} is no loopback address, and requests would travel in plain text; "
            "give --tls-certificate and --tls-key, or use 127.0.0.1, or say --insecure",
            field="host",
        )
    if not settings.has_tokens:
        raise InvalidInputError(
            f"{settings.host} is no loopback address, and whoever reaches it could do "
            "everything; leave --auth at tokens, or say --insecure",
            field="auth",
        )
