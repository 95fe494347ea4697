"""The learner: settles outcomes, folds them in log order, and publishes snapshots.

The posterior after sequence n is a pure function of the log's entries 1..n: the learner
keeps nothing that a fold from scratch would not give, and stores its state together with
its place in one transaction. An omission among those entries makes it fold from scratch.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from bandit import encoding
from bandit.errors import BanditError, ChangedError, ConflictError, NotFoundError
from bandit.posterior import Posterior
from server import bugs, catalogue, ledger, lessons, omissions, retention
from server.catalogue import Published, State
from server.clock import Clock
from server.database import storage_error
from server.leasing import Leases
from server.lessons import Refold
from server.live import Live, LiveExperiment
from server.omissions import Omission
from server.tracing import Tracing
from server.writer import Writer

log = logging.getLogger(__name__)

T = TypeVar("T")
_LONGEST_SLEEP = 0.25
_IDLE_US = 10_000_000
"""After this long without an outcome a published posterior is let go: the snapshot has it."""


@dataclass(slots=True)
class _Student:
    """What the learner remembers of one experiment between two looks.

    ``seen`` is the last outcome it has read, ``left_out`` the omissions it has heard, and
    ``is_changed`` whether one of them is not published yet. While one is being heard, ``anew``
    folds the log from scratch.

    The posterior may be gone while nothing new is in it: thousands of experiments sleep. What
    was folded with one specification is not for another: ``spec_revision`` says for which it is.
    """

    spec_revision: int
    version: int
    seen: int
    left_out: list[Omission]
    posterior: Posterior | None = None
    anew: Refold | None = None
    used_at: int = 0
    looked_at: int = 0
    due_at: int = 0
    first_at: int | None = None
    new: int = 0
    is_changed: bool = False


class Learner:
    """One thread that learns for every experiment.

    Parameters
    ----------
    live
        Told of every publication.
    reader
        Reads the log.
    writer
        Stores outcomes and snapshots.
    clock
        Decides what is due.
    leases
        Which experiments are this process's to learn; None if all are.
    tracing
        Where spans of folds and publications go; None for nowhere.

    Attributes
    ----------
    has_died
        Whether its thread ended without being told to.
    """

    def __init__(  # noqa: PLR0913
        self,
        live: Live,
        reader: Engine,
        writer: Writer,
        clock: Clock,
        leases: Leases | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._leases = leases
        self.has_died = False
        self._tracing = tracing
        self._live = live
        self._reader = reader
        self._writer = writer
        self._clock = clock
        self._students: dict[int, _Student] = {}
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="learner", daemon=True)

    def start(self) -> None:
        """Begin to learn."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the step under way, then end."""
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:  # it was started
            self._thread.join()

    def waiting(self, experiment_id: int) -> int | None:
        """Give the outcomes folded and not yet published; None if this process does not learn."""
        student = self._students.get(experiment_id)
        return None if student is None else student.new

    def notify(self) -> None:
        """Say that outcomes were closed, so that the learner need not sleep on."""
        self._wake.set()

    def step(self, live: LiveExperiment, *, flush: bool = False) -> bool:
        """Settle, fold and publish what is due of one experiment.

        Parameters
        ----------
        flush
            Publish even if neither the count nor the time asks for it.

        Returns
        -------
        Whether there may be more to do at once.
        """
        if self._leases is not None and not self._is_mine(live.id):
            if not self._leases.acquire(live.id):
                return False
            self._students.pop(live.id, None)
        began = self._clock()
        live, student = self._student(live)
        if began < student.looked_at:  # the clock was set back: nothing waits for what it said
            student.due_at, student.first_at = 0, student.first_at and began
        student.looked_at = began
        busy = self._settle(live, student)
        busy |= self._fold(live, student)
        publishing = live.experiment.spec.publishing
        waited = self._clock() - (student.first_at or self._clock())
        full = student.new >= publishing.outcomes or waited >= publishing.seconds * 1e6
        if student.anew is None and (student.is_changed or (student.new and (full or flush))):
            self._publish(live, student)
        if not student.new and not busy:
            self._live.confirm(live.id, began)
        return busy

    def _run(self) -> None:
        try:
            self._learn()
        except BaseException as error:  # noqa: BLE001
            self.has_died = True
            bugs.tell(log, "the learner's thread died; nothing is learned any more", error)

    def _learn(self) -> None:
        while not self._stopping:
            self._wake.clear()
            busy = False
            self._look_at_leases()
            for live in self._live.entries():
                if live.state is State.DRAFT or not self._is_mine(live.id):
                    continue
                try:
                    busy |= self.step(live)
                except ChangedError as error:  # it was edited: nothing of this is published
                    self._students.pop(live.id, None)
                    busy = True
                    log.info("learning anew: %s", error, extra=_named(live))
                except ConflictError as error:  # somebody else published: look again
                    self._lose(live.id)
                    log.warning("learning: %s", error, extra=_named(live))
                except BanditError as error:
                    log.error("learning: %s", error, extra=_named(live))  # noqa: TRY400
                except Exception as error:  # noqa: BLE001
                    bugs.tell(log, f"the learner met a bug in {live.experiment.spec.name!r}", error)
            if not busy and not self._stopping:
                self._wake.wait(self._pause())

    def _look_at_leases(self) -> None:
        if self._leases is None:
            return
        current = {i: at for i in self._students if (at := self._live.confirmed_at(i))}
        try:
            self._leases.look(current)
        except (BanditError, SQLAlchemyError) as error:
            log.error("leases: %s", storage_error(error) or error)  # noqa: TRY400
        for one in [one for one in self._students if not self._is_mine(one)]:
            del self._students[one]

    def _is_mine(self, experiment_id: int) -> bool:
        return self._leases is None or self._leases.epoch(experiment_id) is not None

    def _lose(self, experiment_id: int) -> None:
        self._students.pop(experiment_id, None)
        if self._leases is not None:
            self._leases.lose(experiment_id)

    def _write(self, experiment_id: int, write: Callable[[Connection], T]) -> T:
        """Write what a learner writes: under its lease, where there are leases."""
        if self._leases is None:
            return self._writer.call(write, experiment_id=experiment_id)
        return self._leases.fenced(experiment_id, write)

    def _pause(self) -> float:
        """Give the seconds until something can be due."""
        now = self._clock()
        pause = _LONGEST_SLEEP
        for live in self._live.entries():
            student = self._students.get(live.id)
            if student is not None and student.first_at is not None:
                due = student.first_at + live.experiment.spec.publishing.seconds * 1e6
                pause = min(pause, (due - now) / 1e6)
        return max(pause, 0.005)

    def _student(self, live: LiveExperiment) -> tuple[LiveExperiment, _Student]:
        """Give what is remembered of an experiment, and the experiment that it is for."""
        student = self._students.get(live.id)
        if student is not None and student.spec_revision == live.spec_revision:
            return live, student
        with self._reader.connect() as connection:
            row = catalogue.find_experiment(connection, live.tenant, live.experiment.spec.name)
            if row is None:
                raise NotFoundError(f"no experiment {live.experiment.spec.name!r}")
            live = self._live.catch_up(connection, row)
            if live.spec_revision != row.spec_revision:  # since this reading began
                raise ChangedError(f"experiment {live.experiment.spec.name!r} is being edited")
            published = catalogue.latest_snapshot(connection, live.id)
            left_out = omissions.after(connection, live.id, 0)
        seq, version = (published.seq, published.version) if published else (0, 0)
        heard = [omission for omission in left_out if omission.seq <= seq]
        student = _Student(live.spec_revision, version, seq, heard)
        self._students[live.id] = student
        return live, student

    def _posterior(self, live: LiveExperiment, student: _Student) -> Posterior:
        if student.posterior is None:
            with self._reader.connect() as connection:
                student.posterior, _ = self._live.restore(connection, live)
        return student.posterior

    def _settle(self, live: LiveExperiment, student: _Student) -> bool:
        now = self._clock()
        if now < student.due_at:
            return False
        rule = live.experiment.spec.outcome
        closed = self._write(live.id, lambda c: ledger.close_due(c, live.id, rule, now))
        pause = 60_000_000 if live.state is State.ARCHIVED else 250_000
        nothing_open = now + min(rule.window_us, pause)
        student.due_at = closed.next_due if closed.next_due is not None else nothing_open
        if rule.is_confirmed:  # an exposure can begin a window that ends before all others
            student.due_at = min(student.due_at, now + pause)
        return closed.settled > 0

    def _fold(self, live: LiveExperiment, student: _Student) -> bool:
        with self._reader.connect() as connection:
            if student.anew is not None:
                self._fold_anew(connection, live, student, student.anew)
                return True
            found = lessons.read(
                *(connection, live.id, live.experiment.spec.outcome),
                after=student.seen,
                left_out=student.left_out,
            )
            last = student.left_out[-1].seq if student.left_out else 0
            fresh = omissions.after(connection, live.id, last)  # after the outcomes, to miss none
            if found.rows:  # an edit may have added actions that these outcomes are of
                catalogue.check_spec(connection, live.id, live.spec_revision)
            if fresh:
                self._begin_anew(connection, live, student, fresh)
                return True
        now = self._clock()
        if found.rows:
            student.first_at = student.first_at or now
            posterior = self._posterior(live, student)
            with self._span_of_fold(live, len(found.rows)):
                lessons.learn(live.experiment, posterior, found.rows)
            student.new, student.used_at = student.new + len(found.rows), now
        elif not (student.new or student.is_changed) and now - student.used_at > _IDLE_US:
            student.posterior = None
        student.seen = found.last
        return found.read == lessons.FOLD_ROWS

    def _begin_anew(
        self,
        connection: Connection,
        live: LiveExperiment,
        student: _Student,
        fresh: list[Omission],
    ) -> None:
        """Begin to fold the log from scratch without what is left out from now on."""
        log.warning(
            "folding %r anew: its log leaves something out at %s",
            live.experiment.spec.name,
            ", ".join(str(omission.seq) for omission in fresh),
        )
        start = retention.base(connection, live) or live.experiment.prior()
        student.anew = Refold(start, [*student.left_out, *fresh])

    @staticmethod
    def _fold_anew(
        connection: Connection, live: LiveExperiment, student: _Student, anew: Refold
    ) -> None:
        """Fold a stretch of the log, so that other experiments and a stop need not wait."""
        catalogue.check_spec(connection, live.id, live.spec_revision)
        if retention.place(connection, live.id) != anew.start:  # some of what is ahead was dropped
            base = retention.base(connection, live) or live.experiment.prior()
            student.anew = Refold(base, anew.left_out)
        elif not anew.step(connection, live.experiment, live.id):
            student.posterior, student.left_out = anew.posterior, anew.left_out
            student.seen, student.anew = anew.last, None
            student.is_changed = True

    def _span_of_fold(self, live: LiveExperiment, outcomes: int) -> AbstractContextManager[None]:
        if self._tracing is None:
            return nullcontext()
        return self._tracing.fold(live.id, live.experiment.spec.name, outcomes)

    def _publish(self, live: LiveExperiment, student: _Student) -> None:
        if self._tracing is None:
            self._publish_next(live, student)
        else:
            name = live.experiment.spec.name
            with self._tracing.publication(live.id, name, student.version + 1):
                self._publish_next(live, student)

    def _publish_next(self, live: LiveExperiment, student: _Student) -> None:
        version = student.version + 1
        posterior = self._posterior(live, student)
        snapshot = live.experiment.publish(posterior, version=version)
        data = encoding.to_bytes(posterior)
        now = self._clock()
        published = Published(
            version, snapshot.seq, snapshot.count, encoding.digest(data), now, data
        )

        def store(connection: Connection) -> None:
            catalogue.check_spec(connection, live.id, live.spec_revision)
            catalogue.add_snapshot(connection, live.id, published)

        self._write(live.id, store)
        self._live.publish(live.id, snapshot, now)
        log.debug("published", extra={**_named(live), "version": version, "outcomes": student.new})
        student.version, student.new, student.first_at = version, 0, None
        student.is_changed = False


def _named(live: LiveExperiment) -> dict[str, str]:
    """Give the fields of a log line about an experiment."""
    return {"tenant": live.tenant, "experiment": live.experiment.spec.name}
