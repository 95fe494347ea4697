"""Two servers write to one PostgreSQL: neither meets the other's errors."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import Connection

from bandit.errors import DeadlineError, UnavailableError
from server import catalogue, storage
from server.database import Database
from server.leasing import TERM, renew, take
from server.writer import TRIES, AppendDecisions, Writer
from tests.postgres import PostgresServer
from tests.server.harness import eventually
from tests.server.test_writer import Gate, appended, row, stored

BOTH = "UPDATE experiments SET next_seq = next_seq WHERE id = %s"


class Server:
    """A writer on a database that others write to as well.

    Parameters
    ----------
    options
        Of its connections: PostgreSQL's settings.
    """

    def __init__(self, url: str, **options: str) -> None:
        told = "%20".join(f"-c%20{name}%3D{value}" for name, value in options.items())
        self.database = Database(f"{url}&options={told}" if told else url)
        self.writer = Writer(self.database.writer)
        self.writer.start()

    def add(self, name: str) -> int:
        row = self.writer.call(
            lambda c: catalogue.add_experiment(
                c, tenant="t", name=name, request_id=name, spec="{}", now=0
            )
        )
        return int(row.id)

    def close(self) -> None:
        self.writer.stop()
        self.database.close()


class Pair:
    """A database with two experiments, a control connection, and servers on it."""

    def __init__(self, postgres: PostgresServer) -> None:
        self.url = postgres.fresh()
        self.servers: list[Server] = []
        first = self.server()
        self.one, self.two = first.add("one"), first.add("two")
        self.control = postgres.connect(first.database.url.database or "")
        self.other = postgres.connect(first.database.url.database or "")

    def server(self, **options: str) -> Server:
        made = Server(self.url, **options)
        self.servers.append(made)
        return made

    def waits(self, query: str) -> None:
        """Wait until somebody waits for a lock with a statement like this."""
        find = (
            "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
            "AND datname = current_database() AND query LIKE %s"
        )
        eventually(lambda: self.control.execute(find, [f"%{query}%"]).fetchone(), 60)

    def close(self) -> None:
        self.control.close()
        self.other.close()
        for server in self.servers:
            server.close()


@pytest.fixture
def pair(postgres: PostgresServer) -> Iterator[Pair]:
    made = Pair(postgres)
    yield made
    made.close()


class Pause:
    """A call that holds what it wrote until it is told to go on; only the first time."""

    def __init__(self, write: Callable[[Connection], object]) -> None:
        self._write = write
        self._inside, self._open = threading.Event(), threading.Event()
        self.times = 0

    def __call__(self, connection: Connection) -> None:
        self.times += 1
        self._write(connection)
        self._inside.set()
        assert self._open.wait(60)

    def wait(self) -> None:
        assert self._inside.wait(60)

    def go_on(self) -> None:
        self._open.set()


def test_a_lease_that_is_renewed_waits_for_no_counter(pair: Pair):
    """A renewal once asked for counters of its own, behind the back of the order of locks."""
    a, b = pair.servers[0], pair.server()
    a.writer.call(lambda c: take(c, pair.one, "a", 0), experiment_id=pair.one)

    def hold(connection: Connection) -> None:
        storage.take_seq(connection, pair.two, 0)

    pause = Pause(hold)

    def renewed(connection: Connection) -> set[int]:
        pause(connection)
        return renew(connection, "a", TERM, {pair.one: 7})

    gate = Gate(b.writer)
    with ThreadPoolExecutor(3) as pool:
        renewal = pool.submit(a.writer.call, renewed, experiment_id=pair.two)
        pause.wait()
        answers = [pool.submit(b.writer.write, appended(i, [row("x")])) for i in (1, 2)]
        eventually(lambda: b.writer.waiting == 2)
        gate.open()  # b has the counter of one now, and waits for that of two
        pair.waits("experiments")
        pause.go_on()
        assert renewal.result() == {pair.one}
        assert [answer.result()[0].seq for answer in answers] == [1, 1]
    assert [a.writer.repeats, b.writer.repeats] == [0, 0], "nobody waited in a ring"


def ring(pair: Pair, server: Server) -> tuple[Any, Pause]:
    """Let a server and another connection wait for each other; give what its write did."""
    pair.other.execute("SET deadlock_timeout = '10min'")  # it is the server that has to give way
    pause = Pause(lambda c: storage.take_seq(c, pair.one, 0))

    def write(connection: Connection) -> int:
        pause(connection)
        return storage.take_seq(connection, pair.two, 1)

    def intrude() -> None:
        with pair.other.transaction():
            pair.other.execute(BOTH, [pair.two])
            pause.wait()
            pair.other.execute(BOTH, [pair.one])

    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(server.writer.call, write)
        intruder = pool.submit(intrude)
        pair.waits("UPDATE experiments SET next_seq = next_seq WHERE")
        pause.go_on()
        intruder.result()
    return answer.result(), pause


def test_who_is_chosen_to_end_a_ring_writes_again(pair: Pair):
    server = pair.server(deadlock_timeout="20ms")
    answer, pause = ring(pair, server)
    assert answer == 1
    assert server.writer.repeats >= 1  # it may be quicker than the other, and give way once more
    assert (pause.times, server.writer.failures) == (1 + server.writer.repeats, 0)


def test_what_can_not_be_serialised_is_written_again(pair: Pair):
    server = pair.server(default_transaction_isolation="repeatable%5C%20read")
    pause = Pause(lambda c: c.execute(text("SELECT 1 FROM experiments")))

    def write(connection: Connection) -> int:
        pause(connection)
        return storage.take_seq(connection, pair.one, 1)

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.writer.call, write)
        pause.wait()
        pair.other.execute("UPDATE experiments SET next_seq = next_seq + 1 WHERE id = 1")
        pause.go_on()
        assert answer.result() == 2
    assert (pause.times, server.writer.repeats, server.writer.failures) == (2, 1, 0)
    assert (pause.times, server.writer.repeats, server.writer.failures) == (2, 1, 0)


@pytest.fixture
def impatient(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Give a server that waits a moment for a lock."""
    monkeypatch.setitem(Database.__init__.__globals__["_PATIENCE"], "lock_timeout", 50)
    return pair.server()


