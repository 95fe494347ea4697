"""What is learned is a pure function of the log; and the proof of that can fail."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bandit import encoding
from bandit.errors import CorruptionError
from bandit.posterior import Posterior
from server import catalogue, lessons
from server.app import Server
from server.audit import Findings, audit
from server.lessons import rows_of
from server.pb import bandit_pb2 as pb
from tests.server.harness import START, Clock, Peer, decide_request, eventually, reward_request

GROUPS = {"random": 0.2, "baseline": 0.2, "no_contact": 0.2}
BASELINE = {"variant": "long", "channel": "email"}


def play(peer: Peer, name: str, first: int, n: int) -> list[pb.Decision]:
    """Decide for n customers; every second one buys, so that its outcome closes at once."""
    requests = [
        decide_request(
            name, f"r{i}", context={"values": {"age": {"number": 20 + i % 50}}},
            exclusions=[{"channel": "push", "reason": "no app"}] if i % 4 == 0 else [],
            include_propensities=i % 3 == 0,
        )
        for i in range(first, first + n)
    ]  # fmt: skip
    answer = peer.decisions.BatchDecide(pb.BatchDecideRequest(requests=requests))
    decisions = list(answer.decisions)
    events = [
        reward_request(name, f"e{d.sequence}", d.decision_id, name="buy", value=float(i % 30))
        for i, d in enumerate(decisions)
        if i % 2
    ]
    peer.decisions.BatchRecordRewards(pb.BatchRecordRewardsRequest(events=events))
    return decisions


def snapshots(peer: Peer, name: str) -> list:
    with peer.server.database.reader.connect() as connection:
        return list(catalogue.list_snapshots(connection, peer.live(name).id))


def from_scratch(peer: Peer, name: str, to: int) -> bytes:
    """Fold every outcome up to a place of the log, one by one, with the engine alone."""
    live = peer.live(name)
    posterior = live.experiment.prior()
    with peer.server.database.reader.connect() as connection:
        rule = live.experiment.spec.outcome
        entries = lessons.read(connection, live.id, rule, after=0, limit=100_000).rows
    for entry in entries:
        if entry.seq <= to:
            live.experiment.learn(
                posterior,
                rows_of([entry.context]),
                [entry.action],
                np.array([entry.value]),
                times=np.array([entry.decided_at / 1e6]),
                seq=entry.seq,
            )
    return encoding.to_bytes(posterior)


def check(peer: Peer, name: str) -> Findings:
    with peer.server.database.reader.connect() as connection:
        return audit(connection, peer.live(name))


# --- folding and publishing -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("posterior", "outcome"),
    [
        ("gaussian", {}),
        ("beta_bernoulli", {"aggregation": "max", "rewards": [{"name": "buy", "weight": 0.01,
          "bounds": [0, 100], "terminal": True}]}),
    ],
)  # fmt: skip
def test_the_published_belief_is_the_fold_of_the_log(
    still: Peer, posterior: str, outcome: dict[str, object]
):
    rule = {"window": 3_600, "rewards": [{"name": "buy", "bounds": [0, 100], "terminal": True}]}
    name = still.create(
        "folded",
        policy={"posterior": posterior},
        outcome={**rule, **outcome},
        groups=GROUPS,
        baseline=BASELINE,
    )
    for i in range(6):
        play(still, name, 20 * i, 20)
        if i % 2:
            still.clock.advance(2_000)
        still.learn(name)
        if i == 3:
            still.restart()
    stored = snapshots(still, name)
    assert [row.version for row in stored] == [1, 2, 3, 4, 5, 6]
    for row in stored[-catalogue.KEPT_POSTERIORS :]:
        assert row.posterior == from_scratch(still, name, row.seq)
    assert [row.posterior is None for row in stored] == [True] * 3 + [False] * 3
    assert check(still, name).problems == []


@pytest.mark.parametrize("posterior", ["gaussian", "beta_bernoulli"])
def test_a_belief_that_fades_comes_out_again(still: Peer, posterior: str):
    """Days between rewards and a restart: the clock is the decisions', not the learner's."""
    rule = {"window": 3_600, "aggregation": "max", "rewards": [
        {"name": "buy", "weight": 0.01, "bounds": [0, 100], "terminal": True}]}  # fmt: skip
    policy = {"posterior": posterior, "half_life": 7_200}
    name = still.create("fading", policy=policy, outcome=rule, groups=GROUPS, baseline=BASELINE)
    for i in range(5):
        play(still, name, 20 * i, 20)
        still.clock.advance(86_400.0 * i)
        still.learn(name)
        if i == 2:
            still.restart()
    stored = snapshots(still, name)
    assert len(stored) >= 5
    assert stored[-1].posterior == from_scratch(still, name, stored[-1].seq)
    assert check(still, name).problems == []
    live = still.live(name)
    belief = live.experiment.prior()
    encoding.load(belief, stored[-1].posterior)
    origin, landmark, latest = belief.clock.tolist()
    assert origin * 1e6 == START
    assert latest - origin == 86_400 * (1 + 2 + 3)
    assert landmark == 72.0  # the last move of the landmark, by the latest decision
    fresh = sum(weight_of(belief))
    assert 0.0 < fresh < 20.0  # of 100 decisions, those of the last day


def weight_of(belief: Posterior) -> list[float]:
    """Give the outcomes of every action or block, each counted by its weight."""
    sums = belief.present()
    return (sums["counts"].sum(axis=1) if "counts" in sums else sums["sums"][:, 0]).tolist()


def test_only_what_was_chosen_is_learned(still: Peer):
    name = still.create("choosy", groups=GROUPS, baseline=BASELINE)
    decisions = play(still, name, 0, 60)
    still.clock.advance(3_601)
    still.learn(name)
    chosen = sum(d.group in (pb.GROUP_BANDIT, pb.GROUP_RANDOM) for d in decisions)
    found = still.experiment(name)
    assert 0 < chosen < 60
    assert found.snapshot.outcomes == chosen
    assert found.log_length == 60 + 30 + 60


def test_a_snapshot_is_published_at_its_count(still: Peer):
    name = still.create("by count", publishing={"outcomes": 5, "seconds": 3_600}, groups={})
    versions = []
    for i in range(12):
        one = still.decide(name, f"r{i}")
        still.reward(name, f"e{i}", one.decision_id, name="buy", value=1.0)
        still.learn(name, flush=False)
        versions.append(still.experiment(name).snapshot.version)
    assert versions == [0] * 4 + [1] * 5 + [2] * 3
    assert [row.outcomes for row in snapshots(still, name)] == [5, 10]


def test_a_snapshot_is_published_after_its_time(still: Peer):
    name = still.create("by time", publishing={"outcomes": 1_000, "seconds": 10})
    one = still.decide(name, "r0")
    still.reward(name, "e0", one.decision_id, name="buy", value=1.0)
    still.learn(name, flush=False)
    still.clock.advance(9.999)
    still.learn(name, flush=False)
    before = still.experiment(name).snapshot
    still.clock.advance(0.001)
    still.learn(name, flush=False)
    after = still.experiment(name).snapshot
    assert (before.version, after.version, after.outcomes) == (0, 1, 1)
    assert after.published_at.ToMicroseconds() == still.clock.now
    still.clock.advance(1_000)
    still.learn(name, flush=True)
    assert still.experiment(name).snapshot == after  # nothing new, nothing published


def test_a_clock_that_is_set_back_holds_up_nothing(still: Peer):
    """What was stamped in the future is settled then; what comes now, when it is due."""
    still.clock.advance(86_400)
    name = still.create(
        "set back",
        publishing={"outcomes": 1_000, "seconds": 60},
        outcome={"window": 10, "rewards": [{"name": "click"}, {"name": "buy", "terminal": True}]},
    )
    ahead = still.decide(name, "ahead")
    sold = still.decide(name, "sold")
    still.reward(name, "sold", sold.decision_id, name="buy")
    still.learn(name, flush=False)
    still.clock.advance(-86_400)
    decided = [still.decide(name, f"r{i}") for i in range(5)]
    still.learn(name, flush=False)
    still.clock.advance(11)
    still.learn(name, flush=False)
    assert all(still.get(name, one.decision_id).HasField("outcome") for one in decided)
    assert not still.get(name, still.decide(name, "open").decision_id).HasField("outcome")
    still.clock.advance(61)
    still.learn(name, flush=False)
    assert still.experiment(name).snapshot.version == 1
    still.clock.advance(86_400)
    still.learn(name)
    assert still.get(name, ahead.decision_id).HasField("outcome")
    assert check(still, name).problems == []


def test_decisions_name_the_snapshot_that_decided(still: Peer):
    name = still.create("named", groups={})
    before = play(still, name, 0, 10)
    still.learn(name)
    after = play(still, name, 10, 10)
    assert {d.snapshot_version for d in before} == {0}
    assert {d.snapshot_version for d in after} == {1}


def test_outcomes_that_were_not_published_are_learned_after_a_restart(still: Peer):
    name = still.create("resumed", publishing={"outcomes": 1_000, "seconds": 3_600})
    play(still, name, 0, 20)
    still.learn(name, flush=False)
    still.restart()
    still.learn(name)
    [row] = snapshots(still, name)
    assert row.posterior == from_scratch(still, name, row.seq)


def test_it_learns_by_itself(peer: Peer):
    publishing = {"outcomes": 1, "seconds": 0.01}
    name = peer.create("by itself", publishing=publishing, groups={"random": 0})
    one = peer.decide(name, "r0")
    peer.reward(name, "e0", one.decision_id, name="buy", value=1.0)
    eventually(lambda: peer.experiment(name).snapshot.outcomes == 1)
    assert peer.decide(name, "r1").snapshot_version == 1


def test_a_window_ends_by_itself(peer: Peer):
    outcome = {"window": 0.2, "rewards": [{"name": "click"}]}
    name = peer.create("short window", outcome=outcome, publishing={"outcomes": 1, "seconds": 0.01})
    one = peer.decide(name, "r0")
    eventually(lambda: peer.get(name, one.decision_id).HasField("outcome"))
    assert peer.get(name, one.decision_id).outcome == 0.0


def test_one_experiment_that_fails_does_not_stop_the_others(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
):
    publishing = {"outcomes": 1, "seconds": 0.01}
    broken = peer.create("a broken one", publishing=publishing)
    name = peer.create("b sound one", publishing=publishing, groups={"random": 0})

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(peer.live(broken).experiment, "learn", fail)
    for one in (broken, name):
        decision = peer.decide(one, "r0")
        peer.reward(one, "e0", decision.decision_id, name="buy", value=1.0)
    eventually(lambda: peer.experiment(name).snapshot.outcomes == 1)


# --- the proof can fail ---------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Peer]:
    """Give a server with a log of some length, three snapshots, and its learner at rest."""
    with Peer(tmp_path, clock=Clock()) as peer:
        name = peer.create("audited", groups=GROUPS, baseline=BASELINE)
        for i in range(3):
            play(peer, name, 30 * i, 30)
            peer.clock.advance(4_000)
            peer.learn(name)
        peer.experiments.PauseExperiment(pb.PauseExperimentRequest(name=name))
        peer.decide(name, "while paused", include_propensities=True)
        yield peer


def tamper(peer: Peer, statement: str, *values: object) -> None:
    """Change the database behind the server's back."""
    path = peer.settings.database.removeprefix("sqlite:///")
    connection = sqlite3.connect(path)
    changed = connection.execute(statement, values).rowcount
    connection.commit()
    connection.close()
    assert changed == 1


