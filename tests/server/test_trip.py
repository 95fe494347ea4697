"""Decisions that go to PostgreSQL in one trip are what they are when they go one by one."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from bandit.errors import CorruptionError
from server import catalogue, storage, trip
from server.database import Database
from server.schema import decisions
from server.storage import DecisionRow
from tests.postgres import PostgresServer
from tests.server.harness import eventually
from tests.server.test_writer import row


@pytest.fixture(scope="module")
def shared(postgres: PostgresServer) -> Iterator[Database]:
    """Give a database with two experiments."""
    made = Database(postgres.fresh())
    with made.writer.begin() as connection:
        for name in ("one", "two"):
            catalogue.add_experiment(
                connection, tenant="t", name=name, request_id=name, spec="{}", now=0
            )
    yield made
    made.close()


@pytest.fixture
def database(shared: Database) -> Database:
    """Give it with nothing in its logs."""
    empty(shared)
    return shared


def empty(database: Database) -> None:
    with database.writer.begin() as connection:
        connection.execute(text("TRUNCATE decisions"))
        connection.execute(text("UPDATE experiments SET next_seq = 1"))


def stored(database: Database, experiment_id: int = 1) -> list[tuple[int, DecisionRow]]:
    with database.reader.connect() as connection:
        found = connection.execute(
            select(decisions)
            .where(decisions.c.experiment_id == experiment_id)
            .order_by(decisions.c.seq)
        ).all()
    return [(one.seq, storage.logged(one).row) for one in found]


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=64)
SMALL, LARGE = (st.integers(-(2**n), 2**n - 1) for n in (15, 63))
IDS = st.binary(min_size=16, max_size=16)
ROWS = st.builds(
    DecisionRow,
    *(IDS, TEXTS, IDS, IDS, st.binary(max_size=200), st.none() | TEXTS, TEXTS),
    *(st.none() | st.integers(-(2**31), 2**31 - 1), st.floats(allow_nan=False), SMALL, SMALL),
    *(LARGE, LARGE, st.none() | st.binary(max_size=200)),
)


@given(rows=st.lists(ROWS, max_size=5, unique_by=(lambda r: r.decision_id, lambda r: r.request_id)))
def test_rows_arrive_as_they_are(shared: Database, rows: list[DecisionRow]):
    empty(shared)
    with shared.writer.begin() as connection:
        first = trip.append(connection, {1: rows}, commits=True)
    assert first == {1: 1}
    assert stored(shared) == list(enumerate(rows, 1))


def test_numbers_that_are_none_arrive_too(database: Database):
    with database.writer.begin() as connection:
        trip.append(connection, {1: [row("x")._replace(propensity=math.nan)]}, commits=True)
    [(_, found)] = stored(database)
    assert math.isnan(found.propensity)


def test_several_experiments_get_their_own_places(database: Database):
    for turn in range(2):
        with database.writer.begin() as connection:
            rows = {one: [row(f"{turn}-{i}") for i in range(3)] for one in (2, 1)}
            assert trip.append(connection, rows, commits=True) == {1: 1 + 3 * turn, 2: 1 + 3 * turn}
    assert [seq for seq, _ in stored(database, 1)] == [1, 2, 3, 4, 5, 6]
    assert [seq for seq, _ in stored(database, 2)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("commits", [True, False])
def test_it_is_the_whole_transaction_or_a_part_of_it(
    database: Database,
    commits: bool,  # noqa: FBT001
):
    """Seen from outside."""
    with database.writer.begin() as connection:
        trip.append(connection, {1: [row("x")]}, commits=commits)
        assert bool(stored(database)) is commits
        storage.take_seq(connection, 2, 5)
        connection.rollback()
    assert bool(stored(database)) is commits
    with database.writer.begin() as connection:
        assert storage.next_seq(connection, 2) == 1


def test_a_key_that_is_there_refuses_all(database: Database):
    with database.writer.begin() as connection:
        trip.append(connection, {2: [row("x")]}, commits=True)
    many = [row(f"r{i}")._replace(context=bytes(2_000)) for i in range(3_000)]
    with pytest.raises(IntegrityError), database.writer.begin() as connection:
        trip.append(connection, {1: many, 2: [row("x")]}, commits=True)
    assert stored(database, 1) == []
    with database.writer.begin() as connection:
        assert trip.append(connection, {1: many}, commits=True) == {1: 1}
    assert len(stored(database, 1)) == 3_000


def test_nothing_is_appended_if_an_experiment_is_gone(database: Database):
    with pytest.raises(IntegrityError), database.writer.begin() as connection:
        trip.append(connection, {1: [row("x")], 99: [row("x")]}, commits=True)
    assert stored(database) == []
    with database.writer.begin() as connection:
        assert trip.append(connection, {1: [row("x")]}, commits=True) == {1: 1}


def test_an_id_of_another_size_is_no_id(database: Database):
    with pytest.raises(ValueError, match="16 bytes"), database.writer.begin() as connection:
        trip.append(connection, {1: [row("x")._replace(customer=b"short")]}, commits=True)
    assert stored(database) == []


def test_errors_keep_their_state(database: Database):
    nobody = row("x")._replace(traffic_group=1, request_id="\0")
    with pytest.raises(DBAPIError) as caught, database.writer.begin() as connection:
        trip.append(connection, {1: [nobody]}, commits=True)
    assert isinstance(caught.value.orig, psycopg.errors.CharacterNotInRepertoire)
    assert not caught.value.connection_invalidated


def test_a_connection_that_broke_is_known_to_have(postgres: PostgresServer, database: Database):
    with pytest.raises(OperationalError) as caught, database.writer.connect() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        connection.rollback()
        with postgres.connect() as control:
            control.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
        trip.append(connection, {1: [row("x")]}, commits=True)
    assert caught.value.connection_invalidated
    with database.writer.begin() as connection:
        assert trip.append(connection, {1: [row("x")]}, commits=True) == {1: 1}


def test_another_order_of_columns_is_refused(database: Database, monkeypatch: pytest.MonkeyPatch):
    """What is packed in one order must not be read in another."""
    monkeypatch.setattr(trip, "COLUMNS", trip.COLUMNS[::-1])
    with pytest.raises(CorruptionError), database.writer.begin() as connection:
        connection.info.clear()
        trip.append(connection, {1: [row("x")]}, commits=True)
    assert stored(database) == []


def test_counters_that_moved_meanwhile_give_the_places_after(
    postgres: PostgresServer, database: Database
):
    """The statement began before the other's places were known, and waited for them."""
    name = database.url.database or ""
    waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"
    with (
        postgres.connect(name) as other,
        postgres.connect() as control,
        ThreadPoolExecutor(1) as pool,
    ):

        def append() -> dict[int, int]:
            with database.writer.begin() as connection:
                return trip.append(connection, {2: [row("x")], 1: [row("x")]}, commits=True)

        with other.transaction():
            other.execute("UPDATE experiments SET next_seq = next_seq + 3 WHERE id = 1")
            answer = pool.submit(append)
            eventually(lambda: control.execute(waits, [name]).fetchone(), 60)
        assert answer.result() == {1: 4, 2: 1}
    assert [seq for seq, _ in stored(database, 1)] == [4]
