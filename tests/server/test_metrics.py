"""Metrics say what happened: each number is compared with what a client counted itself."""

import re
import socket
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from bandit.decision import Group, Reason
from bandit.errors import UnavailableError
from server import endpoint, metrics
from server.access import DEFAULT_TENANT
from server.counters import LAGS, Distribution
from server.pb import bandit_pb2 as pb
from server.sample_ratio import ENOUGH
from server.schema import decisions
from tests.server.harness import (
    SECOND,
    Clock,
    Peer,
    decide_request,
    eventually,
    refusal,
    reward_request,
)
from tests.server.scrape import page, scrape, value
from tests.server.test_transport import Gate


@pytest.fixture
def measured(tmp_path: Path):
    """Run a server with a metrics port, whose clock stands still."""
    with Peer(tmp_path, clock=Clock(), metrics_port=0, in_flight=4) as running:
        yield running


def until(peer: Peer, name: str, wanted: float, **labels: str) -> None:
    """Wait until a number is counted: callers are answered before it is."""
    eventually(lambda: value(scrape(peer), name, **labels) == wanted)


def test_decisions_are_counted_as_they_were_answered(measured: Peer):
    name = measured.create(
        "counted",
        groups={"random": 0.3, "baseline": 0.3},
        baseline={"variant": "short", "channel": "email"},
    )
    answers = [measured.decide(name, f"r{i}") for i in range(60)]
    batch = pb.BatchDecideRequest(requests=[decide_request(name, f"b{i}") for i in range(200)])
    answers += measured.decisions.BatchDecide(batch).decisions
    until(measured, "bandit_decisions_total", 260, experiment=name)
    samples = scrape(measured)
    counted = Counter((a.group, a.reason) for a in answers)
    assert len({group for group, _ in counted}) == 3
    for (group, reason), n in counted.items():
        labels = {"group": Group(group).name.lower(), "reason": Reason(reason).name.lower()}
        found = value(
            samples, "bandit_decisions_total", tenant=DEFAULT_TENANT, experiment=name, **labels
        )
        assert found == n
    assert value(samples, "bandit_commit_rows_sum") >= 260
    assert value(samples, "bandit_commit_seconds_count") >= 61


def test_a_repeated_request_is_no_new_decision(measured: Peer):
    name = measured.create("repeated")
    for _ in range(3):
        measured.decide(name, "same")
    batch = pb.BatchDecideRequest(requests=[decide_request(name, r) for r in ("same", "other")])
    measured.decisions.BatchDecide(batch)
    until(measured, "bandit_decisions_repeated_total", 3, experiment=name)
    assert value(scrape(measured), "bandit_decisions_total", experiment=name) == 2


def test_rewards_are_counted_by_kind_and_by_what_became_of_them(measured: Peer):
    clock = measured.clock
    assert clock is not None
    name = measured.create("rewarded")
    one = measured.decide(name, "r1").decision_id
    clock.advance(500)
    request = reward_request(name, "e1", one)
    request.occurred_at.FromMicroseconds(clock.now - 20 * SECOND)
    measured.decisions.RecordReward(request)
    measured.decisions.RecordReward(request)
    unknown = one[:-1] + ("0" if one[-1] != "0" else "1")
    found = refusal(measured.reward, name, "e2", unknown)
    assert found.code is grpc.StatusCode.NOT_FOUND
    refusal(measured.reward, name, "e1", one, name="buy")
    clock.advance(4_000)
    measured.reward(name, "e3", one, name="buy")
    until(measured, "bandit_rewards_total", 5, experiment=name)
    samples = scrape(measured)
    told = {
        ("click", "recorded"): 1,
        ("click", "duplicate"): 1,
        ("click", "unknown_decision"): 1,
        ("buy", "conflict"): 1,
        ("buy", "late"): 1,
    }
    for (reward, what), n in told.items():
        labels = {"reward": reward, "disposition": what}
        assert value(samples, "bandit_rewards_total", experiment=name, **labels) == n
    assert value(samples, "bandit_rewards_unjoined_total", experiment=name) == 1
    assert value(samples, "bandit_reward_lag_seconds_sum") == pytest.approx(20)
    assert value(samples, "bandit_reward_lag_seconds_bucket", le="60.0") == 2
    assert value(samples, "bandit_reward_lag_seconds_bucket", le="10.0") == 1
    assert value(samples, "bandit_reward_delay_seconds_sum") == pytest.approx(500 + 4_500, abs=0.01)


