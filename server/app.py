"""One server process, put together: database, writer, learner, services, transport."""

import logging
import os
import threading
from ipaddress import ip_address

from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from bandit.errors import BanditError, InvalidInputError
from bandit.rng import keyed
from bandit.warm_up import warm_up
from server import catalogue
from server.clock import Clock, system_clock
from server.database import Database, check_url
from server.learner import Learner
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
            with self.database.writer.begin() as connection:
                check_secret(connection, secret)
                epoch = catalogue.begin_epoch(connection)
            self.database.writer.update_execution_options(epoch=epoch)
            self.live = Live(secret, clock)
            with self.database.reader.connect() as connection:
                self.live.load(connection)
            reader = self.database.reader
            self.writer = Writer(self.database.writer, on_health=self._tell_health)
            self.learner = Learner(self.live, reader, self.writer, clock)
            self._transport = Transport(
                settings,
                DecisionService(self.live, reader, self.writer, clock, self.learner.notify),
                ExperimentService(
                    self.live, reader, self.writer, clock, secret, settings.max_experiments
                ),
                self.writer,
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
        self._transport.start()
        self._is_open = True
        self._transport.set_serving(is_serving=True)
        log.info("serving on %s:%d", self.settings.host, self.port)

    def _tell_health(self, is_healthy: bool) -> None:  # noqa: FBT001
        """Let health checks know that writes fail, or work again."""
        log.warning("writes %s", "work again" if is_healthy else "fail")
        if is_healthy:
            self._hold_again()
        if self._is_open:
            self._transport.set_serving(is_serving=is_healthy)

    def _hold_again(self) -> None:
        """Take back the lock that went with the connection to the database."""
        try:
            self.database.hold()
        except (BanditError, SQLAlchemyError) as error:
            log.error("this server no longer holds its database: %s", error)  # noqa: TRY400

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
    if settings.insecure or settings.host == "localhost":
        return
    try:
        is_loopback = ip_address(settings.host.strip("[]")).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise InvalidInputError(
            f"{settings.host} is no loopback address, and requests would travel in plain text; "
            "use 127.0.0.1 behind a proxy that speaks TLS, or say --insecure",
            field="host",
        )
