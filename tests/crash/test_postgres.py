"""PostgreSQL that stops at once, loses a backend in mid-commit, or meets two writers.

Every proof has its counter-example beside it: the same with the promise broken, and caught.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, event, select, text
from sqlalchemy.exc import DBAPIError

from bandit.errors import UnavailableError
from server import catalogue, storage
from server.client import BanditClient
from server.commands.local import LocalServer
from server.database import Database
from server.deciding import Plan
from server.schema import decisions
from server.storage import DecisionRow
from server.writer import AppendDecisions, Writer
from tests.crash.checking import check
from tests.crash.crowd import CLIENTS, SPEC, Crowd, Journal
from tests.postgres import PostgresServer
from tests.server.harness import eventually


@pytest.fixture(scope="module")
def mortal() -> Iterator[PostgresServer]:
    """Run a PostgreSQL that may be stopped at any time."""
    server = PostgresServer()
    yield server
    server.stop()


def row(request: str) -> DecisionRow:
    return DecisionRow(
        decision_id=request.encode().rjust(16, b"\0"),
        request_id=request,
        request_hash=b"\0" * 16,
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


def job(experiment: int, *requests: str) -> AppendDecisions:
    """Make a job whose decisions are made already."""
    live: Any = SimpleNamespace(id=experiment)
    asked: list[Any] = [None] * len(requests)
    return AppendDecisions(Plan(live, asked, 0, None), [row(r) for r in requests])


class Writing:
    """A database with one experiment and a writer."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.writer = Writer(self.database.writer)
        self.writer.start()
        self.one: int = self.writer.call(
            lambda c: catalogue.add_experiment(
                c, tenant="t", name="one", request_id="one", spec="{}", now=0
            )
        ).id

    def append(self, *requests: str) -> list[int]:
        return [logged.seq for logged in self.writer.write(job(self.one, *requests))]

    def close(self) -> None:
        self.writer.stop()
        self.database.close()


@pytest.fixture
def writing(mortal: PostgresServer) -> Iterator[Writing]:
    made = Writing(mortal.fresh())
    yield made
    made.close()


def problems(database: Database, acknowledged: list[str]) -> list[str]:
    """Say what is wrong with a log: lost, twice, or not dense."""
    with database.reader.connect() as connection:
        found = connection.execute(
            select(decisions.c.request_id, decisions.c.seq).order_by(decisions.c.seq)
        ).all()
    stored = Counter(r.request_id for r in found)
    wrong = [f"{request} is lost" for request in acknowledged if request not in stored]
    wrong += [f"{request} is there {n} times" for request, n in stored.items() if n > 1]
    if [r.seq for r in found] != list(range(1, len(found) + 1)):
        wrong.append("the sequence is not dense")
    return wrong


# --- the database stops at once -------------------------------------------------------------


def test_stopped_at_once_under_load(mortal: PostgresServer, tmp_path: Path):
    secret = tmp_path / "bandit.db.secret"
    running = LocalServer(tmp_path, secret=b"s" * 32, database=mortal.fresh())
    journals = [Journal(tmp_path / f"journal-{k}") for k in range(CLIENTS)]
    try:
        with BanditClient(running.address, timeout=20) as client:
            client.create_experiment(SPEC, request_id="create")
            client.start_experiment(SPEC.name, override="a test of crashes")
        crowd = Crowd(running.address, journals, patience=60)
        try:
            for _ in range(2):
                crowd.await_more(100)
                mortal.halt()
                mortal.start()
            crowd.await_more(100)
        finally:
            crowd.leave()
        assert crowd.errors == []
    finally:
        status = running.stop()
        lines = [journal.now() for journal in journals]
        for journal in journals:
            journal.close()
    assert status == 0
    found = check(running.database, secret, lines)
    assert found.is_kept, found
    assert found.decisions > 0
    assert found.snapshots > 0


def forgetful(engine: Engine) -> None:
    """Let PostgreSQL answer before its log is on disk."""

    @event.listens_for(engine, "connect")
    def forget(connection: psycopg.Connection, _: object) -> None:
        connection.execute("SET synchronous_commit = off")
        connection.commit()


