"""The writer: everything it answered is durable, and nothing stops it but a stop."""

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine, event, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError

from bandit.errors import ConflictError, NotFoundError, UnavailableError
from bandit.outcome import OutcomeRule, Reward
from server import catalogue, storage
from server.database import Database
from server.deciding import Plan
from server.schema import decisions
from server.storage import DecisionRow, EventRow
from server.writer import AppendDecisions, AppendEvents, Writer
from tests.server.harness import Store, eventually

RULE = OutcomeRule(rewards=(Reward(name="click"),), window=10)


@pytest.fixture
def database(store: Store, tmp_path: Path) -> Iterator[Database]:
    made = Database(store(tmp_path))
    yield made
    made.close()


@pytest.fixture
def writer(database: Database) -> Iterator[Writer]:
    made = Writer(database.writer)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def one(writer: Writer) -> int:
    row = writer.call(
        lambda c: catalogue.add_experiment(
            c, tenant="t", name="one", request_id="one", spec="{}", now=0
        )
    )
    return int(row.id)


def row(request: str, content: bytes = b"") -> DecisionRow:
    return DecisionRow(
        decision_id=request.encode().rjust(16, b"\0"),
        request_id=request,
        request_hash=content.rjust(16, b"\0"),
        customer=b"\0" * 16,
        context=b"",
        exclusions=None,
        time_zone="",
        action=0,
        propensity=1.0,
        traffic_group=1,
        reason=1,
        snapshot_version=0,
        decided_at=0,
        propensities=None,
    )


def appended(experiment: int, rows: list[DecisionRow]) -> AppendDecisions:
    """Make a job whose decisions are made already."""
    live: Any = SimpleNamespace(id=experiment)
    asked: list[Any] = [None] * len(rows)
    return AppendDecisions(Plan(live, asked, 0, None), rows)


def stored(database: Database) -> set[str]:
    """Read request ids from outside: only what is committed."""
    with database.reader.connect() as connection:
        return set(connection.execute(select(decisions.c.request_id)).scalars())


class Gate:
    """Holds the writer up inside a transaction, so that jobs gather behind it."""

    def __init__(self, writer: Writer) -> None:
        self._inside, self._open = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=writer.call, args=(self._wait,))
        self._thread.start()
        self._inside.wait(10)

    def _wait(self, _: Connection) -> None:
        self._inside.set()
        self._open.wait(10)

    def open(self) -> None:
        self._open.set()
        self._thread.join()


def test_many_threads_and_everything_is_durable(database: Database, writer: Writer, one: int):
    def work(k: int) -> list[str]:
        acknowledged = []
        for i in range(25):
            [logged] = writer.write(appended(one, [row(f"{k}-{i}")]))
            if i % 8 == 0:
                assert logged.row.request_id in stored(database)
            acknowledged.append(logged.row.request_id)
        return acknowledged

    with ThreadPoolExecutor(16) as pool:
        acknowledged = [r for part in pool.map(work, range(16)) for r in part]
    assert stored(database) == set(acknowledged)
    assert len(acknowledged) == 16 * 25


def test_waiting_jobs_share_a_transaction(database: Database, writer: Writer, one: int):
    commits: list[int] = []
    event.listen(database.writer, "commit", lambda _: commits.append(1))
    gate = Gate(writer)
    with ThreadPoolExecutor(20) as pool:
        jobs = [appended(one, [row(f"r{i}")]) for i in range(20)]
        waiting = [pool.submit(writer.write, job) for job in jobs]
        eventually(lambda: writer._queue.qsize() >= 20)
        gate.open()
        places = [future.result()[0].seq for future in waiting]
    assert sorted(places) == list(range(1, 21))
    assert len(commits) == 2


def test_a_transaction_is_bounded(database: Database):
    small = Writer(database.writer, most_rows=3)
    small.start()
    commits: list[int] = []
    event.listen(database.writer, "commit", lambda _: commits.append(1))
    gate = Gate(small)
    with ThreadPoolExecutor(9) as pool:
        waiting = [pool.submit(small.call, lambda _: None) for _ in range(9)]
        eventually(lambda: small._queue.qsize() >= 9)
        gate.open()
        for future in waiting:
            future.result()
    small.stop()
    assert len(commits) == 1 + 3


def test_a_known_request_is_answered_among_new_ones(writer: Writer, one: int):
    [first] = writer.write(appended(one, [row("a")]))
    gate = Gate(writer)
    jobs = [[row("b")], [row("a")], [row("a", b"other")], [row("c")]]
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(writer.write, appended(one, rows)) for rows in jobs]
        gate.open()
        assert waiting[0].result()[0].repeated is False
        assert waiting[1].result() == [first._replace(repeated=True)]
        with pytest.raises(ConflictError):
            waiting[2].result()
        assert waiting[3].result()[0].repeated is False


def test_events_follow_decisions_of_the_same_transaction(writer: Writer, one: int):
    gate = Gate(writer)
    told = [EventRow("e", row("a").decision_id, "click", 1.0, 0, 0)]
    with ThreadPoolExecutor(2) as pool:
        later = pool.submit(writer.write, AppendEvents(one, RULE, told, 0))
        eventually(lambda: writer._queue.qsize())
        first = pool.submit(writer.write, appended(one, [row("a")]))
        eventually(lambda: writer._queue.qsize() >= 2)
        gate.open()
        assert first.result()[0].seq == 1
        assert later.result() == [storage.Recorded(2, late=False, duplicate=False)]


