"""Rankings: every place is an ordinary decision of the log, and all of them one request."""

import itertools
import math
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from bandit import spec_file
from bandit.actions import Exclusion
from bandit.decision import Reason
from bandit.errors import ConflictError
from bandit.experiment import Experiment
from server import ranking
from server.audit import audit
from server.catalogue import State
from server.deciding import Plan
from server.live import LiveExperiment
from server.pb import bandit_pb2 as pb
from server.schema import decisions
from server.writer import AppendDecisions
from tests.server.harness import SPEC, Clock, Peer, Refusal, decide_request, eventually, refusal
from tests.server.scrape import scrape, value
from tests.server.test_ledger import POLICIES
from tests.server.test_service import same
from tests.server.test_writer import Gate

CONFIRMED = {**SPEC["outcome"], "exposure": "confirmed", "exposure_window": 600}
ONCE = {**CONFIRMED, "rewards": [{"name": "click"}], "aggregation": "max"}
KINDS = {**POLICIES, "top two": {"kind": "top_two"}, "greedy": {"kind": "epsilon_greedy"}}
BASELINE = {"variant": "long", "channel": "push"}
THREADS = 16


def rank_request(name: str, request_id: str, count: int = 3, **fields: object) -> pb.RankRequest:
    """Ask as ``decide_request`` does, for so many places."""
    asked = decide_request(name, request_id, **fields).SerializeToString()
    request = pb.RankRequest.FromString(asked)
    request.count = count
    return request


def rank(
    peer: Peer, name: str, request_id: str, count: int = 3, **fields: object
) -> list[pb.Decision]:
    request = rank_request(name, request_id, count, **fields)
    return list(peer.decisions.Rank(request).decisions)


def refused(peer: Peer, *args: object, **fields: object) -> Refusal:
    return refusal(rank, peer, *args, **fields)


def create(peer: Peer, name: str, **changes: object) -> str:
    return peer.create(name, **{"outcome": CONFIRMED, "groups": {"random": 0}, **changes})


def show(peer: Peer, one: pb.Decision) -> None:
    peer.decisions.ConfirmExposure(
        pb.ConfirmExposureRequest(
            experiment=one.experiment, decision_id=one.decision_id, event_id=one.decision_id
        )
    )


def above(places: list[pb.Decision]) -> list[dict[str, str]]:
    """Give the rules that the next place has beside those of the request."""
    return [
        {
            "variant": one.action.variant,
            "channel": one.action.channel,
            "slot": one.action.slot,
            "reason": "ranked above",
        }
        for one in places
    ]


@pytest.fixture
def name(peer: Peer, request: pytest.FixtureRequest) -> str:
    """Start an experiment that confirms exposures, of this test's own."""
    return create(peer, "".join(c if c.isalnum() else "-" for c in request.node.name)[5:69])


# --- what a ranking is ----------------------------------------------------------------------


def test_places_are_decisions_of_the_log(peer: Peer, name: str):
    rules = [{"variant": "short", "channel": "email", "reason": "has it"}]
    options = {"exclusions": rules, "include_propensities": True, "include_removed": True}
    places = rank(peer, name, "call", 3, **options)
    assert [one.request_id for one in places] == ["call", "call#2", "call#3"]
    assert [one.sequence for one in places] == [1, 2, 3]
    assert {one.action.index for one in places} == {1, 2, 3}
    assert not any(one.repeated_request for one in places)
    for i, one in enumerate(places):
        assert peer.get(name, one.decision_id).decision.removed == one.removed
        gone = dict.fromkeys((p.action.index for p in places[:i]), "ranked above")
        assert {r.action_index: r.reason for r in one.removed} == {0: "has it", **gone}
        p = [p.propensity for p in one.propensities]
        assert math.fsum(p) == pytest.approx(1.0, abs=1e-12)
        assert p[one.action.index] == one.propensity
        assert all(p[index] == 0.0 for index in (0, *gone))
    assert places[2].propensity == 1.0


