"""Dropping what is old: the belief goes on, and what is kept is still proved bit for bit."""

import json
from functools import partial
from pathlib import Path

import grpc
import pytest
from sqlalchemy import select, text

from bandit.errors import CorruptionError, UnavailableError
from server import catalogue, lessons, retention
from server.audit import Findings, audit
from server.commands import retain
from server.database import Database
from server.pb import bandit_pb2 as pb
from server.schema import decisions, snapshots
from tests.server.harness import SECOND, Peer, decide_request, refusal, reward_request
from tests.server.test_ledger import roll_back

HOUR = 3_600
GROUPS = {"random": 0.2, "baseline": 0.2, "no_contact": 0.1}
BASELINE = {"variant": "long", "channel": "email"}


def day(peer: Peer, name: str, k: int, n: int = 20) -> list[pb.Decision]:
    """Decide for n customers, some buy, some click; let a day pass, and learn."""
    asked = [decide_request(name, f"{k}-{i}", include_propensities=i % 3 == 0) for i in range(n)]
    answer = peer.decisions.BatchDecide(pb.BatchDecideRequest(requests=asked))
    events = [
        reward_request(name, f"{k}-{i}", d.decision_id, name="buy" if i % 4 else "click")
        for i, d in enumerate(answer.decisions)
        if i % 2
    ]
    peer.decisions.BatchRecordRewards(pb.BatchRecordRewardsRequest(events=events))
    peer.learn(name)
    peer.clock.advance(24 * HOUR)
    peer.learn(name)
    return list(answer.decisions)


@pytest.fixture
def aged(still: Peer) -> Peer:
    """Give a server with five days of traffic in an experiment."""
    still.create("aged", groups=GROUPS, baseline=BASELINE)
    for k in range(5):
        day(still, "aged", k)
    return still


def retained(peer: Peer, days: float, *, limit: int = 7) -> tuple[int, retention.Cut]:
    """Drop in small steps; give how many decisions went."""
    live = peer.live("aged")
    before = peer.clock.now - round(days * 24 * HOUR * SECOND)
    writer = peer.server.writer
    cut = writer.call(lambda c: retention.advance(c, live, before, peer.clock.now))
    gone, after = 0, 0
    while after is not None:
        step = writer.call(lambda c, a=after: retention.drop(c, live.id, cut, a, limit))
        gone, after = gone + step.decisions, step.last
    return gone, cut


def proved(peer: Peer) -> Findings:
    with peer.server.database.reader.connect() as connection:
        found = audit(connection, peer.live("aged"))
    assert found.problems == []
    return found


def posterior(peer: Peer) -> bytes:
    with peer.server.database.reader.connect() as connection:
        return catalogue.latest_snapshot(connection, peer.live("aged").id).posterior


def test_old_decisions_go_and_the_belief_stays(aged: Peer):
    whole, belief = proved(aged), posterior(aged)
    gone, cut = retained(aged, 2.5)
    kept = proved(aged)
    assert 0 < gone <= 60  # three days of five are older
    assert kept.decisions == whole.decisions - gone
    assert kept.start == cut.seq > 0
    assert kept.entries < whole.entries
    assert kept.repeated > 0
    assert kept.snapshots > 0
    assert posterior(aged) == belief
    with aged.server.database.reader.connect() as connection:
        oldest = connection.execute(select(decisions.c.decided_at)).scalars().all()
    recent = aged.clock.now - round(2.5 * 24 * HOUR * SECOND)
    assert sum(at >= recent for at in oldest) == 40  # nothing that is young went


def test_it_goes_on_as_if_nothing_had_been_dropped(aged: Peer):
    before = aged.experiment("aged").snapshot.version
    retained(aged, 2.5)
    aged.restart()
    day(aged, "aged", 6)
    assert aged.experiment("aged").snapshot.version > before
    proved(aged)
    first = proved(aged).start
    gone, cut = retained(aged, 1.5)
    assert gone > 0
    assert cut.seq > first
    proved(aged)
    assert retained(aged, 1.5) == (0, cut)


def test_ids_are_known_as_long_as_their_decision(aged: Peer):
    retained(aged, 1.5)
    assert aged.decide("aged", "4-1").repeated_request
    assert not aged.decide("aged", "0-1").repeated_request


def test_an_event_for_a_dropped_decision_is_not_found(still: Peer):
    still.create("aged", groups=GROUPS, baseline=BASELINE)
    old = day(still, "aged", 0)
    for k in range(1, 4):
        day(still, "aged", k)
    assert retained(still, 1.5)[0] >= 20
    found = refusal(still.reward, "aged", "too late", old[0].decision_id)
    assert found.code is grpc.StatusCode.NOT_FOUND
    proved(still)


def test_a_decision_with_a_late_event_is_kept_whole(still: Peer):
    still.create("aged", groups=GROUPS, baseline=BASELINE)
    old = day(still, "aged", 0)
    for k in range(1, 4):
        day(still, "aged", k)
    still.reward("aged", "late", old[0].decision_id)
    assert retained(still, 1.5)[0] >= 19
    told = still.get("aged", old[0].decision_id)
    assert told.events[-1].event_id == "late"
    proved(still)


def test_what_is_not_learned_is_not_dropped(still: Peer):
    still.create("aged", groups=GROUPS, baseline=BASELINE)
    still.decide("aged", "open")
    assert retained(still, 0.0) == (0, retention.Cut(still.clock.now, 0))
    assert still.log_length("aged") == 1


