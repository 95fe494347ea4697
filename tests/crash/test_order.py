"""Why the log's places come from a counter row inside the transaction: the counter-example.

A database's own sequence (bigserial, autoincrement) gives its numbers at once and to
everybody, so of two writers the one with the smaller number may commit last. Who reads "all
after the last I saw" then skips it for ever. The audit finds that.
"""

from itertools import count
from pathlib import Path

import pytest
from sqlalchemy.engine import Connection

from server import ledger, storage
from server.audit import audit
from server.storage import EventRow
from tests.server.harness import Clock, Peer


@pytest.fixture
def peer(tmp_path: Path):
    with Peer(tmp_path, clock=Clock()) as running:
        yield running


def buys(peer: Peer, name: str, n: int) -> list[EventRow]:
    """Decide, and prepare the event that closes each outcome."""
    made = []
    for i in range(n):
        decided = peer.decide(name, f"r{i}", include_propensities=False)
        one = bytes.fromhex(decided.decision_id.replace("-", ""))
        made.append(EventRow(f"e{i}", one, "buy", 10.0 + i, peer.clock.now, peer.clock.now))
    return made


def commit(peer: Peer, name: str, event: EventRow) -> None:
    rule = peer.live(name).experiment.spec.outcome
    with peer.server.database.writer.begin() as connection:
        ledger.append_events(connection, peer.live(name).id, rule, [event], peer.clock.now)


@pytest.mark.parametrize("own_sequence", [False, True], ids=["counter row", "own sequence"])
def test_two_writers_that_commit_out_of_order(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, *, own_sequence: bool
):
    name = peer.create("ordered", groups={"random": 0})
    slow, quick = buys(peer, name, 2)
    if own_sequence:  # the slow one has its numbers, and has not committed yet
        length = peer.log_length(name)
        drawn = {slow.event_id: length + 1, quick.event_id: length + 3}
        draw(monkeypatch, drawn)
    commit(peer, name, quick)
    peer.learn(name)  # reads all after the last it saw
    commit(peer, name, slow)
    peer.learn(name)
    with peer.server.database.reader.connect() as connection:
        found = audit(connection, peer.live(name))
    assert found.outcomes == 2
    learned = peer.experiment(name).snapshot.outcomes
    if own_sequence:
        assert learned == 1  # one is lost to the learner for ever
        assert any("outcome" in p or "fold" in p for p in found.problems), found.problems
    else:
        assert (learned, found.problems) == (2, [])


def draw(monkeypatch: pytest.MonkeyPatch, drawn: dict[str, int]) -> None:
    """Let places come from numbers drawn before, as a database's own sequence gives them."""
    order = count()
    counter = storage.take_seq
    places = [drawn["e1"], drawn["e0"]]  # in the order of the commits
    taken: dict[int, int] = {}

    def take(connection: Connection, experiment_id: int, n: int) -> int:
        counter(connection, experiment_id, n)
        return taken[id(connection)]

    class Drawn:
        """Stands for the lock of the counter row, and gives the place that was drawn."""

        def execute(self, connection: Connection, experiment_id: int) -> list[tuple[int, int]]:
            ((_, closed),) = lock.execute(connection, experiment_id)
            taken[id(connection)] = places[next(order)]
            return [(taken[id(connection)], closed)]

    lock = ledger._LOCK
    monkeypatch.setattr(ledger, "_LOCK", Drawn())
    monkeypatch.setattr(ledger, "take_seq", take)