def read(peer: Peer, statement: str) -> tuple:
    path = peer.settings.database.removeprefix("sqlite:///")
    connection = sqlite3.connect(path)
    row = connection.execute(statement).fetchone()
    connection.close()
    return row


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_an_untouched_log_has_no_problems(written: Peer):
    found = check(written, "audited")
    assert found.problems == []
    assert (found.decisions, found.events, found.outcomes) == (91, 45, 90)
    assert (found.snapshots, found.repeated, found.entries) == (3, 91, 226)
    assert check(written, "audited") == found


CHANGES = {
    "an outcome": "update outcomes set value = value + 1e-9 where seq = (select max(seq) from"
    " outcomes where is_learned)",
    "an outcome of the baseline": "update outcomes set value = 7 where seq = (select min(seq) from"
    " outcomes where not is_learned)",
    "an outcome left out": "update outcomes set is_learned = 0 where seq = (select max(seq) from"
    " outcomes where is_learned)",
    "an outcome of the baseline learned": "update outcomes set is_learned = 1 where seq = (select"
    " max(o.seq) from outcomes o join decisions d on d.seq = decision_seq where reason = 3)",
    "an outcome of silence learned": "update outcomes set is_learned = 1 where seq = (select"
    " max(o.seq) from outcomes o join decisions d on d.seq = decision_seq where action is null)",
    "an event's value": "update reward_events set value = value + 1 where seq = (select min(seq)"
    " from reward_events)",
    "an event's name": "update reward_events set name = 'click' where seq = (select max(seq) from"
    " reward_events where value > 1)",
    "an event's lateness": "update reward_events set late = 1 where seq = (select max(seq) from"
    " reward_events where value > 1)",
    "an event's time": "update reward_events set occurred_at = occurred_at + 9000000000 where seq ="
    " (select max(seq) from reward_events where value > 1)",
    "a propensity": "update decisions set propensity = propensity * 0.999999999999999 where"
    " seq = (select max(seq) from decisions where reason = 1)",
    "a certain propensity": "update decisions set propensity = 0.5 where seq = (select max(seq)"
    " from decisions where reason = 3)",
    "an action": "update decisions set action = (action + 1) % 4 where seq = (select max(seq)"
    " from decisions where reason = 1)",
    "a reason": "update decisions set reason = 3 where seq = (select max(seq) from decisions where"
    " reason = 1)",
    "a group": "update decisions set traffic_group = 3 - traffic_group where seq = (select max(seq)"
    " from decisions where traffic_group < 3)",
    "a snapshot's version": "update decisions set snapshot_version = 0 where seq = (select max(seq)"
    " from decisions where reason = 1)",
    "a version never made": "update decisions set snapshot_version = 99 where seq = 1",
    "exclusions": "update decisions set exclusions = null where seq = (select max(seq) from"
    " decisions where exclusions is not null and reason = 1)",
    "a snapshot's place": "update snapshots set seq = seq - 1 where version = 2",
    "a snapshot's count": "update snapshots set outcomes = outcomes + 1 where version = 1",
    "a missing outcome": "delete from outcomes where seq = (select min(seq) from outcomes)",
    "a missing decision": "delete from decisions where seq = 3",
    "the last decision": "delete from decisions where seq = (select max(seq) from decisions)",
    "a missing event": "delete from reward_events where seq = (select max(seq) from reward_events)",
    "a missing snapshot": "delete from snapshots where version = 2",
    "a moved decision": "update decisions set seq = 10000 where seq = 3",
    "the next place": "update experiments set next_seq = next_seq + 1",
}