def test_calls_are_counted_by_method_and_code(measured: Peer):
    name = measured.create("called")
    measured.decide(name, "r1")
    refusal(measured.decide, "nowhere", "r2")
    measured.report(name)
    method = "DecisionService/Decide"
    until(measured, "bandit_request_seconds_count", 2, method=method)
    samples = scrape(measured)
    for code in ("OK", "NOT_FOUND"):
        assert value(samples, "bandit_request_seconds_count", method=method, code=code) == 1
    assert 0 < value(samples, "bandit_request_seconds_sum", method=method, code="OK") < 60
    until(
        measured,
        "bandit_request_seconds_count",
        1,
        method="ExperimentService/GetReport",
        code="OK",
    )


def test_what_is_shed_is_counted(measured: Peer):
    name = measured.create("shed")
    gate = Gate(measured)
    calls = [measured.decisions.Decide.future(decide_request(name, f"r{i}")) for i in range(40)]
    eventually(lambda: sum(call.done() for call in calls) == 36)
    assert value(scrape(measured), "bandit_queue_jobs") == 4
    gate.open()
    codes = Counter(call.code() for call in calls)
    assert codes == {grpc.StatusCode.OK: 4, grpc.StatusCode.UNAVAILABLE: 36}
    until(measured, "bandit_requests_shed_total", 36, method="DecisionService/Decide")
    until(measured, "bandit_request_seconds_count", 36, code="UNAVAILABLE")


def test_learning_shows_its_lag_and_the_age_of_what_decides(measured: Peer):
    clock = measured.clock
    assert clock is not None
    name = measured.create("learning")
    for i in range(10):
        measured.decide(name, f"r{i}")
    clock.advance(3_700)
    measured.learn(name, flush=False)
    samples = scrape(measured)
    assert value(samples, "bandit_learner_lag_outcomes", experiment=name) == 10
    assert value(samples, "bandit_snapshot_version", experiment=name) == 0
    measured.learn(name)
    clock.advance(30)
    samples = scrape(measured)
    assert value(samples, "bandit_learner_lag_outcomes", experiment=name) == 0
    assert value(samples, "bandit_snapshot_version", experiment=name) == 1
    assert value(samples, "bandit_snapshot_outcomes", experiment=name) == 10
    assert value(samples, "bandit_snapshot_age_seconds", experiment=name) == pytest.approx(30)
    assert value(samples, "bandit_learner_lag_seconds", experiment=name) == pytest.approx(30)
    assert value(samples, "bandit_experiment_state", experiment=name, state="running") == 1
    assert value(samples, "bandit_experiment_state", experiment=name) == 1


def test_decisions_at_the_floor_are_counted(measured: Peer):
    """After many clear outcomes, an arm that loses is only ever drawn at its floor."""
    clock = measured.clock
    assert clock is not None
    name = measured.create(
        "floored", groups={"random": 0.5}, policy={"floor": 0.1}, context=[], fallback=None
    )
    ids = {}
    for i in range(4):
        batch = pb.BatchDecideRequest(
            requests=[bare_request(name, f"a{i}-{j}") for j in range(250)]
        )
        for decision in measured.decisions.BatchDecide(batch).decisions:
            ids[decision.decision_id] = decision.action.index
    events = [
        reward_request(name, f"e{one}", one, value=100.0, name="buy")
        for one, action in ids.items()
        if action == 0
    ]
    for i in range(0, len(events), 900):
        part = pb.BatchRecordRewardsRequest(events=events[i : i + 900])
        assert not any(
            r.HasField("error") for r in measured.decisions.BatchRecordRewards(part).results
        )
    clock.advance(3_700)
    measured.learn(name)
    before = value(scrape(measured), "bandit_propensity_floor_hits_total", experiment=name)
    batch = pb.BatchDecideRequest(requests=[bare_request(name, f"b{j}") for j in range(300)])
    answers = measured.decisions.BatchDecide(batch).decisions
    at_floor = sum(
        a.reason == Reason.POLICY and a.propensity == pytest.approx(0.1, rel=1e-6) for a in answers
    )
    assert at_floor > 5
    until(measured, "bandit_propensity_floor_hits_total", before + at_floor, experiment=name)


def bare_request(name: str, request_id: str) -> pb.DecideRequest:
    return pb.DecideRequest(experiment=name, request_id=request_id, customer_id=request_id)