def test_it_ends_where_no_action_is_left(peer: Peer, name: str):
    everything = rank(peer, name, "all", 20)
    assert {one.action.index for one in everything} == {0, 1, 2, 3}
    assert len(everything) == 4
    rules = [{"variant": "long", "reason": "has it"}]
    assert len(rank(peer, name, "two", 3, exclusions=rules)) == 2
    assert peer.log_length(name) == 6


def test_what_is_not_asked_for_is_not_answered(peer: Peer, name: str):
    assert not any(one.propensities or one.removed for one in rank(peer, name, "r"))


class Twins(NamedTuple):
    """Two servers with one secret, the same experiments and the same past."""

    one: Peer
    other: Peer


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "other")]
    clock = Clock()
    with Peer(folders[0], clock=clock) as one:
        shutil.copy(folders[0] / "bandit.db.secret", folders[1] / "bandit.db.secret")
        with Peer(folders[1], clock=clock) as other:
            for peer in (one, other):
                for name, policy in KINDS.items():
                    create(peer, name, policy=policy, groups={"random": 0.3}, outcome=ONCE)
                    for i in range(40):
                        made = peer.decide(name, f"past {i}")
                        show(peer, made)
                        if i % 3:
                            peer.reward(name, f"e{i}", made.decision_id)
            clock.advance(4_000)
            for name in KINDS:
                one.learn(name)
                other.learn(name)
            yield Twins(one, other)


NUMBERS = itertools.count()
RULES = st.lists(
    st.sampled_from(
        [
            {"variant": "long", "reason": "has it"},
            {"channel": "email", "reason": "no consent"},
            {"variant": "short", "channel": "push", "reason": "ranked above"},
            {"slot": "now", "reason": "too late"},
        ]
    ),
    max_size=2,
)


@settings(max_examples=80)
@given(
    policy=st.sampled_from(sorted(KINDS)),
    count=st.integers(1, 6),
    customer=st.integers(0, 20),
    rules=RULES,
    age=st.integers(18, 90),
    shown=st.tuples(st.booleans(), st.booleans()),
)
def test_every_place_is_what_decide_gives_without_those_above(
    twins: Twins,
    policy: str,
    count: int,
    customer: int,
    rules: list[dict[str, str]],
    age: int,
    shown: tuple[bool, bool],
):
    """Bit for bit, with the same rules under the same id; so propensities are exact."""
    request_id = f"call {next(NUMBERS)}"
    fields = {
        "customer_id": f"c{customer}",
        "context": {"values": {"age": {"number": age}}},
        "time_zone": "Europe/Berlin",
        "include_propensities": shown[0],
        "include_removed": shown[1],
    }
    places = rank(twins.one, policy, request_id, count, exclusions=rules, **fields)
    for i, one in enumerate(places):
        asked = [*rules, *above(places[:i])]
        alone = twins.other.decide(policy, one.request_id, exclusions=asked, **fields)
        alone.sequence = one.sequence
        assert one == alone
    live = twins.one.live(policy)
    left = live.experiment.spec.actions.eligible(tuple(Exclusion(**rule) for rule in rules))
    assert len(places) == (min(count, left.sum()) or 1)
    indices = [one.action.index for one in places if one.HasField("action")]
    assert len(set(indices)) == len(indices)
    assert places[0].snapshot_version > 0


def test_pairs_come_as_often_as_their_propensities_say():
    """Chi-square over the 12 ordered pairs, for one secret; 1e-4 to fail for another."""
    spec = spec_file.from_data({**SPEC, "outcome": CONFIRMED, "groups": {"random": 0}})
    experiment = Experiment(spec, secret=b"the same in every run of this")
    posterior = experiment.prior()
    row = spec.schema.row({"age": 41})
    experiment.learn(posterior, np.array([row] * 4), [0, 1, 1, 2], np.array([1.0, 0, 1, 1]), seq=4)
    live = LiveExperiment(
        id=1,
        tenant="t",
        experiment=experiment,
        state=State.RUNNING,
        revision=1,
        created_at=0,
        snapshot=experiment.publish(posterior, version=1),
    )
    n, seen, expected = 3_000, Counter(), Counter()
    plan = Plan(live, (), 0, None)
    p = {}
    for i in range(n):
        asked = ranking.read(rank_request("welcome", f"r{i}", 2, customer_id="c"), live, 0)
        first, second = ranking.places(asked, plan)
        seen[first.action, second.action] += 1
        p.setdefault((first.action, second.action), first.propensity * second.propensity)
    expected = {pair: n * chance for pair, chance in p.items()}
    assert len(p) == 12
    assert math.fsum(p.values()) == pytest.approx(1.0, abs=1e-9)
    distance = sum((seen[pair] - many) ** 2 / many for pair, many in expected.items())
    assert distance < 37.4  # the 1 - 1e-4 quantile with 11 degrees of freedom


