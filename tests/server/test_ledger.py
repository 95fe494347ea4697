"""Exposures, corrections and omissions: kept, in order, and a function of what came before."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select
from sqlalchemy.engine import Connection
from typer.testing import CliRunner

from bandit import encoding
from bandit.errors import BanditError, ConflictError, InvalidInputError, NotFoundError
from bandit.outcome import OutcomeRule, Reward
from server import ledger, lessons, storage
from server.commands import app
from server.database import Database
from server.ledger import Closed
from server.omissions import Omission, Scope
from server.pb import bandit_pb2 as pb
from server.schema import open_windows
from server.storage import ExposureRow, Recorded
from tests.server.harness import START, Clock, Peer, refusal, reward_request
from tests.server.test_learner import check, snapshots, tamper
from tests.server.test_storage import add, decide, event, is_dense, record, row

SECOND = 1_000_000
REWARDS = (
    Reward(name="click"),
    Reward(name="buy", bounds=(-100, 100), terminal=True),
)
CONFIRMED = OutcomeRule(
    rewards=REWARDS, window=10, early=2, exposure="confirmed", exposure_window=20
)
CORRECTING = OutcomeRule(rewards=REWARDS, window=10, early=2, late="correct")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'bandit.db'}")
    yield made
    made.close()


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    """Give a transaction that is undone in the end."""
    with database.writer.connect() as opened:
        yield opened


@pytest.fixture
def one(connection: Connection) -> int:
    return add(connection, "one")


def shown(event_id: str, request: str, at: float, *, received: float | None = None) -> ExposureRow:
    times = [round(t * SECOND) for t in (at, at if received is None else received)]
    return ExposureRow(event_id, request.encode().rjust(16, b"\0"), *times)


def expose(
    connection: Connection, experiment: int, *rows: ExposureRow, rule: OutcomeRule = CONFIRMED
) -> list[Recorded | BanditError]:
    return ledger.append_exposures(
        connection, experiment, rule, rows, max(r.received_at for r in rows)
    )


def close(connection: Connection, experiment: int, rule: OutcomeRule, at: float) -> Closed:
    return ledger.close_due(connection, experiment, rule, round(at * SECOND))


def values(connection: Connection, experiment: int, decision_seq: int) -> list[tuple]:
    found = storage.find_outcomes(connection, experiment, decision_seq)
    return [(entry.seq, entry.value, entry.replaces) for entry in found]


# --- exposures ------------------------------------------------------------------------------


def test_the_window_runs_from_the_exposure(connection: Connection, one: int):
    decide(connection, one, row("a"))
    [told] = expose(connection, one, shown("x", "a", 15))
    assert told == Recorded(2, late=False, duplicate=False)
    [before, inside, after] = record(
        connection,
        one,
        event("e1", "a", at=12 * SECOND),
        event("e2", "a", at=25 * SECOND),
        event("e3", "a", at=26 * SECOND),
        rule=CONFIRMED,
    )
    assert [before.late, inside.late, after.late] == [True, False, True]
    assert close(connection, one, CONFIRMED, 24.999).settled == 1  # the cursor, not the window
    assert values(connection, one, 1) == []
    assert close(connection, one, CONFIRMED, 25) == Closed(1, 1, None)
    assert values(connection, one, 1) == [(6, 1.0, 0)]
    assert is_dense(connection, one)


def test_what_is_never_shown_has_no_outcome(connection: Connection, one: int):
    decide(connection, one, row("a"), row("b"))
    record(connection, one, event("e", "a", name="buy", value=7), rule=CONFIRMED)
    assert close(connection, one, CONFIRMED, 19.9) == Closed(0, 0, 20 * SECOND)
    assert close(connection, one, CONFIRMED, 20)[:2] == (2, 0)
    [late] = expose(connection, one, shown("x", "a", 5, received=21))
    assert late.late
    [event_after] = record(connection, one, event("e2", "a", at=6 * SECOND), rule=CONFIRMED)
    assert event_after.late
    assert close(connection, one, CONFIRMED, 99) == Closed(0, 0, None)
    assert values(connection, one, 1) == values(connection, one, 2) == []


def test_events_may_come_before_the_exposure_they_follow(connection: Connection, one: int):
    decide(connection, one, row("a"), row("b"))
    record(
        connection,
        one,
        event("e1", "a", at=14 * SECOND),
        event("e2", "b", name="buy", value=40, at=16 * SECOND),
        rule=CONFIRMED,
    )
    assert storage.find_outcome(connection, one, 2) is None
    expose(connection, one, shown("x", "a", 15), shown("y", "b", 15))
    assert values(connection, one, 2) == [(7, 40.0, 0)]  # it was terminal: closed at once
    close(connection, one, CONFIRMED, 25)
    assert values(connection, one, 1) == [(8, 1.0, 0)]


def test_a_terminal_event_ends_a_window(connection: Connection, one: int):
    decide(connection, one, row("a"))
    expose(connection, one, shown("x", "a", 1))
    record(connection, one, event("e", "a", name="buy", value=3, at=2 * SECOND), rule=CONFIRMED)
    assert values(connection, one, 1) == [(4, 3.0, 0)]
    windows = select(open_windows).where(open_windows.c.experiment_id == one)
    assert connection.execute(windows).all() == []
    assert close(connection, one, CONFIRMED, 99).learned == 0


@pytest.mark.parametrize(
    ("at", "late"), [(-2.0, False), (-2.000001, True), (20.0, False), (20.000001, True)]
)
def test_the_time_for_an_exposure_is_inclusive(
    connection: Connection,
    one: int,
    at: float,
    late: bool,  # noqa: FBT001
):
    decide(connection, one, row("a"))
    [told] = expose(connection, one, shown("x", "a", at))
    assert told.late is late


def test_only_the_first_exposure_counts(connection: Connection, one: int):
    decide(connection, one, row("a"), row("b"))
    [first, again, second] = expose(
        connection, one, shown("x", "a", 3), shown("x", "a", 3), shown("y", "a", 1)
    )
    assert first == Recorded(3, late=False, duplicate=False)
    assert again == Recorded(3, late=False, duplicate=True)
    assert second == Recorded(4, late=True, duplicate=False)
    assert expose(connection, one, shown("y", "a", 9)) == [Recorded(4, late=True, duplicate=True)]
    close(connection, one, CONFIRMED, 12.9)
    assert values(connection, one, 1) == []
    close(connection, one, CONFIRMED, 13)
    assert values(connection, one, 1) == [(5, 0.0, 0)]


def test_exposures_that_can_not_be_recorded(connection: Connection, one: int):
    decide(connection, one, row("a"), row("b"))
    [good, unknown, reused] = expose(
        connection, one, shown("x", "a", 3), shown("y", "nobody", 3), shown("x", "b", 3)
    )
    assert good.seq == 3
    assert isinstance(unknown, NotFoundError)
    assert isinstance(reused, ConflictError)
    assert is_dense(connection, one)


def test_windows_close_in_the_order_they_end(connection: Connection, one: int):
    """A decision that is shown late does not hold up those behind it."""
    decide(connection, one, row("a"), row("b"))
    expose(connection, one, shown("x", "a", 19), shown("y", "b", 1))
    assert close(connection, one, CONFIRMED, 11) == Closed(1, 1, 20 * SECOND)
    assert values(connection, one, 2) == [(5, 0.0, 0)]
    assert close(connection, one, CONFIRMED, 20)[:2] == (2, 0)
    assert close(connection, one, CONFIRMED, 29) == Closed(1, 1, None)


def test_what_sends_nothing_has_nothing_to_show(connection: Connection, one: int):
    decide(connection, one, row("a")._replace(action=None), row("b")._replace(action=None))
    record(connection, one, event("e", "a", at=9 * SECOND), rule=CONFIRMED)
    assert expose(connection, one, shown("x", "a", 1))[0].late
    close(connection, one, CONFIRMED, 20)
    assert [v[0][1] for v in (values(connection, one, 1), values(connection, one, 2))] == [1.0, 0.0]


def test_nothing_shown_waits_for_a_window_longer_than_the_time_for_exposures(
    connection: Connection, one: int
):
    rule = OutcomeRule(rewards=REWARDS, window=30, exposure="confirmed", exposure_window=20)
    decide(connection, one, row("a")._replace(action=None))
    assert close(connection, one, rule, 20)[:2] == (1, 0)
    assert close(connection, one, rule, 20) == Closed(0, 0, 30 * SECOND)
    [told] = record(connection, one, event("e", "a", at=25 * SECOND), rule=rule)
    assert not told.late
    close(connection, one, rule, 30)
    assert values(connection, one, 1) == [(3, 1.0, 0)]


def test_where_windows_begin_at_decisions_an_exposure_changes_nothing(
    connection: Connection, one: int
):
    rule = OutcomeRule(rewards=REWARDS, window=10)
    decide(connection, one, row("a"))
    assert expose(connection, one, shown("x", "a", 8), rule=rule)[0] == Recorded(
        2, late=False, duplicate=False
    )
    assert close(connection, one, rule, 10)[:2] == (1, 1)


# --- corrections ----------------------------------------------------------------------------


def test_a_refund_replaces_the_outcome(connection: Connection, one: int):
    decide(connection, one, row("a"))
    record(connection, one, event("e1", "a", name="buy", value=40), rule=CORRECTING)
    [refund] = record(
        connection, one, event("e2", "a", name="buy", value=-40, at=99 * SECOND), rule=CORRECTING
    )
    assert refund == Recorded(4, late=True, duplicate=False, corrects=True)
    assert values(connection, one, 1) == [(3, 40.0, 0), (5, 0.0, 3)]
    assert storage.find_outcome(connection, one, 1) == 0.0
    assert is_dense(connection, one)


def test_a_correction_of_silence(connection: Connection, one: int):
    decide(connection, one, row("a"))
    close(connection, one, CORRECTING, 10)
    told = [event(f"e{i}", "a", at=5 * SECOND) for i in range(2)]
    record(connection, one, *told, rule=CORRECTING)
    assert values(connection, one, 1) == [(2, 0.0, 0), (4, 1.0, 2), (6, 2.0, 4)]
    found = lessons.read(connection, one, CORRECTING, after=0).rows
    assert [(x.seq, x.value) for x in found] == [(2, 0.0), (4, 1.0), (6, 2.0)]
    np.testing.assert_array_equal([x.replaced for x in found], [np.nan, 0.0, 1.0])


def test_the_same_number_is_no_new_outcome(connection: Connection, one: int):
    decide(connection, one, row("a"))
    close(connection, one, CORRECTING, 10)
    [told] = record(connection, one, event("e", "a", value=0.0), rule=CORRECTING)
    assert told.corrects
    assert values(connection, one, 1) == [(2, 0.0, 0)]


def test_a_late_event_opens_what_closed_in_silence(connection: Connection, one: int):
    rule = OutcomeRule(rewards=REWARDS, window=10, late="correct", silence="ignore")
    decide(connection, one, row("a"))
    close(connection, one, rule, 10)
    record(connection, one, event("e", "a"), rule=rule)
    assert values(connection, one, 1) == [(3, 1.0, 0)]


def test_what_is_too_early_never_corrects(connection: Connection, one: int):
    decide(connection, one, row("a", at=9 * SECOND))
    close(connection, one, CORRECTING, 19)
    [told] = record(connection, one, event("e", "a", at=6 * SECOND), rule=CORRECTING)
    assert (told.late, told.corrects) == (True, False)
    assert len(values(connection, one, 1)) == 1


def test_an_event_beyond_an_open_window_counts_when_it_closes(connection: Connection, one: int):
    decide(connection, one, row("a"))
    [told] = record(connection, one, event("e", "a", at=11 * SECOND), rule=CORRECTING)
    assert (told.late, told.corrects) == (True, True)
    close(connection, one, CORRECTING, 12)
    assert values(connection, one, 1) == [(3, 1.0, 0)]


@pytest.mark.parametrize("split", range(1, 5))
def test_who_shares_a_transaction_changes_nothing(connection: Connection, split: int):
    told = [
        event("e1", "a"),
        event("e2", "a", name="buy", value=40),
        event("e3", "a", name="buy", value=-10, at=50 * SECOND),
        event("e4", "a", at=3 * SECOND),
        event("e5", "a", name="buy", value=-40, at=60 * SECOND),
    ]
    ids = [add(connection, name) for name in ("whole", "parts")]
    for experiment in ids:
        decide(connection, experiment, row("a"))
    whole = record(connection, ids[0], *told, rule=CORRECTING)
    parts = [
        *record(connection, ids[1], *told[:split], rule=CORRECTING),
        *record(connection, ids[1], *told[split:], rule=CORRECTING),
    ]
    assert whole == parts
    assert values(connection, ids[0], 1) == values(connection, ids[1], 1)


# --- the server -----------------------------------------------------------------------------


POLICIES = {
    "gaussian": {"posterior": "gaussian"},
    "logistic": {"posterior": "logistic"},
    "beta": {"posterior": "beta_bernoulli"},
    "fading": {"posterior": "gaussian", "half_life": 600},
}
RULE = {
    "window": 100,
    "aggregation": "last",
    "late": "correct",
    "rewards": [{"name": "bought", "terminal": True}, {"name": "refunded", "weight": 0.5}],
}


@pytest.fixture
def still(tmp_path: Path) -> Iterator[Peer]:
    with Peer(tmp_path, clock=Clock()) as made:
        yield made


def play(peer: Peer, name: str, first: int, n: int, reporter: str = "local") -> list[str]:
    """Decide for n customers of whom two of three buy, and let the learner learn."""
    made = [peer.decide(name, f"r{i}").decision_id for i in range(first, first + n)]
    with as_reporter(peer, reporter):
        for i, one in enumerate(made):
            if i % 3:
                peer.reward(name, f"bought {one}", one, name="bought")
    peer.clock.advance(101)
    peer.learn(name)
    return made


class as_reporter:  # noqa: N801  reads as a word
    """Let events come from somebody: what an access control would know of the caller."""

    def __init__(self, peer: Peer, name: str) -> None:
        self.writer = peer.server.writer
        self.name = name

    def __enter__(self) -> None:
        submit = self.writer.submit

        def renamed(job: object) -> None:
            if hasattr(job, "events"):
                job.events = [e._replace(reporter=self.name) for e in job.events]
            submit(job)  # type: ignore[arg-type]

        self.writer.submit = renamed  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        del self.writer.submit


def last(peer: Peer, name: str) -> bytes:
    posterior = snapshots(peer, name)[-1].posterior
    assert posterior is not None
    return posterior


def statistics(peer: Peer, name: str, data: bytes) -> dict[str, np.ndarray]:
    posterior = peer.live(name).experiment.prior()
    encoding.load(posterior, data)
    return {**posterior.present(), "count": np.array(posterior.count)}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_belief_with_corrections_is_the_fold_of_the_log(still: Peer, policy: str):
    name = still.create("corrected", policy=POLICIES[policy], outcome=RULE)
    made = play(still, name, 0, 30)
    for i, one in enumerate(made):
        if i % 2:
            answer = still.reward(name, f"refund {one}", one, name="refunded", value=0.5)
            assert answer.disposition == pb.DISPOSITION_CORRECTION
    still.restart()
    play(still, name, 30, 10)
    found = check(still, name)
    assert found.problems == []
    assert found.outcomes > 40
    learned = still.experiment(name).snapshot.outcomes
    assert learned == 40  # a correction is no outcome more
    report = still.report(name)
    assert sum(line.outcomes for line in report.groups) == 40
    assert report.corrections == found.outcomes - 40
    detail = still.get(name, made[1])
    assert [(o.value, o.replaces != 0) for o in detail.outcomes] == [(1.0, False), (0.25, True)]
    assert detail.outcome == 0.25


def test_exposures_over_the_wire(still: Peer):
    outcome = {"window": 100, "exposure": "confirmed", "rewards": [{"name": "click"}]}
    name = still.create("shown", outcome=outcome, groups={})
    one, two = (still.decide(name, f"r{i}").decision_id for i in range(2))
    request = pb.ConfirmExposureRequest(experiment=name, decision_id=one, event_id="x")
    answer = still.decisions.ConfirmExposure(request)
    assert (answer.disposition, answer.sequence) == (pb.DISPOSITION_RECORDED, 3)
    assert still.decisions.ConfirmExposure(request).disposition == pb.DISPOSITION_DUPLICATE
    request.event_id = "y"
    assert still.decisions.ConfirmExposure(request).disposition == pb.DISPOSITION_LATE
    assert still.report(name).open_decisions == 2
    still.clock.advance(101)
    still.learn(name)
    assert still.get(name, one).outcome == 0.0
    assert [e.late for e in still.get(name, one).exposures] == [False, True]
    assert not still.get(name, two).HasField("outcome")
    assert still.report(name).open_decisions == 0
    assert still.experiment(name).snapshot.outcomes == 1
    found = check(still, name)
    assert (found.problems, found.exposures, found.entries) == ([], 2, 5)
    request.decision_id = "00000000-0000-7000-8000-000000000000"
    request.event_id = "z"
    assert refusal(still.decisions.ConfirmExposure, request).code.name == "NOT_FOUND"


# --- rollback -------------------------------------------------------------------------------


def roll_back(peer: Peer, name: str, **fields: object) -> pb.RollbackResponse:
    request = pb.RollbackRequest(name=name, reason="a test", request_id=str(fields))
    for field, value in fields.items():
        if field in ("since", "until"):
            getattr(request, field).FromMicroseconds(value)
        else:
            setattr(request, field, value)
    return peer.experiments.Rollback(request)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_rollback_to_a_snapshot_is_that_snapshot(still: Peer, policy: str):
    name = still.create("rolled back", policy=POLICIES[policy], outcome=RULE)
    play(still, name, 0, 20)
    good = last(still, name)
    play(still, name, 20, 20)
    assert last(still, name) != good
    told = roll_back(still, name, to_snapshot=1)
    assert told.outcomes == 20
    still.learn(name, flush=False)  # it is published at once
    stored = snapshots(still, name)
    assert (stored[-1].version, stored[-1].seq) == (3, told.sequence)
    before, after = statistics(still, name, good), statistics(still, name, last(still, name))
    for part, array in before.items():
        np.testing.assert_array_equal(array, after[part])
    still.restart()
    play(still, name, 40, 10)
    assert still.experiment(name).snapshot.outcomes == 30
    found = check(still, name)
    assert (found.problems, found.omissions) == ([], 1)


@pytest.mark.parametrize("policy", POLICIES)
def test_without_a_reporter_the_belief_is_as_if_it_had_been_silent(still: Peer, policy: str):
    """Of what only it reported nothing is known; what others said stays, corrections included."""
    name = still.create("poisoned", policy=POLICIES[policy], outcome=RULE)
    play(still, name, 0, 12)
    bad = play(still, name, 12, 12, reporter="mallory")
    for i, one in enumerate(bad):
        if i % 4 == 1:  # an honest correction of a poisoned outcome
            still.reward(name, f"refund {one}", one, name="refunded", value=0.5)
    told = roll_back(still, name, without_reporter="mallory")
    assert told.events == 8
    still.learn(name)
    found = check(still, name)
    assert found.problems == []
    # twelve of before, four silent ones, and three refunds that are all that is known
    assert still.experiment(name).snapshot.outcomes == 12 + 4 + 2


def test_a_time_is_left_out_with_what_builds_on_it(still: Peer):
    name = still.create("outage", outcome=RULE, policy=POLICIES["beta"])
    play(still, name, 0, 10)
    still.clock.advance(1)
    begin = still.clock.now
    lost = play(still, name, 10, 10)
    end = still.clock.now + 1
    still.clock.advance(1)
    play(still, name, 20, 10)
    roll_back(still, name, since=begin, until=end)
    still.learn(name)
    assert still.experiment(name).snapshot.outcomes == 20
    still.reward(name, "refund", lost[1], name="refunded", value=0.5)
    still.learn(name)
    assert still.experiment(name).snapshot.outcomes == 20
    assert check(still, name).problems == []


def test_a_rollback_is_folded_in_stretches(still: Peer, monkeypatch: pytest.MonkeyPatch):
    """Others learn in between; a stop in between loses nothing, for nothing was published."""
    long, short = still.create("long", outcome=RULE), still.create("short", outcome=RULE)
    play(still, long, 0, 40)
    still.learn(long)
    monkeypatch.setattr(lessons, "read", partial(lessons.read, limit=4))
    roll_back(still, long, to_snapshot=0, until=1)
    learner = still.server.learner
    for _ in range(3):
        assert learner.step(still.live(long), flush=True)
    assert still.experiment(long).snapshot.version == 1
    play(still, short, 0, 4)
    learner.step(still.live(short), flush=True)
    assert still.experiment(short).snapshot.version == 1
    still.restart()
    still.learn(long)
    assert still.experiment(long).snapshot.version == 2
    assert check(still, long).problems == []


def test_a_rollback_is_repeated_by_its_request_id(still: Peer):
    name = still.create("once", outcome=RULE)
    play(still, name, 0, 5)
    first = roll_back(still, name, to_snapshot=0)
    length = still.log_length(name)
    assert roll_back(still, name, to_snapshot=0) == first
    assert still.log_length(name) == length
    request = pb.RollbackRequest(
        name=name, to_snapshot=0, reason="another", request_id=str({"to_snapshot": 0})
    )
    assert refusal(still.experiments.Rollback, request).code.name == "ALREADY_EXISTS"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "to_snapshot"),
        ({"to_snapshot": 7}, "to_snapshot"),
        ({"to_snapshot": 0, "reason": ""}, "reason"),
        ({"since": START, "until": START}, "until"),
        ({"without_reporter": "x" * 65}, "without_reporter"),
        ({"to_snapshot": 0, "request_id": ""}, "request_id"),
    ],
)
def test_a_rollback_that_makes_no_sense(still: Peer, fields: dict[str, object], field: str):
    name = still.create("sensible", outcome=RULE)
    found = refusal(roll_back, still, name, **fields)
    assert (found.code.name, found.field) == ("INVALID_ARGUMENT", field)
    assert still.log_length(name) == 0


TAMPERINGS = {
    "a correction": "update outcomes set value = value / 2 where replaces > 0",
    "what a correction replaces": "update outcomes set replaces = 1 where replaces > 0",
    "a correction lost": "delete from outcomes where replaces > 0",
    "what is left out": "update omissions set after_seq = 0",
    "an omission lost": "delete from omissions",
    "an exposure that counted": "update exposures set late = 1 where seq = (select min(seq) from"
    " exposures)",
}


@pytest.mark.parametrize("statement", TAMPERINGS.values(), ids=TAMPERINGS)
def test_the_audit_finds_what_was_changed(still: Peer, statement: str):
    outcome = {**RULE, "exposure": "confirmed"}
    name = still.create("audited", outcome=outcome, groups={})
    for first in (0, 5):
        made = [still.decide(name, f"r{i}").decision_id for i in range(first, first + 5)]
        for one in made:
            still.decisions.ConfirmExposure(
                pb.ConfirmExposureRequest(experiment=name, decision_id=one, event_id=one)
            )
        still.clock.advance(101)
        still.learn(name)
    still.decisions.RecordReward(reward_request(name, "late", made[0], name="refunded"))
    still.learn(name)
    roll_back(still, name, to_snapshot=1)
    still.learn(name)
    assert check(still, name).problems == []
    tamper(still, statement)
    assert check(still, name).problems != []


@pytest.mark.parametrize(
    ("exposure", "statement"),
    [
        ("confirmed", "DELETE FROM open_windows WHERE decision_seq = 1"),
        ("confirmed", "UPDATE open_windows SET due_at = due_at + 1 WHERE decision_seq = 1"),
        ("confirmed", "INSERT INTO open_windows SELECT 1, seq, decided_at FROM decisions "
         "WHERE request_id = 'hidden'"),
        ("confirmed", "INSERT INTO open_windows SELECT 1, decision_seq, closed_at FROM outcomes"),
        ("confirmed", "INSERT INTO open_windows VALUES (1, 999, 0)"),
        ("decision", "UPDATE experiments SET closed_seq = next_seq - 1"),
        ("decision", "INSERT INTO open_windows SELECT 1, seq, decided_at FROM decisions "
         "WHERE request_id = 'r1'"),
    ],
)  # fmt: skip
def test_the_audit_finds_windows_that_would_never_close(still: Peer, exposure: str, statement: str):
    name = still.create("open", outcome={**RULE, "exposure": exposure}, groups={})
    shown = [still.decide(name, f"r{i}").decision_id for i in range(3)]
    still.decide(name, "hidden")
    for one in shown:
        still.decisions.ConfirmExposure(
            pb.ConfirmExposureRequest(experiment=name, event_id=one, decision_id=one)
        )
    still.reward(name, "sold", shown[2], name="bought")
    still.learn(name)
    assert check(still, name).problems == []
    tamper(still, statement)
    assert any("window" in problem for problem in check(still, name).problems)


def test_scopes_are_half_open():
    assert [Scope(since=2, until=4).spans(at) for at in (1, 2, 3, 4)] == [False, True, True, False]
    assert Omission(9, Scope()).scope.spans(-1)


# --- the command line -----------------------------------------------------------------------


def banditctl(peer: Peer, *arguments: str) -> str:
    address = f"127.0.0.1:{peer.server.port}"
    found = CliRunner().invoke(app, [*arguments, "--address", address], catch_exceptions=False)
    assert found.exit_code == 0
    return found.stdout


def test_expose_and_rollback_by_hand(still: Peer):
    name = still.create("by hand", outcome={**RULE, "exposure": "confirmed"}, groups={})
    one = still.decide(name, "r0").decision_id
    told = ("expose", name, one, "--event-id", "x", "--exposed-at", "2026-01-01T01:00:30+01:00")
    assert banditctl(still, *told) == "recorded\n"
    assert banditctl(still, *told) == "duplicate\n"
    still.clock.advance(131)
    still.learn(name)
    assert still.experiment(name).snapshot.outcomes == 1
    said = banditctl(still, "rollback", name, "--to-snapshot", "0", "--reason", "a bad start")
    assert "0 events, 1 outcomes" in said
    still.learn(name)
    assert still.experiment(name).snapshot.outcomes == 0
    assert check(still, name).problems == []


@pytest.mark.parametrize("instant", ["yesterday", "2026-01-31T18:00:00"])
def test_an_instant_without_its_offset_is_refused(still: Peer, instant: str):
    with pytest.raises(InvalidInputError, match="offset"):
        banditctl(still, "rollback", "x", "--reason", "y", "--since", instant)
