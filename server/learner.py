"""The learner: settles outcomes, folds them in log order, and publishes snapshots.

The posterior after sequence n is a pure function of the log's entries 1..n: the learner
keeps nothing that a fold from scratch would not give, and stores its state together with
its place in one transaction.
"""

import logging
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Engine

from bandit import encoding
from bandit.errors import BanditError, ConflictError
from bandit.kernels.compiling import Floats
from bandit.posterior import Posterior
from server import catalogue, storage
from server.catalogue import Published, State
from server.clock import Clock
from server.live import Live, LiveExperiment
from server.schema import AnyRow
from server.tracing import Tracing
from server.writer import Writer

log = logging.getLogger(__name__)

FOLD_ROWS = 10_000
_LONGEST_SLEEP = 0.25


def rows_of(contexts: list[bytes]) -> Floats:
    """Read stored contexts, each a row of little-endian float64, shape (n, fields)."""
    return np.frombuffer(b"".join(contexts), dtype="<f8").reshape(len(contexts), -1).copy()


def times_of(entries: Sequence[AnyRow]) -> Floats:
    """Give when the decisions behind outcomes were made, in seconds since 1970, shape (n,)."""
    return np.array([entry.decided_at for entry in entries]) / 1e6


@dataclass(slots=True)
class _Student:
    """What the learner remembers of one experiment between two looks."""

    posterior: Posterior
    version: int
    due_at: int = 0
    first_at: int | None = None
    new: int = 0


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
    tracing
        Where spans of folds and publications go; None for nowhere.

    Attributes
    ----------
    has_died
        Whether its thread ended without being told to.
    """

    def __init__(
        self,
        live: Live,
        reader: Engine,
        writer: Writer,
        clock: Clock,
        tracing: Tracing | None = None,
    ) -> None:
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
        began = self._clock()
        student = self._student(live)
        busy = self._settle(live, student)
        busy |= self._fold(live, student)
        publishing = live.experiment.spec.publishing
        waited = self._clock() - (student.first_at or self._clock())
        full = student.new >= publishing.outcomes or waited >= publishing.seconds * 1e6
        if student.new and (full or flush):
            self._publish(live, student)
        if not student.new and not busy:
            self._live.confirm(live.id, began)
        return busy

    def _run(self) -> None:
        try:
            self._learn()
        except BaseException:
            self.has_died = True
            log.critical("the learner's thread died; nothing is learned any more", exc_info=True)

    def _learn(self) -> None:
        while not self._stopping:
            self._wake.clear()
            busy = False
            for live in self._live.entries():
                if live.state is State.DRAFT:
                    continue
                try:
                    busy |= self.step(live)
                except ConflictError as error:  # somebody else published: look again
                    self._students.pop(live.id, None)
                    log.warning("learning: %s", error, extra=_named(live))
                except BanditError as error:
                    log.error("learning: %s", error, extra=_named(live))  # noqa: TRY400
                except Exception:
                    log.exception("the learner met a bug", extra=_named(live))
            if not busy and not self._stopping:
                self._wake.wait(self._pause())

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

    def _student(self, live: LiveExperiment) -> _Student:
        student = self._students.get(live.id)
        if student is None:
            with self._reader.connect() as connection:
                posterior, published = self._live.restore(connection, live)
            student = _Student(posterior, published.version if published else 0)
            self._students[live.id] = student
        return student

    def _settle(self, live: LiveExperiment, student: _Student) -> bool:
        now = self._clock()
        if now < student.due_at:
            return False
        rule = live.experiment.spec.outcome
        closed = self._writer.call(lambda c: storage.close_due(c, live.id, rule, now))
        pause = 60_000_000 if live.state is State.ARCHIVED else 250_000
        nothing_open = now + min(rule.window_us, pause)
        student.due_at = closed.next_due if closed.next_due is not None else nothing_open
        return closed.settled > 0

    def _fold(self, live: LiveExperiment, student: _Student) -> bool:
        with self._reader.connect() as connection:
            entries = storage.unlearned(connection, live.id, student.posterior.seq, FOLD_ROWS)
        if not entries:
            return False
        now = self._clock()
        student.first_at = student.first_at or now
        with self._span_of_fold(live, len(entries)):
            live.experiment.learn(
                student.posterior,
                rows_of([entry.context for entry in entries]),
                [entry.action for entry in entries],
                np.array([entry.value for entry in entries]),
                times=times_of(entries),
                seq=entries[-1].seq,
            )
        student.new += len(entries)
        return len(entries) == FOLD_ROWS

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
        snapshot = live.experiment.publish(student.posterior, version=version)
        data = encoding.to_bytes(student.posterior)
        now = self._clock()
        published = Published(
            version, snapshot.seq, snapshot.count, encoding.digest(data), now, data
        )
        self._writer.call(lambda c: catalogue.add_snapshot(c, live.id, published))
        self._live.publish(live.id, snapshot, now)
        log.debug("published", extra={**_named(live), "version": version, "outcomes": student.new})
        student.version, student.new, student.first_at = version, 0, None


def _named(live: LiveExperiment) -> dict[str, str]:
    """Give the fields of a log line about an experiment."""
    return {"tenant": live.tenant, "experiment": live.experiment.spec.name}