# --- who gets one decision alone ------------------------------------------------------------


def test_a_control_group_gets_its_one_decision(peer: Peer):
    groups = {"random": 0.25, "baseline": 0.25, "no_contact": 0.25}
    name = create(peer, "controlled", groups=groups, baseline=BASELINE)
    lengths: dict[int, set[int]] = {}
    for i in range(60):
        places = rank(peer, name, f"r{i}")
        [group] = {one.group for one in places}
        lengths.setdefault(group, set()).add(len(places))
        assert places[0].HasField("action") is (group != pb.GROUP_NO_CONTACT)
        if len(places) == 1:
            assert (places[0].request_id, places[0].propensity) == (f"r{i}", 1.0)
    assert lengths == {
        pb.GROUP_BANDIT: {3},
        pb.GROUP_RANDOM: {3},
        pb.GROUP_BASELINE: {1},
        pb.GROUP_NO_CONTACT: {1},
    }


def test_the_random_group_gets_a_uniform_order(peer: Peer):
    name = create(peer, "all at random", groups={"random": 1.0})
    places = rank(peer, name, "r", 4)
    assert [one.propensity for one in places] == [1 / 4, 1 / 3, 1 / 2, 1.0]
    assert {one.reason for one in places} == {pb.REASON_RANDOM_GROUP}


def test_where_rules_leave_nothing_there_is_the_fallback_or_nothing(peer: Peer, name: str):
    rules = [{"slot": "now", "reason": "too late"}]
    [one] = rank(peer, name, "r", exclusions=rules)
    assert one.reason == pb.REASON_NO_ELIGIBLE_ACTION
    assert not one.HasField("action")


def test_a_stale_belief_gives_the_fallback_alone(still: Peer):
    name = create(still, "stale", publishing={"max_age": 10})
    still.learn(name)
    assert len(rank(still, name, "fresh")) == 3
    still.clock.advance(11)
    [one] = rank(still, name, "late")
    assert one.reason == pb.REASON_STALE_SNAPSHOT


def test_a_paused_experiment_gives_the_fallback_alone_and_keeps_to_it(peer: Peer, name: str):
    before = rank(peer, name, "before")
    peer.experiments.PauseExperiment(pb.PauseExperimentRequest(name=name))
    [one] = rank(peer, name, "paused")
    assert (one.reason, one.action.variant) == (pb.REASON_PAUSED, "short")
    assert [same(p) for p in rank(peer, name, "before")] == before
    peer.experiments.StartExperiment(pb.StartExperimentRequest(name=name))
    [again] = rank(peer, name, "paused")
    assert again.repeated_request
    assert same(again) == one
    assert peer.log_length(name) == 4


def test_after_the_end_only_old_answers_are_given(peer: Peer, name: str):
    before = rank(peer, name, "before")
    peer.experiments.ArchiveExperiment(pb.ArchiveExperimentRequest(name=name))
    assert [same(p) for p in rank(peer, name, "before")] == before
    for args in (("new", 3), ("before", 2)):
        assert refused(peer, name, *args).code is grpc.StatusCode.FAILED_PRECONDITION


# --- what is refused ------------------------------------------------------------------------


def test_places_that_nobody_sees_are_not_to_be_learned_from(peer: Peer):
    name = peer.create("shown at once")
    found = refused(peer, name, "r", 2)
    assert (found.code, found.field) == (grpc.StatusCode.FAILED_PRECONDITION, "count")
    assert "confirmed" in found.message
    assert peer.log_length(name) == 0
    assert len(rank(peer, name, "r", 1)) == 1


