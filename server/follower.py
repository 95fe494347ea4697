"""The follower: brings what other processes wrote into this one's memory.

It polls a few numbers of every experiment and reads what changed. So a replica's decisions may
be made with a state or a snapshot that is one poll old, and never with one that was not stored.
"""

import logging
import threading

from sqlalchemy import Engine
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from bandit.errors import BanditError
from server import bugs, catalogue
from server.catalogue import Head
from server.database import storage_error
from server.live import Live, LiveExperiment

log = logging.getLogger(__name__)


class Follower:
    """One thread that follows the database.

    Parameters
    ----------
    live
        Brought up to date.
    reader
        Reads the database.
    every
        Seconds between two looks: how far behind a replica may be.

    Attributes
    ----------
    has_died
        Whether its thread ended without being told to.
    """

    def __init__(self, live: Live, reader: Engine, *, every: float = 0.2) -> None:
        self._live = live
        self._reader = reader
        self._every = every
        self.has_died = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        live.look_up = self.look_up

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the look under way, then end."""
        self._stopping.set()
        if self._thread.ident is not None:  # it was started
            self._thread.join()

    def look(self) -> None:
        """Read what changed since the last look."""
        known = {live.id: live for live in self._live.entries()}
        with self._reader.connect() as connection:
            for head in catalogue.heads(connection):
                try:
                    self._follow(connection, head, known.get(head.id))
                except BanditError as error:  # unreadable: the others must not wait for this one
                    log.error("following %r of %r: %s", head.name, head.tenant, error)  # noqa: TRY400

    def _follow(self, connection: Connection, head: Head, live: LiveExperiment | None) -> None:
        """Take over what changed of one experiment."""
        if live is None or head.revision > live.revision:
            row = catalogue.find_experiment(connection, head.tenant, head.name)
            if row is None:
                return
            live = self._live.catch_up(connection, row)
        if (head.version or 0) > live.snapshot.version:
            self._live.refresh(connection, live)
        self._confirm(head)

    def look_up(self, tenant: str, name: str) -> None:
        """Take in an experiment that another process has just created or started."""
        with self._reader.connect() as connection:
            row = catalogue.find_experiment(connection, tenant, name)
            if row is not None:
                self._live.catch_up(connection, row)

    def _confirm(self, head: Head) -> None:
        """Pass on what the learner said of its snapshot, if that is the one here."""
        if head.current_at and head.current_at > (self._live.confirmed_at(head.id) or 0):
            self._live.confirm(head.id, head.current_at)

    def _run(self) -> None:
        try:
            while not self._stopping.wait(self._every):
                try:
                    self.look()
                except (BanditError, SQLAlchemyError) as error:
                    log.error("following the database: %s", storage_error(error) or error)  # noqa: TRY400
                except Exception as error:  # noqa: BLE001
                    bugs.tell(log, "the follower met a bug", error)
        except BaseException:
            self.has_died = True
            raise