@pytest.mark.parametrize("statement", CHANGES.values(), ids=CHANGES)
def test_a_change_is_found(written: Peer, statement: str):
    tamper(written, statement)
    assert check(written, "audited").problems != []


@pytest.mark.parametrize("column", ["digest", "posterior"])
@pytest.mark.parametrize("version", [2, 3])
def test_a_flipped_bit_of_a_snapshot_is_found(written: Peer, column: str, version: int):
    (data,) = read(written, f"select {column} from snapshots where version = {version}")  # noqa: S608
    for at in (0, len(data) // 2, len(data) - 1):
        statement = f"update snapshots set {column} = ? where version = {version}"  # noqa: S608
        tamper(written, statement, flipped(data, at))
        assert any(str(version) in problem for problem in check(written, "audited").problems)
        tamper(written, statement, data)
    assert check(written, "audited").problems == []


@pytest.mark.parametrize("column", ["context", "propensities"])
def test_a_flipped_bit_of_a_decision_is_found(written: Peer, column: str):
    seq, data = read(
        written,
        f"select seq, {column} from decisions where propensities is not null and reason = 1"  # noqa: S608
        " order by seq desc",
    )
    statement = f"update decisions set {column} = ? where seq = {seq}"  # noqa: S608
    tamper(written, statement, flipped(data, 4))
    assert check(written, "audited").problems != []


def test_what_deciding_again_would_find_is_left_out_if_told_so(written: Peer):
    tamper(written, CHANGES["a propensity"])
    with written.server.database.reader.connect() as connection:
        found = audit(connection, written.live("audited"), again=False)
    assert (found.problems, found.repeated) == ([], 0)


def test_progress_is_told(written: Peer):
    told: list[tuple[int, int]] = []
    with written.server.database.reader.connect() as connection:
        audit(connection, written.live("audited"), step=lambda *step: told.append(step))
    assert told[-1] == (91, 91)


SPOILS: dict[str, Callable[[Peer], None]] = {
    "posterior": lambda peer: tamper(
        peer,
        "update snapshots set posterior = ? where version = 3",
        flipped(read(peer, "select posterior from snapshots where version = 3")[0], 300),
    ),
    "digest": lambda peer: tamper(
        peer, "update snapshots set digest = zeroblob(32) where version = 3"
    ),
    "lost": lambda peer: tamper(peer, "update snapshots set posterior = null where version = 3"),
    "empty": lambda peer: tamper(peer, "update snapshots set posterior = x'' where version = 3"),
    "spec": lambda peer: tamper(peer, "update experiments set spec = '{}'"),
    "spec that is no JSON": lambda peer: tamper(peer, "update experiments set spec = 'x'"),
    "state": lambda peer: tamper(peer, "update experiments set state = 77"),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_a_server_does_not_start_on_what_it_can_not_read(
    written: Peer, spoil: Callable[[Peer], None]
):
    written.stop()
    spoil(written)
    with pytest.raises(CorruptionError, match=r"audited|snapshot 3"):
        Server(written.settings)
    with pytest.raises(CorruptionError):  # and the lock was let go
        Server(written.settings)


def test_a_posterior_sleeps_while_nothing_new_is_in_it(still: Peer):
    """A thousand quiet experiments hold little; when one wakes, the fold goes on bit for bit."""
    name = still.create("quiet")
    play(still, name, 0, 20)
    still.learn(name)
    student = still.server.learner._students[still.live(name).id]
    assert student.posterior is not None
    still.clock.advance(11)
    still.learn(name)
    assert student.posterior is None
    play(still, name, 20, 20)
    still.learn(name)
    assert student.posterior is not None
    assert still.experiment(name).snapshot.outcomes == 20
    assert check(still, name).problems == []
