"""The checker finds each kind of harm, and nothing where there is none."""

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.client import BanditClient
from tests.crash.checking import Checked, check
from tests.crash.crowd import SPEC, Journal, Lines, ask, fact, shown
from tests.crash.rounds import begin
from tests.server.harness import Peer, eventually


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Lines]]]:
    """Give the database of a server that ended well, and the journal of its one client."""
    folder = tmp_path_factory.mktemp("written")
    journal = Journal(folder / "journal")
    with Peer(folder) as peer:
        address = f"127.0.0.1:{peer.server.port}"
        begin(address)
        with BanditClient(address, timeout=60) as client:
            for i in range(10):
                batch = [ask(f"r{i}"), ask(f"r{i}b")]
                journal.attempts.append((f"r{i}", f"r{i}b"))
                for one, answer in zip(batch, client.decide_batch(SPEC.name, batch), strict=True):
                    journal.write("D", one.request_id, *shown(answer))
                told = fact(f"r{i}", answer.decision_id, 1)
                client.record_reward(SPEC.name, told)
                journal.write("E", f"r{i}", told.decision_id, told.name)
                if i in (4, 9):  # two snapshots at least, so that an old one can be harmed
                    versions = (i + 1) // 5
                    eventually(lambda: peer.live(SPEC.name).snapshot.version >= versions)  # noqa: B023
    journal.close()
    yield folder, [journal.now()]


def harmed(written: tuple[Path, list[Lines]], folder: Path, statement: str) -> Checked:
    """Check a copy of the database after a statement."""
    source, journals = written
    shutil.copy(source / "bandit.db", folder / "bandit.db")
    with sqlite3.connect(folder / "bandit.db", isolation_level=None) as connection:
        assert connection.execute(statement).rowcount
    connection.close()
    return check(f"sqlite:///{folder / 'bandit.db'}", source / "bandit.db.secret", journals)


def test_nothing_is_wrong(written: tuple[Path, list[Lines]], tmp_path: Path):
    found = harmed(written, tmp_path, "UPDATE facts SET value = value")
    assert found.is_kept, found
    assert (found.acknowledged, found.decisions) == (30, 20)


LOST = [
    ("DELETE FROM decisions WHERE request_id = 'r3'", "decision r3"),
    ("DELETE FROM reward_events WHERE event_id = 'r4'", "event r4"),
    ("UPDATE decisions SET propensity = propensity / 2 WHERE request_id = 'r5'", "decision r5"),
    ("UPDATE decisions SET action = 1 - min(action, 1) WHERE request_id = 'r6b'", "decision r6b"),
    ("UPDATE reward_events SET decision_seq = 1 WHERE event_id = 'r7'", "event r7"),
    ("DELETE FROM experiments", "decision r0"),
]


@pytest.mark.parametrize(("statement", "what"), LOST, ids=[what for _, what in LOST])
def test_what_is_lost_or_changed_is_named(
    written: tuple[Path, list[Lines]], tmp_path: Path, statement: str, what: str
):
    found = harmed(written, tmp_path, statement)
    assert what in found.lost
    assert not found.is_kept


HARM = [
    ("DELETE FROM decisions WHERE request_id = 'r3'", "half of the batch"),
    ("DELETE FROM outcomes WHERE decision_seq = (SELECT min(decision_seq) FROM outcomes)", "not"),
    ("UPDATE experiments SET next_seq = next_seq + 1", "not dense"),
    ("UPDATE outcomes SET value = value + 1", "its events give"),
    ("UPDATE snapshots SET digest = zeroblob(32) WHERE version = 1", "not the fold"),
]


@pytest.mark.parametrize(("statement", "what"), HARM, ids=[what for _, what in HARM])
def test_what_does_not_follow_is_a_problem(
    written: tuple[Path, list[Lines]], tmp_path: Path, statement: str, what: str
):
    found = harmed(written, tmp_path, statement)
    assert any(what in problem for problem in found.problems), found


def test_an_id_that_stands_twice_is_found(written: tuple[Path, list[Lines]], tmp_path: Path):
    """The tables forbid it; so the copy's table is one that does not."""
    source, journals = written
    shutil.copy(source / "bandit.db", tmp_path / "bandit.db")
    with sqlite3.connect(tmp_path / "bandit.db", isolation_level=None) as connection:
        connection.execute("CREATE TABLE free AS SELECT * FROM reward_events")
        connection.execute("DROP TABLE reward_events")
        connection.execute("ALTER TABLE free RENAME TO reward_events")
        connection.execute("INSERT INTO reward_events SELECT * FROM reward_events LIMIT 1")
    connection.close()
    url = f"sqlite:///{tmp_path / 'bandit.db'}"
    found = check(url, source / "bandit.db.secret", journals)
    assert found.duplicated == ["event r0"]
