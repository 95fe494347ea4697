"""The writer: one thread, one connection, one transaction for everything that waits.

Callers hand over a job; the thread drains what has gathered, decides what is still to be
decided, commits it all in one transaction and only then tells the callers. So nothing is
answered before it is durable, and the cost of a commit is shared.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import Engine
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from bandit.errors import BanditError, DeadlineError, UnavailableError
from bandit.outcome import OutcomeRule
from server import bugs, ledger, storage
from server.database import cause_of, is_passing
from server.deciding import Plan, decide
from server.storage import DecisionRow, EventRow, Key, Logged, Recorded
from server.turn import Turn

log = logging.getLogger(__name__)

T = TypeVar("T")
TRIES = 5
"""How often a transaction is tried that the database ends to let others through."""


class Carry(Protocol):
    """Appends all decisions of a transaction at once: ``trip.append``."""

    def __call__(
        self,
        connection: Connection,
        groups: Mapping[int, Sequence[DecisionRow]],
        *,
        commits: bool,
    ) -> dict[int, int]:
        """Give the place of the first of each experiment."""


class Job(Generic[T]):
    """Something to write.

    Parameters
    ----------
    rows
        How much it adds to a transaction.

    Attributes
    ----------
    expires
        Monotonic seconds after which nobody waits any more, and nothing is done.
    on_done
        Called by the writer's thread once the job is durable or has failed; never raises.
    trace
        The span it belongs to; only set where calls are traced.
    """

    proves = True
    """Whether its success shows that writes work; a call may have had nothing to write."""

    __slots__ = ("error", "expires", "on_done", "result", "rows", "trace")

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.result: T | None = None
        self.error: BaseException | None = None
        self.expires = math.inf
        self.on_done: Callable[[], None]
        self.trace: Any

    def outcome(self) -> T:
        """Give the result of a finished job, or raise what it failed with."""
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]


class AppendDecisions(Job[list[Logged]]):
    """Decide, unless that was done, and append: all decisions of a plan, or none.

    ``keys`` are those of a ranking, whose decisions answer one request together; else none.
    """

    __slots__ = ("decisions", "experiment_id", "keys", "plan")

    def __init__(
        self, plan: Plan, decisions: Sequence[DecisionRow] = (), keys: Sequence[Key] = ()
    ) -> None:
        super().__init__(len(plan.asked))
        self.plan = plan
        self.experiment_id = plan.live.id
        self.decisions = decisions
        self.keys = keys


class AppendEvents(Job[list[Recorded | BanditError]]):
    """Append reward events of one experiment: each on its own."""

    __slots__ = ("events", "experiment_id", "now", "rule")

    def __init__(
        self, experiment_id: int, rule: OutcomeRule, events: Sequence[EventRow], now: int
    ) -> None:
        super().__init__(len(events))
        self.experiment_id = experiment_id
        self.rule = rule
        self.events = events
        self.now = now


class Call(Job[T]):
    """Run a function on the writing connection, in a savepoint of its own.

    ``experiment_id`` names the experiment it writes to, if that has a log already.
    """

    proves = False

    __slots__ = ("experiment_id", "function")

    def __init__(
        self, function: Callable[[Connection], T], experiment_id: int | None = None
    ) -> None:
        super().__init__(1)
        self.function = function
        self.experiment_id = experiment_id


class Writer:
    """The one who writes.

    Parameters
    ----------
    engine
        Whose connection writes.
    most_rows
        A transaction is closed once it holds this many rows.
    on_health
        Told when transactions begin to fail, and when they succeed again.
    turn
        Held during each transaction, so that commands may write beside a server.
    most_waiting
        Rows that may wait; a job that finds so many is refused, unless it is a ``Call``.
    on_submit
        Told of every job before it waits, in the thread that hands it over; None: nobody is.
    on_commit
        Told of the jobs and the seconds of every transaction, once all are answered.
    guard
        Called before a commit; raises UnavailableError if it would not last.

    Attributes
    ----------
    failures
        Transactions that failed.
    repeats
        Transactions that the database ended to let others through, and that were tried again.
    has_died
        Whether its thread ended without being told to.
    proved_at
        Monotonic seconds of the last commit that added to a log; -inf before the first.
    """

    def __init__(  # noqa: PLR0913
        self,
        engine: Engine,
        *,
        most_rows: int = 512,
        on_health: Callable[[bool], None] = lambda _: None,
        turn: Turn | None = None,
        most_waiting: int = 50_000,
        on_submit: Callable[[Job[Any]], None] | None = None,
        on_commit: Callable[[Sequence[Job[Any]], float], None] = lambda _jobs, _seconds: None,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self.failures = 0
        self.repeats = 0
        self.has_died = False
        self.proved_at = -math.inf
        self._engine = engine
        self._turn = turn or Turn()
        self._on_health = on_health
        self._on_submit = on_submit
        self._on_commit = on_commit
        self._guard = guard
        self._is_healthy = True
        self._most_rows = most_rows
        self._most_waiting = most_waiting
        self._rows_put = 0  # changed inside the door alone
        self._rows_taken = 0  # changed by the writer's thread alone
        self._queue: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._taken: list[Job[Any]] = []
        self._stopped = False
        self._door = threading.Lock()
        self._connection: Connection | None = None
        self._carry: Carry | None = None
        if engine.dialect.name == "postgresql":
            from server import trip  # psycopg is there for those who use it

            self._carry = trip.append

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, then end."""
        with self._door:
            self._stopped = True
            self._queue.put(None)
        if self._thread.ident is not None:  # it was started
            self._thread.join()

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        return self._queue.qsize()

    def write(self, job: Job[T], expires: float = math.inf) -> T:
        """Hand over a job and wait until it is durable.

        Parameters
        ----------
        expires
            Monotonic seconds after which nothing is done any more.

        Raises
        ------
        UnavailableError
            If the writer has stopped or has too much to do, or the transaction failed; nothing of
            the job is stored then.
        DeadlineError
            If nothing was done before it expired.
        BanditError
            What the job itself raised.
        """
        done = threading.Lock()  # held until done: the cheapest thing to wait on
        done.acquire()
        job.on_done = done.release
        job.expires = expires
        self.submit(job)
        done.acquire()
        return job.outcome()

    def submit(self, job: Job[Any]) -> None:
        """Hand over a job whose ``on_done`` is set, and go on.

        Raises
        ------
        UnavailableError
            If the writer has stopped, or has too much to do.
        """
        with self._door:
            if self._stopped:
                raise UnavailableError("the server is shutting down")
            waiting = self._rows_put - self._rows_taken
            if waiting and waiting + job.rows > self._most_waiting and not isinstance(job, Call):
                told = f"{waiting} rows wait to be written; try again"
                raise UnavailableError(told, is_shed=True)
            self._rows_put += job.rows
            if self._on_submit is not None:
                self._on_submit(job)
            self._queue.put(job)

    def call(
        self,
        function: Callable[[Connection], T],
        *,
        experiment_id: int | None = None,
        expires: float = math.inf,
    ) -> T:
        """Run a function on the writing connection and wait until it is durable.

        Parameters
        ----------
        experiment_id
            The experiment it writes to, if that has a log already.
        expires
            Monotonic seconds after which it is not begun any more.
        """
        return self.write(Call(function, experiment_id), expires)

    def _run(self) -> None:
        try:
            while True:
                job = self._queue.get()
                if job is None:
                    break
                self._commit(self._gather(job))
            self._finish_late()
        except BaseException as error:  # noqa: BLE001
            self.has_died = True
            bugs.tell(log, "the writer's thread died; nothing is written any more", error)
            self._abandon()
        if self._connection is not None:
            self._connection.close()

    def _abandon(self) -> None:
        """Tell those who wait that nobody writes any more, and let nobody else wait."""
        with self._door:
            self._stopped = True
        lost, self._taken = self._taken, []
        while not self._queue.empty():
            left = self._queue.get()
            if left is not None:
                lost.append(left)
        for left in lost:
            with suppress(Exception):
                left.error = UnavailableError("the server can not write any more")
                left.on_done()

    def _finish_late(self) -> None:
        while not self._queue.empty():  # those who came while the stop was on its way
            late = self._queue.get()
            if late is not None:
                self._rows_taken += late.rows
                self._commit([late])

    def _gather(self, first: Job[Any]) -> list[Job[Any]]:
        jobs = self._taken = [first]
        rows = first.rows
        while rows < self._most_rows:
            try:
                job = self._queue.get_nowait()
            except Empty:
                break
            if job is None:
                self._queue.put(None)
                break
            jobs.append(job)
            rows += job.rows
        self._rows_taken += rows
        return jobs

    def _commit(self, jobs: list[Job[Any]]) -> None:
        now = time.monotonic()
        for job in jobs:
            if job.expires < now:
                job.error = DeadlineError("the deadline passed before the work began")
        _decide([j for j in jobs if isinstance(j, AppendDecisions) and j.error is None])
        sound = [job for job in jobs if job.error is None]
        seconds = self._attempt(sound)
        self._taken = []
        for job in jobs:
            try:
                job.on_done()
            except Exception as error:  # noqa: BLE001
                bugs.tell(log, "a caller could not be told", error)
            job.on_done = _told
        if seconds is not None:
            self._tell(sound, seconds)

    def _attempt(self, jobs: list[Job[Any]]) -> float | None:
        """Commit; give the seconds it took, or None if it failed and the jobs say why."""
        began = time.perf_counter()
        try:
            self._store(jobs)
        except (SQLAlchemyError, UnavailableError) as error:
            log.error("%d jobs failed to commit: %s", len(jobs), cause_of(error))  # noqa: TRY400
            for job in jobs:
                job.error = UnavailableError("the database did not take the write; try again")
            self._note(is_healthy=False)
        except Exception as error:  # noqa: BLE001
            bugs.tell(log, "the writer met a bug", error)
            for job in jobs:
                job.error = RuntimeError("internal error in the writer")
        else:
            if any(job.proves for job in jobs):
                self._note(is_healthy=True)
            return time.perf_counter() - began
        return None

    def _store(self, jobs: list[Job[Any]]) -> None:
        append, tries = _append, TRIES
        while True:
            try:
                return self._transact(jobs, append)
            except IntegrityError:  # a request id seen before: look first, then write
                if append is _merge:
                    raise
                append = _merge
            except DBAPIError as error:
                tries -= 1
                if not tries or not (error.connection_invalidated or is_passing(error)):
                    raise
                if error.connection_invalidated:
                    jobs, append = self._in_question(jobs), _merge
                else:
                    jobs = self._again(jobs, error)

    def _again(self, jobs: list[Job[Any]], error: DBAPIError) -> list[Job[Any]]:
        """Give the jobs that are still waited for, after the database ended their transaction.

        Notes
        -----
        Nothing of it is stored, and nobody was answered; so the same is done once more.
        """
        self.repeats += 1
        log.warning("%d jobs are written again: %s", len(jobs), cause_of(error))
        now = time.monotonic()
        for job in jobs:
            if job.expires < now:
                job.error = DeadlineError("the deadline passed while the database was busy")
        return [job for job in jobs if job.expires >= now]

    def _in_question(self, jobs: list[Job[Any]]) -> list[Job[Any]]:
        """Give the jobs to look up, and to write if they are missing: their connection broke.

        Notes
        -----
        The connection may have gone before its commit or after it. So everything is looked up
        by its id, behind the lock of the counter row: should the lost transaction still be
        under way, we wait for its end. Nothing is stored twice. What has no id (calls) is
        refused, and its caller looks for himself.
        """
        self._note(is_healthy=False)
        known = [job for job in jobs if not isinstance(job, Call)]
        for job in jobs:
            if isinstance(job, Call):
                job.error = UnavailableError("the database went away; try again")
        log.warning("the connection broke; looking up %d jobs", len(known))
        return known

    def _tell(self, jobs: list[Job[Any]], seconds: float) -> None:
        """Let the transaction be counted; those it answered do not wait for that."""
        if any(job.proves for job in jobs):
            self.proved_at = time.monotonic()
        try:
            self._on_commit(jobs, seconds)
        except Exception as error:  # noqa: BLE001
            bugs.tell(log, "a commit could not be counted", error)

    def _note(self, *, is_healthy: bool) -> None:
        self.failures += not is_healthy
        if is_healthy != self._is_healthy:
            self._is_healthy = is_healthy
            self._on_health(is_healthy)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """Begin on the one connection; after any failure, open another."""
        connection = self._connection or self._engine.connect()
        self._connection = None
        try:
            with self._turn.taken(), connection.begin():
                yield connection
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _transact(
        self,
        jobs: list[Job[Any]],
        append: Callable[[Connection, int, list[AppendDecisions]], None],
    ) -> None:
        with self._transaction() as connection:
            for job in jobs:
                job.error = None
            decided = _grouped(jobs, AppendDecisions)
            if self._carry is not None:
                is_all = all(isinstance(job, AppendDecisions) for job in jobs)
                is_new = append is _append
                if not (is_all and is_new):
                    storage.lock(connection, _wanted(jobs))
                if decided and is_new:
                    self._guard()
                    _append_at_once(self._carry, connection, decided, commits=is_all)
                    decided = []
            for experiment_id, asked in decided:
                append(connection, experiment_id, asked)
            for experiment_id, told in _grouped(jobs, AppendEvents):
                _append_events(connection, experiment_id, told)
            for job in jobs:
                if isinstance(job, Call):
                    _call(connection, job)
            self._guard()