@pytest.mark.parametrize(
    ("count", "fields", "field"),
    [
        (0, {}, "count"),
        (21, {}, "count"),
        (2**32 - 1, {}, "count"),
        (20, {"exclusions": [{"variant": "long", "reason": "x"}] * 982}, "exclusions"),
        (1, {"exclusions": [{"variant": "long", "reason": "x"}] * 1_001}, "exclusions"),
        (2, {"exclusions": [{"variant": "huge", "reason": "x"}]}, "exclusions[0].variant"),
        (2, {"context": {"values": {"age": {"flag": True}}}}, 'context.values["age"]'),
        (2, {"time_zone": "Nowhere"}, "time_zone"),
        (2, {"customer_id": ""}, "customer_id"),
    ],
)
def test_bounds(peer: Peer, name: str, count: int, fields: dict[str, Any], field: str):
    found = refused(peer, name, "r", count, **fields)
    assert (found.code, found.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert peer.log_length(name) == 0


def test_the_longest_id_and_the_most_rules(peer: Peer, name: str):
    assert refused(peer, name, "r" * 126).field == "request_id"
    rules = [{"variant": "long", "reason": "x"}] * 981
    assert len(rank(peer, name, "r" * 125, 20, exclusions=rules)) == 2


# --- one answer per request id --------------------------------------------------------------

OTHERS = [
    {"count": 2},
    {"count": 4},
    {"count": 1},
    {"customer_id": "somebody else"},
    {"context": {}},
    {"time_zone": "Europe/Berlin"},
    {"exclusions": [{"variant": "long", "reason": "x"}]},
    {"include_removed": True},
    {"include_propensities": True},
]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_a_request_id_is_not_reused(peer: Peer, name: str, other: dict[str, Any]):
    rank(peer, name, "r")
    found = refused(peer, name, "r", **other)
    assert (found.code, found.field) == (grpc.StatusCode.ALREADY_EXISTS, "request_id")
    assert peer.log_length(name) == 3


@pytest.mark.parametrize("count", [1, 3])
def test_a_ranking_and_a_decision_do_not_share_ids(peer: Peer, name: str, count: int):
    """Neither repeats the other's answer, which a caller would take for its own."""
    exists = grpc.StatusCode.ALREADY_EXISTS
    customer = {"customer_id": "c"}
    places = rank(peer, name, "ranked", count, **customer)
    for one in places:
        assert refusal(peer.decide, name, one.request_id, **customer).code is exists
        assert refused(peer, name, one.request_id, 2, **customer).code is exists
    requests = [decide_request(name, "fresh"), decide_request(name, places[-1].request_id)]
    batch = pb.BatchDecideRequest(requests=requests)
    assert refusal(peer.decisions.BatchDecide, batch).code is exists
    peer.decide(name, "decided", **customer)
    assert refused(peer, name, "decided", count, **customer).code is exists
    peer.decide(name, "in the way#2", **customer)
    found = refused(peer, name, "in the way", **customer)
    assert (found.code, "'in the way#2'" in found.message) == (exists, True)
    assert peer.log_length(name) == count + 2


def test_an_id_that_a_ranking_did_not_need_is_free(peer: Peer, name: str):
    rules = [{"variant": "long", "reason": "x"}]
    places = rank(peer, name, "r", exclusions=rules)
    other = peer.decide(name, "r#3")
    again = rank(peer, name, "r", exclusions=rules)
    assert len(places) == 2
    assert [same(one) for one in again] == places
    assert same(peer.decide(name, "r#3")) == other
    assert peer.log_length(name) == 3


def test_what_retention_left_is_the_answer(peer: Peer, name: str):
    """Old entries go by their place in the log, which may lie within a ranking."""
    places = rank(peer, name, "r")
    first = decisions.c.decision_id == UUID(places[0].decision_id).bytes
    peer.server.writer.call(lambda c: c.execute(delete(decisions).where(first)))
    assert [same(one) for one in rank(peer, name, "r")] == places[1:]
    assert peer.log_length(name) == 3


def test_it_stays_as_it_was_answered_before_an_edit(still: Peer):
    """The actions that were removed, too: those of the specification that decided."""
    name = create(still, "edited")
    asked = rank_request(name, "r", 3, include_removed=True)
    first = still.decisions.Rank(asked).decisions
    assert len(first) == 3
    still.experiments.RetireLevel(
        pb.RetireLevelRequest(
            name=name, factor="variant", level="long", request_id="retire", reason="a test"
        )
    )
    [late] = rank(still, name, "late", 1, include_removed=True)
    assert {one.reason for one in late.removed} == {"retired"}
    again = still.decisions.Rank(asked).decisions
    assert all(one.repeated_request for one in again)
    assert [same(one) for one in again] == list(first)


def test_it_stays_as_it_was_answered(still: Peer, tmp_path: Path):
    """After learning, after a restart, and from another process on the same database."""
    name = create(still, "lasting", groups={"random": 0.3})
    requests = [
        rank_request(
            name, f"r{i}", 1 + i % 4, include_propensities=i % 2 == 0, include_removed=True
        )
        for i in range(16)
    ]
    first = [still.decisions.Rank(request).decisions for request in requests]
    for places in first:
        for one in places[-2:]:
            show(still, one)
            still.reward(name, f"e {one.request_id}", one.decision_id)
    still.clock.advance(4_000)
    still.learn(name)
    assert still.experiment(name).snapshot.outcomes > 20

    def check(peer: Peer) -> None:
        length = peer.log_length(name)
        for request, places in zip(requests, first, strict=True):
            again = peer.decisions.Rank(request).decisions
            assert all(one.repeated_request for one in again)
            assert [same(one) for one in again] == list(places)
        assert peer.log_length(name) == length

    check(still)
    still.restart()
    check(still)
    if not still.settings.database.startswith("sqlite"):
        with Peer(tmp_path, clock=still.clock, database=still.settings.database) as replica:
            check(replica)


def test_sixteen_at_once_make_one_ranking(peer: Peer, name: str):
    def ask(i: int) -> tuple[int, object]:
        count = 3 if i % 4 else 2
        try:
            return count, rank(peer, name, f"r{i // THREADS}", count)
        except grpc.RpcError as error:
            return count, error.code()

    with ThreadPoolExecutor(THREADS) as pool:
        ended = list(pool.map(ask, range(12 * THREADS)))
    for at in range(0, len(ended), THREADS):
        won: dict[int, list[Any]] = {}
        for count, one in ended[at : at + THREADS]:
            won.setdefault(count, []).append(one)
        [count] = [c for c, given in won.items() if isinstance(given[0], list)]
        assert all(one is grpc.StatusCode.ALREADY_EXISTS for one in won[5 - count])
        assert sum(not places[0].repeated_request for places in won[count]) == 1
        assert all(len(places) == count for places in won[count])
        assert len({str([same(one) for one in places]) for places in won[count]}) == 1
    with peer.server.database.reader.connect() as connection:
        assert audit(connection, peer.live(name)).problems == []


def test_two_processes_make_one_ranking(still: Peer, tmp_path: Path):
    """On SQLite there is only one, which gets every call."""
    name = create(still, "from two sides")
    with ExitStack() as opened:
        peers = [still]
        if not still.settings.database.startswith("sqlite"):
            other = Peer(tmp_path, clock=still.clock, database=still.settings.database)
            peers.append(opened.enter_context(other))
        with ThreadPoolExecutor(THREADS) as pool:
            answers = list(
                pool.map(
                    lambda i: rank(peers[i % len(peers)], name, f"r{i // THREADS}"),
                    range(6 * THREADS),
                )
            )
    for at in range(0, len(answers), THREADS):
        mine = answers[at : at + THREADS]
        assert sum(not places[0].repeated_request for places in mine) == 1
        assert len({str([same(one) for one in places]) for places in mine}) == 1
    assert still.log_length(name) == 6 * 3


def test_what_nobody_waits_for_is_not_stored(peer: Peer, name: str):
    gate = Gate(peer.server.writer)
    with pytest.raises(grpc.RpcError) as caught:
        peer.decisions.Rank(rank_request(name, "r"), timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    time.sleep(0.3)  # the server's deadline is later than the client's by what a message takes
    gate.open()
    peer.server.writer.call(lambda _: None)  # behind it in the queue, if it came so far
    assert peer.log_length(name) == 0


def job(peer: Peer, name: str, request: pb.RankRequest, why: Reason | None) -> AppendDecisions:
    made = ranking.job(request, peer.live(name), 10**15, lambda _: why)
    assert isinstance(made, AppendDecisions)
    return made


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_one_commit_with_everything_that_can_meet(peer: Peer, order: tuple[int, ...]):
    """The same request decided twice, once as a fallback, and two that are in the way."""
    name = create(peer, f"meeting {''.join(map(str, order))}")
    asked = rank_request(name, "r", 3)
    jobs = [
        job(peer, name, asked, None),
        job(peer, name, asked, Reason.PAUSED),
        job(peer, name, rank_request(name, "r", 2), None),
        job(peer, name, rank_request(name, "r#2", 2), None),
    ]
    same_request, ids = [0, 0, 2, 3], [[row.request_id for row in one.decisions] for one in jobs]
    assert ids == [["r", "r#2", "r#3"], ["r"], ["r", "r#2"], ["r#2", "r#2#2"]]
    done: list[int] = []
    gate = Gate(peer.server.writer)
    for i in order:
        jobs[i].on_done = lambda i=i: done.append(i)
        peer.server.writer.submit(jobs[i])
    gate.open()
    eventually(lambda: len(done) == 4)

    kept: dict[int, int] = {}
    for i in order:
        first = kept.get(same_request[i])
        if first is None and any(set(ids[i]) & set(ids[other]) for other in kept.values()):
            assert isinstance(jobs[i].error, ConflictError)
        else:
            assert jobs[i].error is None
            kept.setdefault(same_request[i], i)
            answered = jobs[i].result or []
            assert [one.row for one in answered] == list(jobs[kept[same_request[i]]].decisions)
            assert all(one.repeated is (first is not None) for one in answered)
    with peer.server.database.reader.connect() as connection:
        found = audit(connection, peer.live(name))
    assert found.problems == []
    assert found.decisions == sum(len(ids[i]) for i in kept.values())


# --- what becomes of it ---------------------------------------------------------------------


def test_only_what_was_shown_is_learned_from(still: Peer):
    name = create(still, "learning")
    places = rank(still, name, "call", 4)
    for one in places[:2]:
        show(still, one)
    still.reward(name, "yes", places[1].decision_id, name="buy", value=40.0)
    still.clock.advance(4_000)
    still.learn(name)

    found = [still.get(name, one.decision_id) for one in places]
    told = [one.outcome if one.HasField("outcome") else None for one in found]
    assert told == [0.0, 20.0, None, None]
    assert [len(one.exposures) for one in found] == [1, 1, 0, 0]
    assert still.experiment(name).snapshot.outcomes == 2
    report = still.report(name)
    assert (report.exposures, report.open_decisions, report.reward_events) == (2, 0, 1)
    assert {line.action.index: line.outcomes for line in report.actions} == {
        one.action.index: n for one, n in zip(places, [1, 1, 0, 0], strict=True)
    }
    [line] = report.groups
    assert (line.decisions, line.outcomes, line.mean) == (4, 2, 10.0)
    assert len(rank(still, name, "next", 4)) == 4
    with still.server.database.reader.connect() as connection:
        assert audit(connection, still.live(name)).problems == []


def test_places_are_counted(tmp_path: Path):
    with Peer(tmp_path, clock=Clock(), metrics_port=0) as peer:
        name = create(peer, "counted")
        for _ in range(2):
            rank(peer, name, "r", 4)
        labels = {"experiment": name, "group": "bandit", "reason": "policy"}
        eventually(lambda: value(scrape(peer), "bandit_decisions_repeated_total") == 4)
        assert value(scrape(peer), "bandit_decisions_total", **labels) == 4
        labels = {"method": "DecisionService/Rank", "code": "OK"}
        assert value(scrape(peer), "bandit_request_seconds_count", **labels) == 2
