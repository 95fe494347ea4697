"""One server process, put together: database, writer, learner, services, transport."""

import logging
import os
import secrets
import socket
import threading
from collections.abc import Sequence
from typing import Any

from sqlalchemy.engine import Connection

from bandit.errors import BanditError, InvalidInputError
from bandit.rng import keyed
from bandit.warm_up import warm_up
from server import catalogue, metrics
from server.access import OpenAccess, TokenAccess
from server.clock import Clock, system_clock
from server.counters import Counters
from server.database import Database, check_url
from server.endpoint import Endpoint
from server.follower import Follower
from server.health import Health, Part, State
from server.learner import Learner
from server.leasing import Leases
from server.live import Live
from server.sample_ratio import SampleRatios
from server.service import DecisionService, ExperimentService
from server.settings import Settings, load_secret
from server.tracing import open_tracing
from server.transport import Transport
from server.writer import Job, Writer

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
            self.tracing = open_tracing(settings.trace_endpoint, settings.trace_share)
            self.counters = Counters()
            self.writer = Writer(
                self.database.writer,
                on_health=lambda is_healthy: self.health.tell_writes(is_healthy),
                turn=self.database.turn,
                most_waiting=settings.queue_rows,
                on_submit=None if self.tracing is None else self.tracing.waits,
                on_commit=self._committed,
                guard=self.database.check_file,
            )
            self._tokens = TokenAccess(reader, clock) if settings.has_tokens else None
            self.leases, self.follower = None, None
            if self.database.is_shared:
                holder = f"{socket.gethostname()[:24]}-{os.getpid()}-{secrets.token_hex(6)}"
                term = round(settings.lease * 1e6)
                self.leases = Leases(holder, self.writer, reader, clock, term=term)
                self.follower = Follower(self.live, reader, every=settings.poll)
            self.learner = Learner(self.live, reader, self.writer, clock, self.leases, self.tracing)
            parts: dict[str, Part] = {"writer": self.writer, "learner": self.learner}
            if self.follower is not None:
                parts["follower"] = self.follower
            self.health = Health(self.database, self.writer, parts, clock)
            self.sample_ratios = SampleRatios(self.live, reader)
            self._transport = Transport(
                settings,
                DecisionService(self.live, reader, self.writer, clock, self.learner.notify),
                ExperimentService(
                    *(self.live, reader, self.writer, clock, secret, settings.max_experiments),
                    learned=self.learner.notify,
                    is_gated=settings.gate == "required",
                ),
                self.writer,
                self._tokens or OpenAccess(),
                self.counters,
                self.tracing,
            )
            self._clock = clock
            self.endpoint = self._made_endpoint()
        except BaseException:
            self.database.close()
            raise
        self.health.on_change = self._tell_health
        self.port = self._transport.port

    def _made_endpoint(self) -> Endpoint | None:
        if self.settings.metrics_port is None:
            return None
        sources = metrics.Sources(
            counters=self.counters,
            live=self.live,
            writer=self.writer,
            learner=self.learner,
            health=self.health,
            ratios=self.sample_ratios,
            clock=self._clock,
        )
        host, port = self.settings.metrics_host, self.settings.metrics_port
        return Endpoint(host, port, metrics.registry(sources), self.health.state)

    def start(self) -> None:
        """Compile kernels, prove that a commit works, listen, and only then say SERVING."""
        if self.endpoint is not None:  # it tells from the first moment that we are not ready
            self.endpoint.start()
            log.info("metrics on %s:%d", self.settings.metrics_host, self.endpoint.port)
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
        if self.endpoint is not None:
            self.sample_ratios.start()
        self._transport.start()
        self.health.open()
        log.info("serving on %s:%d", self.settings.host, self.port)

    def _tell_health(self, state: State) -> None:
        """Let health checks know what was found."""
        self._transport.set_serving(is_serving=state.is_ready)
        self._transport.set_alive(is_alive=state.is_alive)

    def _committed(self, jobs: Sequence[Job[Any]], seconds: float) -> None:
        self.counters.committed(jobs, seconds)
        if self.tracing is not None:
            self.tracing.committed(jobs, seconds)

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
        try:
            self.health.drain()
            self._transport.stop(self.settings.grace)
            self.health.close()
            if self.follower is not None:
                self.follower.stop()
            if self._tokens is not None:
                self._tokens.stop()
            self.sample_ratios.stop()
            self.learner.stop()
            self._release()
            self.writer.stop()
            if self.endpoint is not None:
                self.endpoint.stop()
            if self.tracing is not None:
                self.tracing.close()
            self.database.close()
        finally:
            deadline.cancel()
        log.info("stopped")

    def _release(self) -> None:
        """Let others learn at once; without the database they wait for the leases to end."""
        if self.leases is not None:
            try:
                self.leases.release()
            except BanditError as error:
                log.warning("leases could not be given up: %s", error)


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