def _wanted(jobs: list[Job[Any]]) -> set[int]:
    """Give the experiments whose counters are locked before all else."""
    ids = {getattr(job, "experiment_id", None) for job in jobs}
    return {one for one in ids if one is not None}


def _told() -> None:
    """Stand for whom a job has told: else job and caller, a whole call, would hold each other."""


def _decide(jobs: list[AppendDecisions]) -> None:
    """Let the engine decide what is not yet decided."""
    waiting = [job for job in jobs if not job.decisions]
    try:
        for job, rows in zip(waiting, decide([job.plan for job in waiting]), strict=True):
            job.decisions = rows
    except Exception as error:  # noqa: BLE001
        bugs.tell(log, "the engine met a bug; deciding one by one", error)
        for job in waiting:
            _decide_alone(job)


def _decide_alone(job: AppendDecisions) -> None:
    """Decide for one plan; a bug is its own, and not that of those who wait with it."""
    try:
        [job.decisions] = decide([job.plan])
    except BanditError as error:
        job.error = error
    except Exception:  # noqa: BLE001  logged by the caller
        job.error = RuntimeError("internal error in the engine")


J = TypeVar("J", bound="AppendDecisions | AppendEvents")


def _grouped(jobs: list[Job[Any]], kind: type[J]) -> list[tuple[int, list[J]]]:
    """Give the jobs of one kind by experiment, always in the same order of experiments."""
    groups: dict[int, list[J]] = {}
    for job in jobs:
        if isinstance(job, kind):
            groups.setdefault(job.experiment_id, []).append(job)
    return sorted(groups.items())