def test_a_split_that_is_wrong_shows(measured: Peer):
    name = measured.create("split", groups={"random": 0.5})
    requests = [decide_request(name, f"r{i}") for i in range(6 * ENOUGH)]
    measured.decisions.BatchDecide(pb.BatchDecideRequest(requests=requests))
    live, ratios = measured.live(name), measured.server.sample_ratios
    assert ratios.look(live)
    assert not ratios.look(live), "nothing is new"
    labels = {"experiment": name, "snapshot": "newest"}
    samples = scrape(measured)
    assert value(samples, "bandit_sample_ratio_p_value", **labels) > 1e-6
    assert value(samples, "bandit_sample_ratio_customers", **labels) == 6 * ENOUGH
    wrong = update(decisions).where(decisions.c.experiment_id == live.id).values(traffic_group=1)
    measured.server.writer.call(lambda c: c.execute(wrong))
    measured.decide(name, "one more")
    assert ratios.look(live)
    samples = scrape(measured)
    for snapshot in ("newest", "recent"):
        labels = {"experiment": name, "snapshot": snapshot}
        assert value(samples, "bandit_sample_ratio_p_value", **labels) < 1e-6
        assert value(samples, "bandit_sample_ratio_snapshot_version", **labels) == 0


def test_experiments_beyond_the_bound_are_counted_together(
    measured: Peer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(metrics, "MOST_EXPERIMENTS", 2)
    for name in ("first", "second", "third", "fourth"):
        measured.create(name)
        measured.decide(name, "r")
    until(measured, "bandit_decisions_total", 4)
    samples = scrape(measured)
    named = {dict(labels).get("experiment") for _, labels in samples} - {None}
    assert named == {"first", "second", "_other"}
    assert value(samples, "bandit_decisions_total", experiment="_other") == 2
    assert value(samples, "bandit_experiments") == 4


LABELS = {
    "le", "method", "code", "tenant", "experiment", "group", "reason", "reward", "disposition",
    "state", "snapshot",
    "generation", "implementation", "major", "minor", "patchlevel", "version",
}  # fmt: skip


def test_no_label_holds_what_a_request_said(measured: Peer):
    name = measured.create("private")
    word = "very-private-0815"
    decision = measured.decide(name, f"request-{word}", customer_id=f"customer-{word}")
    measured.reward(name, f"event-{word}", decision.decision_id)
    refusal(measured.decide, f"none-{word}", "r")
    refusal(measured.reward, name, "e", decision.decision_id, name=f"kind-{word}")
    until(measured, "bandit_rewards_total", 1)
    text = page(measured, "/metrics").text
    assert word not in text
    assert decision.decision_id not in text
    assert {label for _, labels in scrape(measured) for label, _ in labels} <= LABELS


def test_every_metric_is_documented(measured: Peer):
    text = (Path(__file__).parents[2] / "docs/reference/metrics.md").read_text()
    told = set(re.findall(r"^\| `(bandit_\w+)`", text, re.MULTILINE))
    shown = set(re.findall(r"^# TYPE (bandit_\w+)", page(measured, "/metrics").text, re.MULTILINE))
    assert told == shown


def test_who_sends_a_byte_at_a_time_does_not_hold_up_the_others(
    measured: Peer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(endpoint, "PATIENCE", 1.0)
    address = ("127.0.0.1", measured.server.endpoint.port)
    slow = [socket.create_connection(address) for _ in range(endpoint.THREADS)]
    ended = threading.Event()

    def drip() -> None:
        while not ended.wait(0.2):
            for one in slow:
                with suppress(OSError):
                    one.send(b"a")

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        with socket.create_connection(address, timeout=15) as asking:
            asking.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert b"200" in asking.recv(100)
    finally:
        ended.set()
        dripping.join()
        for one in slow:
            one.close()


def test_a_page_that_is_not_there_and_a_port_that_is_taken(measured: Peer, tmp_path: Path):
    assert page(measured, "/").status == 404
    assert measured.server.endpoint is not None
    (tmp_path / "second").mkdir()
    with pytest.raises(UnavailableError, match="metrics need a port of their own") as caught:
        Peer(tmp_path / "second", metrics_port=measured.server.endpoint.port)
    assert caught.value.field == "metrics_port"


@given(st.lists(st.floats(0, 1e8)))
def test_a_distribution_counts_as_prometheus_reads_it(values: list[float]):
    found = Distribution(LAGS)
    for one in values:
        found.add(one)
    total = 0
    for bound, n in zip(LAGS, found.counts, strict=False):
        total += n
        assert total == sum(one <= bound for one in values)
    assert found.count == len(values)
    assert found.total == pytest.approx(sum(values))