@pytest.mark.parametrize("is_durable", [True, False])
def test_what_was_acknowledged_survives_unless_commits_are_not_durable(
    mortal: PostgresServer,
    is_durable: bool,  # noqa: FBT001
):
    writing = Writing(mortal.fresh())
    mortal.stop_writing_ahead()
    if not is_durable:
        mine = Writer(writing.database.writer)
        writing.writer.stop()
        writing.database.writer.dispose()
        forgetful(writing.database.writer)
        writing.writer = mine
        mine.start()
    acknowledged = [f"r{i}" for i in range(20)]
    for request in acknowledged:
        writing.append(request)
    mortal.halt()
    mortal.start()
    wrong = problems(writing.database, acknowledged)
    after = writing.append("after")
    assert (wrong == []) is is_durable
    assert after == [21 - len(wrong)]
    writing.close()


# --- a backend is killed in mid-commit ------------------------------------------------------

HOLD_UP = """
CREATE FUNCTION hold_up() RETURNS trigger LANGUAGE plpgsql
  AS $$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER hold_up AFTER INSERT ON decisions DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION hold_up()
"""


class Stall:
    """Holds commits up, before or after the transaction is durable."""

    def __init__(self, server: PostgresServer, database: Database, *, durable: bool) -> None:
        self._server = server
        self._database = database.url.database or ""
        self._control = server.connect(self._database)
        self._durable = durable
        if durable:  # as if a standby had to confirm: the commit is on disk, its answer waits
            self._configure("nobody")
            eventually(self._is_held, 60)
        else:
            self._control.execute(HOLD_UP)
            self._control.execute("SELECT pg_advisory_lock(7)")

    def kill(self) -> None:
        """End the backend that is held up in its COMMIT."""
        waiting = "SyncRep" if self._durable else "advisory"
        query = (
            "SELECT pid FROM pg_stat_activity WHERE wait_event = %s AND query LIKE '%%taken%%' "
            "AND datname = current_database()"
        )
        eventually(lambda: self._control.execute(query, [waiting]).fetchone(), 60)
        [(pid,)] = self._control.execute(query, [waiting]).fetchall()
        self._control.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])

    def release(self) -> None:
        if self._durable:
            self._configure("")
        else:
            self._control.execute("SELECT pg_advisory_unlock(7)")
        self._control.close()

    def _is_held(self) -> bool:
        """Whether a commit is held up by now: the database's processes hear of it one by one."""
        query = "SELECT wait_event FROM pg_stat_activity WHERE pid = %s"
        seen: set[str] = set()
        with closing(self._server.connect(self._database)) as probe:
            pid = probe.info.backend_pid
            probe.pgconn.send_query(b"SELECT pg_logical_emit_message(true, '', '')")

            def ended() -> bool:
                seen.update(self._control.execute(query, [pid]).fetchone() or ())
                return not seen.isdisjoint({"SyncRep", "ClientRead"})

            eventually(ended, 60)
            self._control.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
        return "SyncRep" in seen

    def _configure(self, standby: str) -> None:
        self._control.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{standby}'")
        self._control.execute("SELECT pg_reload_conf()")
        show = "SHOW synchronous_standby_names"
        eventually(lambda: self._control.execute(show).fetchone() == (standby,), 60)


def killed_in_commit(server: PostgresServer, writing: Writing, *, durable: bool) -> Future:
    """Let the writer's backend end in its COMMIT; give what becomes of the request."""
    assert writing.append("before") == [1]
    stall = Stall(server, writing.database, durable=durable)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(writing.append, "in question", "beside it")
        try:
            stall.kill()
        finally:
            stall.release()
    return answer


@pytest.mark.parametrize("durable", [False, True])
def test_a_commit_that_was_cut_is_looked_up(
    mortal: PostgresServer,
    writing: Writing,
    durable: bool,  # noqa: FBT001
):
    answer = killed_in_commit(mortal, writing, durable=durable)
    assert answer.result() == [2, 3]
    assert writing.append("in question") == [2]
    assert writing.append("after") == [4]
    asked = ["before", "in question", "beside it", "after"]
    assert problems(writing.database, asked) == []