def _append_events(connection: Connection, experiment_id: int, jobs: list[AppendEvents]) -> None:
    events = [event for job in jobs for event in job.events]
    rule, now = jobs[0].rule, max(job.now for job in jobs)
    results = ledger.append_events(connection, experiment_id, rule, events, now)
    at = 0
    for job in jobs:
        job.result = results[at : at + len(job.events)]
        at += len(job.events)


def _append(connection: Connection, experiment_id: int, jobs: list[AppendDecisions]) -> None:
    logged = storage.append_decisions(connection, experiment_id, [j.decisions for j in jobs])
    for job, result in zip(jobs, logged, strict=True):
        job.result = result


def _append_at_once(
    carry: Carry,
    connection: Connection,
    decided: list[tuple[int, list[AppendDecisions]]],
    *,
    commits: bool,
) -> None:
    """Append all decisions in one trip to the database, which may be the whole transaction."""
    rows = {one: [row for job in jobs for row in job.decisions] for one, jobs in decided}
    first = carry(connection, rows, commits=commits)
    for one, jobs in decided:
        for job, logged in zip(
            jobs, storage.placed(first[one], [j.decisions for j in jobs]), strict=True
        ):
            job.result = logged


def _merge(connection: Connection, experiment_id: int, jobs: list[AppendDecisions]) -> None:
    if alone := [job for job in jobs if not job.keys]:
        logged = storage.merge_decisions(connection, experiment_id, [j.decisions for j in alone])
        for job, result in zip(alone, logged, strict=True):
            _end(job, result)
    for job in jobs:
        if job.keys:
            merged = storage.merge_ranking(connection, experiment_id, job.keys, job.decisions)
            _end(job, merged)


def _end(job: AppendDecisions, result: list[Logged] | BanditError) -> None:
    if isinstance(result, BanditError):
        job.error = result
    else:
        job.result = result


def _call(connection: Connection, job: Call[Any]) -> None:
    try:
        with connection.begin_nested():
            job.result = job.function(connection)
    except BanditError as error:
        job.error = error