@pytest.mark.parametrize("scope", [{"without_reporter": "anonymous"}, {"to_snapshot": 1}])
def test_a_rollback_is_still_proved_when_what_it_left_out_is_old(
    still: Peer, scope: dict[str, object]
):
    """A base within its reach would believe what was left out, and could not forget it."""
    still.create("aged", groups=GROUPS, baseline=BASELINE)
    for k in range(3):
        day(still, "aged", k)
    roll_back(still, "aged", **scope)
    still.learn("aged")
    for k in range(3, 6):
        day(still, "aged", k)
    places = []
    for days in (4.5, 3.5, 1.5):
        places.append(retained(still, days)[1].seq)
        proved(still)
    assert places[-1] > places[0]
    still.restart()
    roll_back(still, "aged", request_id="again", since=1)
    still.learn("aged")
    proved(still)


def test_what_was_dropped_can_not_be_rolled_back(aged: Peer):
    first = roll_back(aged, "aged", request_id="in time", to_snapshot=7)
    aged.learn("aged")
    for k in range(5, 9):
        day(aged, "aged", k)
    _, cut = retained(aged, 1.5)
    found = refusal(roll_back, aged, "aged", request_id="too late", to_snapshot=1)
    assert (found.code, found.field) == (grpc.StatusCode.INVALID_ARGUMENT, "to_snapshot")
    assert str(cut.seq) in found.message
    again = roll_back(aged, "aged", request_id="in time", to_snapshot=7)
    assert again.sequence == first.sequence
    roll_back(aged, "aged", request_id="new", to_snapshot=aged.experiment("aged").snapshot.version)
    aged.learn("aged")
    proved(aged)


def test_what_is_dropped_while_a_rollback_is_folded(aged: Peer, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patched:
        patched.setattr(lessons, "read", partial(lessons.read, limit=4))
        roll_back(aged, "aged", to_snapshot=aged.experiment("aged").snapshot.version - 1)
        for _ in range(3):
            assert aged.server.learner.step(aged.live("aged"), flush=True)
        gone, cut = retained(aged, 2.5)
        assert gone > 0
        aged.learn("aged")
    assert proved(aged).start == cut.seq


def test_a_log_that_is_folded_can_be_written(aged: Peer, monkeypatch: pytest.MonkeyPatch):
    """The fold takes as long as the log; a server beside it must go on, and what changes shows."""
    if aged.settings.database.startswith("sqlite"):
        return  # takes one process that writes
    fold = retention.fold

    def write_meanwhile(*told: object) -> object:
        assert aged.decide("aged", "meanwhile").sequence
        return fold(*told)

    with monkeypatch.context() as patched:
        patched.setattr(retention, "fold", write_meanwhile)
        url, secret = aged.settings.database, aged.settings.secret_file
        retain.retain(0, url, secret)
    proved(aged)


def test_a_log_in_doubt_is_not_dropped_from(aged: Peer):
    with aged.server.database.writer.begin() as connection:
        connection.execute(text("UPDATE outcomes SET value = value + 1 WHERE is_learned"))
    with pytest.raises(CorruptionError, match="nothing was dropped"):
        retained(aged, 2.5)


@pytest.mark.parametrize("column", ["posterior", "digest"])
def test_a_changed_base_is_found(aged: Peer, column: str):
    retained(aged, 2.5)
    with aged.server.database.writer.begin() as connection:
        connection.execute(text(f"UPDATE bases SET {column} = :b"), {"b": b"\1" * 32})  # noqa: S608
    with pytest.raises(CorruptionError, match="was changed"):
        proved(aged)


def test_a_hole_after_the_base_is_found(aged: Peer):
    _, cut = retained(aged, 2.5)
    with aged.server.database.writer.begin() as connection:
        hole = text("DELETE FROM reward_events WHERE seq = (SELECT max(seq) FROM reward_events)")
        assert connection.execute(hole).rowcount == 1
    with aged.server.database.reader.connect() as connection:
        found = audit(connection, aged.live("aged"))
    assert any("not dense" in problem for problem in found.problems)
    assert found.start == cut.seq


def test_a_base_without_its_snapshots_is_the_fold(aged: Peer):
    """The base equals the snapshot it was made from, and every later one follows from it."""
    _, cut = retained(aged, 2.5)
    live = aged.live("aged")
    with aged.server.database.reader.connect() as connection:
        base = retention.base(connection, live)
        later = connection.execute(
            select(snapshots.c.seq).where(snapshots.c.seq > cut.seq).order_by(snapshots.c.seq)
        ).scalars()
        for seq in later.all():
            assert retention.fold(connection, live, base, seq) is base
        rule = live.experiment.spec.outcome
        assert lessons.read(connection, live.id, rule, after=base.seq).rows == []


def test_the_command(aged: Peer, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    aged.clock.now = 0  # the command reads the real clock: all of this is long past
    url, secret = aged.settings.database, tmp_path / "bandit.db.secret"
    if url.startswith("sqlite"):
        with pytest.raises(UnavailableError, match="another server holds"):
            retain.retain(1, url, secret)
        aged.stop()
        retain.retain(1, url, secret)
        aged.start()
    else:
        retain.retain(1, url, secret)  # beside the running server, which is not fenced
    assert "dropped: " in capsys.readouterr().out
    found = proved(aged)
    assert found.decisions < 20  # what was not learned from may stand after the last snapshot
    assert found.start > 0
    [entry] = [
        entry
        for entry in aged.experiments.ListAuditEntries(pb.ListAuditEntriesRequest()).entries
        if entry.action == "experiment.retain"
    ]
    assert entry.who.startswith("banditctl")
    assert json.loads(entry.before) == {"base": 0}
    assert json.loads(entry.after) == {"base": found.start, "older_than_days": 1}
    length = aged.log_length("aged")
    assert aged.decide("aged", "after").sequence == length + 1


def test_beside_no_other_schema(still: Peer):
    if still.settings.database.startswith("sqlite"):
        return
    with still.server.database.writer.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(CorruptionError, match="9999"):
        Database(still.settings.database, beside=True)