def full(engine: Engine, *, is_full: bool) -> None:
    """Let nothing be added to the database, as on a full disk."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            count = "pragma page_count"
            pages = connection.execute(text(count)).scalar_one() if is_full else 2**30
            connection.execute(text(f"pragma max_page_count = {pages}"))
            return
        if is_full:
            connection.execute(text(FULL))
        else:
            connection.execute(text("DROP FUNCTION is_full CASCADE"))
        connection.commit()


FULL = """
CREATE FUNCTION is_full() RETURNS trigger LANGUAGE plpgsql
  AS $$ BEGIN RAISE EXCEPTION 'no space left on device' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER is_full BEFORE INSERT ON decisions EXECUTE FUNCTION is_full()
"""


def test_a_full_disk_fails_every_waiter_and_the_writer_lives_on(
    database: Database, writer: Writer, one: int
):
    full(database.writer, is_full=True)
    gate = Gate(writer)
    with ThreadPoolExecutor(8) as pool:
        waiting = [
            pool.submit(writer.write, appended(one, [row(f"{k}-{i}") for i in range(500)]))
            for k in range(8)
        ]
        gate.open()
        errors = [future.exception() for future in waiting]
    assert {type(error) for error in errors} == {UnavailableError}
    assert stored(database) == set()
    full(database.writer, is_full=False)
    [logged] = writer.write(appended(one, [row("after")]))
    assert logged.seq == 1


def broken(engine: Engine, failures: list[OperationalError]) -> None:
    """Let as many commits fail, with all rows written before."""
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "commit")
        def fail(_: Connection) -> None:
            if failures:
                raise failures.pop()

    else:
        with engine.begin() as connection:
            connection.execute(text(BROKEN.format(n=len(failures))))


BROKEN = """
CREATE SEQUENCE commits;
CREATE FUNCTION is_broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF nextval('commits') <= {n} THEN
    RAISE EXCEPTION 'disk I/O error' USING ERRCODE = 'io_error';
  END IF;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER is_broken AFTER INSERT ON decisions DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION is_broken()
"""


def test_a_failed_commit_fails_its_waiters(database: Database, writer: Writer, one: int):
    failure = OperationalError("COMMIT", {}, sqlite3.OperationalError("disk I/O error"))
    broken(database.writer, [failure])
    with pytest.raises(UnavailableError, match="did not take the write"):
        writer.write(appended(one, [row("a")]))
    assert stored(database) == set()
    assert writer.write(appended(one, [row("b")]))[0].seq == 1


def test_a_domain_error_fails_its_caller_alone(writer: Writer, one: int):
    def work(connection: Connection) -> None:
        storage.take_seq(connection, one, 5)
        raise NotFoundError("gone")

    gate = Gate(writer)
    with ThreadPoolExecutor(2) as pool:
        bad = pool.submit(writer.call, work)
        good = pool.submit(writer.write, appended(one, [row("a")]))
        gate.open()
        assert isinstance(bad.exception(), NotFoundError)
        assert good.result()[0].seq == 1
    assert writer.write(appended(one, [row("b")]))[0].seq == 2  # its places were given back


def test_a_bug_fails_its_callers_and_the_writer_lives_on(writer: Writer):
    def work(_: Connection) -> None:
        raise ZeroDivisionError("secret")

    with pytest.raises(RuntimeError) as caught:
        writer.call(work)
    assert "secret" not in str(caught.value)
    assert writer.call(lambda _: 7) == 7


def test_stop_writes_what_waits(database: Database, one: int, writer: Writer):
    mine = Writer(database.writer)
    gate = Gate(writer)  # holds the one connection
    with ThreadPoolExecutor(5) as pool:
        waiting = [pool.submit(mine.write, appended(one, [row(f"r{i}")])) for i in range(4)]
        eventually(lambda: mine._queue.qsize() >= 4)
        gate.open()
        mine.start()
        stopping = pool.submit(mine.stop)
        assert sorted(future.result()[0].seq for future in waiting) == [1, 2, 3, 4]
        stopping.result()
    assert len(stored(database)) == 4


def test_a_job_after_the_stop_is_refused(database: Database, one: int):
    mine = Writer(database.writer)
    mine.start()
    mine.stop()
    with pytest.raises(UnavailableError, match="shutting down"):
        mine.write(appended(one, [row("a")]))
    with database.reader.connect() as connection:
        assert connection.execute(select(decisions)).all() == []


def test_a_stop_amid_callers_leaves_nobody_waiting(database: Database, one: int):
    mine = Writer(database.writer)
    mine.start()
    acknowledged: list[str] = []

    def work(k: int) -> None:
        for i in range(100_000):
            try:
                mine.write(appended(one, [row(f"{k}-{i}")]))
            except UnavailableError:
                return
            acknowledged.append(f"{k}-{i}")

    threads = [threading.Thread(target=work, args=(k,), daemon=True) for k in range(8)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(acknowledged) >= 50)
    mine.stop()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert stored(database) == set(acknowledged)
