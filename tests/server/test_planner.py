"""What a batch costs SQLite does not grow with the log."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy.engine import Connection

from bandit.decision import Reason
from bandit.outcome import OutcomeRule, Reward
from server import catalogue, ledger, planner, storage
from server.database import Database
from server.storage import DecisionRow, EventRow, ExposureRow

SECOND = 1_000_000
ENDING = Reward(name="buy", bounds=(0, 100), terminal=True)
RULE = OutcomeRule(
    rewards=(ENDING,), window=10, exposure="confirmed", exposure_window=10, late="correct"
)
BATCH, LITTLE, MUCH = 128, 500, 8_000


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    database = Database(f"sqlite:///{tmp_path / 'b.db'}")
    with database.writer.connect() as opened:
        yield opened
    database.close()


def decision(n: int) -> DecisionRow:
    head = (n.to_bytes(16, "big"), f"r{n}", b"h" * 16, b"c" * 16, bytes(64), None, "", 0)
    return DecisionRow(*head, 0.5, 0, int(Reason.POLICY), 0, 0, None)


def steps(connection: Connection, work: Callable[[], object]) -> int:
    """Count hundreds of SQLite's instructions."""
    driven = connection.connection.dbapi_connection
    counted = [0]

    def count() -> int:
        counted[0] += 1
        return 0

    driven.set_progress_handler(count, 100)  # type: ignore[union-attr]
    try:
        work()
    finally:
        driven.set_progress_handler(None, 0)  # type: ignore[union-attr]
    return counted[0]


def facts(tag: str, ids: Sequence[bytes]) -> list[EventRow]:
    return [EventRow(f"{tag}{i}", one, "buy", 1.0, 0, 0) for i, one in enumerate(ids)]


def fill(connection: Connection, one: int, start: int, stop: int) -> None:
    """Decide, show, and report what ends half of it."""
    rows = [decision(n) for n in range(start, stop)]
    storage.append_decisions(connection, one, [rows])
    for at in range(0, len(rows), 2_000):
        ids = [row.decision_id for row in rows[at : at + 2_000]]
        tag = f"fill{start + at}-"
        shown = [ExposureRow(f"{tag}{i}", each, 0, 0) for i, each in enumerate(ids)]
        ledger.append_exposures(connection, one, RULE, shown, SECOND)
        ledger.append_events(connection, one, RULE, facts(tag, ids[::2]), SECOND)


def costs(connection: Connection, one: int, tag: str, stop: int) -> dict[str, int]:
    """Give what a batch of each kind costs now."""
    ids = [n.to_bytes(16, "big") for n in range(0, stop, stop // BATCH)][:BATCH]
    new = [decision(stop + n) for n in range(BATCH)]
    shown = [ExposureRow(f"{tag}{i}", each, 0, 0) for i, each in enumerate(ids)]
    seqs = list(range(1, BATCH))
    works: dict[str, Callable[[], object]] = {
        "merge": lambda: storage.merge_decisions(connection, one, [new]),
        "expose": lambda: ledger.append_exposures(connection, one, RULE, shown, SECOND),
        "report": lambda: ledger.append_events(connection, one, RULE, facts(tag, ids), SECOND),
        "repeat": lambda: ledger.append_events(connection, one, RULE, facts(tag, ids), SECOND),
        "outcomes": lambda: ledger.newest_outcomes(connection, one, seqs),
        "facts": lambda: ledger.facts_of(connection, one, RULE, seqs),
    }
    return {name: steps(connection, work) for name, work in works.items()}


def measured(connection: Connection) -> tuple[dict[str, int], dict[str, int]]:
    one = catalogue.add_experiment(
        connection, tenant="t", name="e", request_id="e", spec="{}", now=0
    ).id
    fill(connection, one, 0, LITTLE)
    early = costs(connection, one, "early", LITTLE)
    fill(connection, one, LITTLE + BATCH, MUCH)
    return early, costs(connection, one, "later", MUCH)


def test_a_batch_costs_as_much_in_a_long_log_as_in_a_short_one(connection: Connection):
    early, later = measured(connection)
    assert {name for name in early if later[name] > 1.6 * early[name] + 3} == set(), (early, later)


def test_without_statistics_it_would_not(connection: Connection):
    connection.exec_driver_sql("DELETE FROM sqlite_stat1")
    connection.exec_driver_sql("ANALYZE sqlite_schema")
    early, later = measured(connection)
    assert {name for name in early if later[name] > 4 * early[name]} != set()


def test_an_old_database_is_told_once(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'b.db'}"
    made = Database(url)
    with made.writer.begin() as opened:
        opened.exec_driver_sql("DROP TABLE sqlite_stat1")
    made.close()
    again = Database(url)
    with again.writer.begin() as opened:
        told = opened.exec_driver_sql("SELECT tbl, idx, stat FROM sqlite_stat1").all()
        changes = opened.exec_driver_sql("SELECT total_changes()").scalar_one()
        planner.tell(opened)
        assert opened.exec_driver_sql("SELECT total_changes()").scalar_one() == changes
    again.close()
    assert {line.tbl for line in told} >= set(planner.LOG)