def test_a_lock_that_is_not_to_be_had_is_asked_for_again(pair: Pair, impatient: Server):
    with ThreadPoolExecutor(1) as pool:
        with pair.other.transaction():
            pair.other.execute(BOTH, [pair.one])
            answer = pool.submit(impatient.writer.write, appended(pair.one, [row("x")]))
            eventually(lambda: impatient.writer.repeats, 60)
        assert answer.result()[0].seq == 1
    assert impatient.writer.failures == 0


def test_who_is_paused_in_a_transaction_gives_way_before_others_give_up(pair: Pair):
    paused = pair.server()
    limits = text("SELECT setting::int FROM pg_settings WHERE name = :name")
    with pair.servers[0].database.writer.connect() as connection:
        told = [
            connection.execute(limits, {"name": name}).scalar_one()
            for name in ("idle_in_transaction_session_timeout", "lock_timeout")
        ]
    assert told[0] < told[1]
    with paused.database.writer.connect() as connection:
        connection.execute(text("SET idle_in_transaction_session_timeout = 50"))
        storage.take_seq(connection, pair.one, 5)  # and no word more
        [logged] = pair.servers[0].writer.write(appended(pair.one, [row("x")]))
        connection.invalidate()
    assert logged.seq == 1
    assert pair.servers[0].writer.failures == 0


def test_there_is_an_end_to_writing_again(pair: Pair, impatient: Server):
    with pair.other.transaction():
        pair.other.execute(BOTH, [pair.one])
        with pytest.raises(UnavailableError, match="did not take the write"):
            impatient.writer.write(appended(pair.one, [row("x")]))
    assert impatient.writer.repeats == TRIES - 1
    assert stored(impatient.database) == set()
    assert impatient.writer.write(appended(pair.one, [row("x")]))[0].seq == 1


def test_nothing_is_written_again_for_who_does_not_wait_any_more(
    pair: Pair, impatient: Server, monkeypatch: pytest.MonkeyPatch
):
    job: AppendDecisions = appended(pair.one, [row("late")])
    again = Writer._again

    def much_later(self: Writer, *arguments: Any) -> Any:  # noqa: ANN401
        job.expires = 0.0
        return again(self, *arguments)

    monkeypatch.setattr(Writer, "_again", much_later)
    with pair.other.transaction():
        pair.other.execute(BOTH, [pair.one])
        with pytest.raises(DeadlineError):
            impatient.writer.write(job)
    assert stored(impatient.database) == set()


def test_many_writers_never_wait_in_a_ring(pair: Pair):
    """Decisions for both experiments, leases and facts, in whatever groups they come."""
    servers = [pair.server(deadlock_timeout="5ms") for _ in range(2)]
    for name, one, server in zip("ab", (pair.one, pair.two), servers, strict=True):
        server.writer.call(lambda c, one=one, name=name: take(c, one, name, 0), experiment_id=one)

    def work(k: int) -> None:
        server, holder = servers[k % 2], "ab"[k % 2]
        for i in range(20):
            if k < 2:
                server.writer.call(lambda c, i=i: renew(c, holder, TERM + i, {1: i, 2: i}))
                server.writer.call(lambda c, i=i: catalogue.set_fact(c, "last_probe", str(i)))
                server.writer.call(lambda c: storage.take_seq(c, 1, 0), experiment_id=1)
            else:
                server.writer.write(appended(1 + (k + i) // 2 % 2, [row(f"{k}-{i}")]))

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(12)))
    assert [server.writer.failures for server in servers] == [0, 0]
    assert [server.writer.repeats for server in servers] == [0, 0]
    with psycopg.connect(pair.control.info.dsn) as connection:
        found = connection.execute("SELECT seq FROM decisions ORDER BY experiment_id, seq")
        assert [seq for (seq,) in found] == [*range(1, 101)] * 2