def test_who_writes_again_without_looking_writes_twice(
    mortal: PostgresServer, writing: Writing, monkeypatch: pytest.MonkeyPatch
):
    """The counter-example: unique ids gone, and what is in question written once more."""
    monkeypatch.setattr(storage, "merge_decisions", storage.append_decisions)
    with writing.database.writer.begin() as connection:
        for name in ("uq_decisions_request", "uq_decisions_id"):
            connection.execute(text(f"ALTER TABLE decisions DROP CONSTRAINT {name}"))
    killed_in_commit(mortal, writing, durable=True).result()
    assert problems(writing.database, []) == [
        "in question is there 2 times",
        "beside it is there 2 times",
    ]


def test_a_backend_killed_before_its_rows_is_looked_up(mortal: PostgresServer, writing: Writing):
    """The connection breaks in the append itself: the error is known for what it is."""
    control, name = mortal.connect(), writing.database.url.database
    holder = mortal.connect(name or "")
    waits = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"
    holder.execute("BEGIN")
    holder.execute("SELECT 1 FROM experiments FOR UPDATE")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(writing.append, "a", "b")
        eventually(lambda: control.execute(waits, [name]).fetchone(), 60)
        [(pid,)] = control.execute(waits, [name]).fetchall()
        control.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
        holder.execute("ROLLBACK")
        assert answer.result() == [1, 2]
    holder.close()
    assert problems(writing.database, ["a", "b"]) == []
    control.close()


def test_a_call_that_was_cut_is_refused(mortal: PostgresServer, writing: Writing):
    """A function has no id to be found by: who asked looks for himself."""
    control = mortal.connect()
    with pytest.raises(UnavailableError, match="went away"):
        writing.writer.call(
            lambda c: (
                control.execute(
                    "SELECT pg_terminate_backend(%s, 10000)",
                    [c.execute(text("SELECT pg_backend_pid()")).scalar_one()],
                )
                and c.execute(text("SELECT 1"))
            )
        )
    control.close()
    assert writing.append("after") == [1]


# --- two writers ----------------------------------------------------------------------------


def test_two_writers_leave_no_hole_where_a_serial_number_does(
    mortal: PostgresServer, writing: Writing
):
    """The reader's cursor passes a serial number that commits late; never a place of ours."""
    engine = writing.database.writer
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE serials (id bigserial, who text)"))

    def read(after: int) -> list[int]:
        with engine.connect() as connection:
            found = text("SELECT id FROM serials WHERE id > :after ORDER BY id")
            return list(connection.execute(found, {"after": after}).scalars())

    slow = engine.connect()
    slow.execute(text("INSERT INTO serials (who) VALUES ('slow')"))
    first = storage.append_decisions(slow, writing.one, [[row("slow")]])
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO serials (who) VALUES ('fast')"))
    assert read(0) == [2]

    places: list[int] = []
    fast = threading.Thread(target=lambda: places.extend(writing.append("fast")))
    fast.start()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with mortal.connect() as control:
        eventually(lambda: control.execute(waiting).fetchone() != (0,), 60)
    assert places == []  # it waits for its turn
    slow.commit()
    slow.close()
    fast.join()
    assert (first[0][0].seq, places) == (1, [2])
    assert read(2) == []  # the event of number 1 is never seen: the counter-example
    assert problems(writing.database, ["slow", "fast"]) == []


def test_a_statement_that_hangs_is_ended(mortal: PostgresServer):
    database = Database(mortal.fresh())
    with database.writer.connect() as connection:
        connection.execute(text("SET statement_timeout = 10"))
        with pytest.raises(DBAPIError, match="statement timeout"):
            connection.execute(text("SELECT pg_sleep(60)"))
        connection.rollback()
    database.writer.dispose()
    with database.writer.connect() as connection:
        names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        found = [connection.execute(text(f"SHOW {name}")).scalar_one() for name in names]
    database.close()
    assert found == ["1min", "30s", "10s"]
