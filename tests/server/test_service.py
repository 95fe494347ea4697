"""Deciding and rewarding over a real channel."""

import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import grpc
import pytest

from server.clock import to_us
from server.pb import bandit_pb2 as pb
from tests.server.harness import (
    SECOND,
    START,
    Clock,
    Peer,
    Store,
    decide_request,
    refusal,
    reward_request,
)

NOBODY = "00000000-0000-7000-8000-000000000000"
THREADS = 16


def context(**values: object) -> dict[str, object]:
    """Give a context as JSON: texts are categories, flags flags, and the rest numbers."""
    kinds = {str: "category", bool: "flag", int: "number", float: "number"}
    return {"values": {k: {kinds[type(v)]: v} for k, v in values.items()}}


def same(decision: pb.Decision) -> pb.Decision:
    """Give a decision without the mark that it was given before."""
    plain = pb.Decision()
    plain.CopyFrom(decision)
    plain.repeated_request = False
    return plain


def buys(event_id: str, decision: pb.Decision, value: float = 40.0) -> pb.RecordRewardRequest:
    return reward_request(
        decision.experiment, event_id, decision.decision_id, name="buy", value=value
    )


def batch(peer: Peer, *requests: pb.DecideRequest) -> list[pb.Decision]:
    answer = peer.decisions.BatchDecide(pb.BatchDecideRequest(requests=requests))
    return list(answer.decisions)


# --- one decision ---------------------------------------------------------------------------


def test_a_decision_is_answered_rewarded_and_read_back(peer: Peer, name: str):
    asked = context(age=41, segment="new", has_app=True, hour=13.5)
    decision = peer.decide(name, "r1", context=asked, include_propensities=True)
    told = peer.reward(name, "e1", decision.decision_id)
    bought = peer.decisions.RecordReward(buys("e2", decision))

    assert UUID(decision.decision_id).version == 7
    assert (decision.experiment, decision.request_id, decision.sequence) == (name, "r1", 1)
    assert decision.action.variant in ("short", "long")
    assert decision.action.channel in ("email", "push")
    assert (decision.action.slot, decision.action.send_at) == ("now", decision.decided_at)
    assert decision.propensity == decision.propensities[decision.action.index].propensity
    assert sum(p.propensity for p in decision.propensities) == pytest.approx(1.0, abs=1e-12)
    assert not decision.repeated_request
    assert (told.disposition, told.sequence) == (pb.DISPOSITION_RECORDED, 2)
    assert bought.sequence == 3

    found = peer.get(name, decision.decision_id)
    assert found.decision == decision
    assert found.context == decide_request(name, "r1", context=asked).context
    assert [(e.event_id, e.value, e.sequence) for e in found.events] == [
        ("e1", 1.0, 2),
        ("e2", 40.0, 3),
    ]
    assert found.outcome == 1.0 + 0.5 * 40.0
    assert peer.log_length(name) == 4


def test_what_is_not_asked_for_is_not_answered(peer: Peer, name: str):
    decision = peer.decide(name, "r1")
    assert len(decision.propensities) == len(decision.removed) == 0
    assert 0.0 < decision.propensity <= 1.0
    assert not peer.get(name, decision.decision_id).HasField("outcome")


def test_contexts_are_read_back_as_they_decided(peer: Peer, name: str):
    given = {
        "r1": ({}, {}),
        "r2": (context(segment="never declared"), context(segment="(other)")),
        "r3": (context(has_app=False, hour=0), context(has_app=False, hour=0)),
        "r4": ({"values": {"age": {}}}, {}),
        "r5": (context(age=-1e300), context(age=-1e300)),
    }
    for request, (asked, expected) in given.items():
        decision = peer.decide(name, request, context=asked)
        found = peer.get(name, decision.decision_id).context
        assert found == decide_request(name, request, context=expected).context


def test_removed_actions_are_named_with_their_reason(peer: Peer):
    rules = [{"variant": "long", "channel": "push", "reason": "too long to push"}]
    name = peer.create("removing", actions={**_actions(), "exclusions": rules})
    mine = [{"channel": "email", "reason": "no consent"}]
    decision = peer.decide(name, "r1", exclusions=mine, include_removed=True)
    assert {r.action_index: r.reason for r in decision.removed} == {
        0: "no consent",
        2: "no consent",
        3: "too long to push",
    }
    assert (decision.action.variant, decision.action.channel) == ("short", "push")
    assert decision.propensity == 1.0
    assert peer.get(name, decision.decision_id).decision.removed == decision.removed


def _actions() -> dict[str, object]:
    return {
        "variants": [{"name": "short"}, {"name": "long"}],
        "channels": [{"name": "email"}, {"name": "push"}],
    }


@pytest.mark.parametrize("group", ["random", "baseline", "none"])
def test_rules_that_remove_everything_send_nothing(peer: Peer, group: str):
    shares = {} if group == "none" else {group: 1.0}
    baseline = {"variant": "long", "channel": "push"}
    name = peer.create(f"nothing left {group}", groups={"random": 0, **shares}, baseline=baseline)
    rules = [{"variant": v, "reason": "not today"} for v in ("short", "long")]
    decision = peer.decide(name, "r1", exclusions=rules, include_propensities=True)
    assert decision.reason == pb.REASON_NO_ELIGIBLE_ACTION
    assert not decision.HasField("action")  # the fallback is removed, too
    assert decision.propensity == 1.0
    assert all(p.propensity == 0.0 for p in decision.propensities)


def test_a_customer_of_the_baseline_gets_the_fallback_if_only_that_is_left(peer: Peer):
    baseline = {"variant": "long", "channel": "push"}
    name = peer.create("only the fallback", groups={"random": 0, "baseline": 1}, baseline=baseline)
    [usual, other] = [
        peer.decide(name, "r1"),
        peer.decide(name, "r2", exclusions=[{"channel": "push", "reason": "no app"}]),
    ]
    assert (usual.reason, usual.action.index) == (pb.REASON_BASELINE_GROUP, 3)
    assert (other.reason, other.action.index) == (pb.REASON_NO_ELIGIBLE_ACTION, 0)
    assert usual.propensity == other.propensity == 1.0


def test_the_no_contact_group_is_sent_nothing(peer: Peer):
    name = peer.create("silence", groups={"random": 0.5, "no_contact": 0.5})
    decisions = [peer.decide(name, f"r{i}") for i in range(40)]
    quiet = [d for d in decisions if d.group == pb.GROUP_NO_CONTACT]
    assert {d.group for d in decisions} == {pb.GROUP_RANDOM, pb.GROUP_NO_CONTACT}
    assert all(d.reason == pb.REASON_NO_CONTACT_GROUP and not d.HasField("action") for d in quiet)


# --- who gets what --------------------------------------------------------------------------


def test_a_customer_stays_in_one_group(peer: Peer):
    name = peer.create("staying", groups={"random": 0.3, "no_contact": 0.2})
    groups: dict[str, set[int]] = {}
    for visit in range(3):
        for i in range(40):
            decision = peer.decide(name, f"{visit}-{i}", customer_id=f"c{i}")
            groups.setdefault(f"c{i}", set()).add(decision.group)
    assert all(len(found) == 1 for found in groups.values())
    assert len(set().union(*groups.values())) == 3


def test_experiments_split_the_same_customers_anew(peer: Peer):
    """With one split for all, the random group of every experiment would be the same people."""
    names = [peer.create(f"split {i}", groups={"random": 0.5}) for i in range(2)]
    splits = [
        [d.group for d in batch(peer, *(decide_request(name, f"r{i}") for i in range(200)))]
        for name in names
    ]
    agreeing = sum(a == b for a, b in zip(*splits, strict=True))
    assert 60 < agreeing < 140  # 100 expected; 8.5e-9 to fail by chance, and the secret is drawn


def test_ids_of_customers_are_not_stored(tmp_path: Path):
    with Peer(tmp_path) as one:
        one.decide(one.create("private"), "r1", customer_id="jane.doe@example.com")
    written = [p.read_bytes() for p in tmp_path.iterdir() if p.is_file()]
    assert not any(b"jane.doe" in content for content in written)


# --- batches --------------------------------------------------------------------------------


def asks(name: str, n: int, prefix: str = "r") -> list[pb.DecideRequest]:
    """Ask for customers of all kinds, some with rules of their own."""
    segments = ["new", "regular", "unheard of"]
    requests = []
    for i in range(n):
        asked = context(age=18 + i, segment=segments[i % 3], has_app=i % 2 == 0, hour=i % 24)
        rules = [{"channel": "push", "reason": "no app"}] if i % 5 == 0 else []
        requests.append(
            decide_request(
                name,
                f"{prefix}{i}",
                context=asked if i % 7 else {},
                exclusions=rules,
                time_zone="Europe/Berlin" if i % 4 else "",
                include_propensities=i % 3 != 1,
                include_removed=i % 4 == 2,
            )
        )
    return requests


def test_a_batch_is_what_single_decisions_would_have_been(tmp_path: Path):
    """Two servers with the same secret: bit for bit, before and after learning."""
    for folder in ("single", "batch"):
        (tmp_path / folder).mkdir()
    clock = Clock()
    with Peer(tmp_path / "single", clock=clock) as single:
        shutil.copy(tmp_path / "single/bandit.db.secret", tmp_path / "batch/bandit.db.secret")
        with Peer(tmp_path / "batch", clock=clock) as batched:
            for peer in (single, batched):
                peer.create("twice", groups={"random": 0.3, "no_contact": 0.1})
            for visit in ("before ", "after "):
                requests = asks("twice", 60, visit)
                one = [single.decisions.Decide(request).decision for request in requests]
                many = batch(batched, *requests)
                assert one == many
                for peer in (single, batched):
                    told = [buys(f"{visit}{d.sequence}", d, d.sequence % 9) for d in many]
                    peer.decisions.BatchRecordRewards(pb.BatchRecordRewardsRequest(events=told))
                    peer.learn("twice")
            assert {d.snapshot_version for d in many} == {1}


def test_concurrent_calls_decide_as_if_alone(store: Store, tmp_path: Path):
    """Calls that come at the same time are decided together; nobody may notice."""
    for folder in ("crowd", "alone"):
        (tmp_path / folder).mkdir()
    clock = Clock()
    crowded = store(tmp_path / "crowd")
    with Peer(tmp_path / "crowd", clock=clock, database=crowded) as crowd:
        shutil.copy(tmp_path / "crowd/bandit.db.secret", tmp_path / "alone/bandit.db.secret")
        with Peer(tmp_path / "alone", clock=clock) as alone:
            for peer in (crowd, alone):
                for name in ("one", "two"):
                    peer.create(name, groups={"random": 0.2})
            requests = [request for name in ("one", "two") for request in asks(name, 100)]
            requests += [decide_request("one", f"bad{i}", time_zone="Nowhere") for i in range(9)]
            one = [_ended(alone, request) for request in requests]
            with ThreadPoolExecutor(THREADS) as pool:
                many = list(pool.map(lambda request: _ended(crowd, request), requests))
            assert _places_aside(many) == _places_aside(one)


def _ended(peer: Peer, request: pb.DecideRequest) -> object:
    try:
        return peer.decisions.Decide(request).decision
    except grpc.RpcError as error:
        return error.code()


def _places_aside(ended: list[object]) -> list[object]:
    """Leave out the place in the log, which is first come, first served."""
    for one in ended:
        if isinstance(one, pb.Decision):
            one.sequence = 0
    return ended


def test_a_batch_is_stored_whole_or_not_at_all(peer: Peer, name: str):
    first = peer.decide(name, "r1")
    good, bad = decide_request(name, "r2"), decide_request(name, "r1", customer_id="another")
    found = refusal(batch, peer, good, bad)
    assert (found.code, found.field) == (grpc.StatusCode.ALREADY_EXISTS, "requests[1].request_id")
    wrong = decide_request(name, "r3", time_zone="Atlantis/Center")
    found = refusal(batch, peer, good, wrong)
    assert found[3] == "requests[1].time_zone"
    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    assert peer.log_length(name) == first.sequence


def test_a_batch_is_for_one_experiment(peer: Peer, name: str):
    found = refusal(batch, peer, decide_request(name, "r1"), decide_request("other", "r2"))
    assert (found.code, found.field) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "requests[1].experiment",
    )


def test_the_largest_batch(peer: Peer, name: str):
    decisions = batch(peer, *(decide_request(name, f"r{i}") for i in range(1_000)))
    assert [d.sequence for d in decisions] == list(range(1, 1_001))
    assert [d.request_id for d in decisions] == [f"r{i}" for i in range(1_000)]


# --- idempotency ----------------------------------------------------------------------------


def test_the_same_request_gets_the_first_answer(peer: Peer, name: str):
    first = peer.decide(name, "r1", include_propensities=True)
    again = peer.decide(name, "r1", include_propensities=True)
    [batched] = batch(peer, decide_request(name, "r1", include_propensities=True))
    assert again.repeated_request
    assert batched.repeated_request
    assert same(again) == same(batched) == first
    assert peer.log_length(name) == 1


def test_the_order_of_values_does_not_matter(peer: Peer, name: str):
    first = peer.decide(name, "r1", context=context(age=30, segment="new", has_app=True))
    again = peer.decide(name, "r1", context=context(has_app=True, segment="new", age=30))
    assert same(again) == first


@pytest.mark.parametrize(
    "other",
    [
        {"customer_id": "somebody else"},
        {"context": context(age=42)},
        {"context": {}},
        {"context": context(age=41, has_app=False)},
        {"time_zone": "Europe/Berlin"},
        {"exclusions": [{"variant": "long", "reason": "x"}]},
    ],
    ids=lambda other: "-".join(other),
)
def test_a_request_id_is_not_reused(peer: Peer, name: str, other: dict[str, object]):
    peer.decide(name, "r1")
    found = refusal(peer.decide, name, "r1", **other)
    assert (found.code, found.reason, found.field) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "CONFLICTING_REUSE",
        "request_id",
    )
    assert peer.log_length(name) == 1


def test_sixteen_at_once_make_one_decision(peer: Peer, name: str):
    def ask(i: int) -> pb.Decision:
        request = decide_request(name, f"r{i // THREADS}", include_propensities=True)
        if i % 3:
            return peer.decisions.Decide(request).decision
        return batch(peer, request)[0]

    with ThreadPoolExecutor(THREADS) as pool:
        decisions = list(pool.map(ask, range(20 * THREADS)))
    by_request: dict[str, list[pb.Decision]] = {}
    for decision in decisions:
        by_request.setdefault(decision.request_id, []).append(decision)
    for answers in by_request.values():
        assert sum(not d.repeated_request for d in answers) == 1
        assert all(same(d) == same(answers[0]) for d in answers)
    assert peer.log_length(name) == len(by_request) == 20


def test_sixteen_at_once_record_one_event(peer: Peer, name: str):
    decision = peer.decide(name, "r1")

    def tell(i: int) -> tuple[int, int]:
        request = buys("e1", decision)
        if i % 3:
            told = peer.decisions.RecordReward(request)
        else:
            message = pb.BatchRecordRewardsRequest(events=[request])
            told = peer.decisions.BatchRecordRewards(message).results[0]
        return told.disposition, told.sequence

    with ThreadPoolExecutor(THREADS) as pool:
        told = Counter(pool.map(tell, range(5 * THREADS)))
    recorded, duplicate = (pb.DISPOSITION_RECORDED, 2), (pb.DISPOSITION_DUPLICATE, 2)
    assert told == {recorded: 1, duplicate: 5 * THREADS - 1}
    assert peer.log_length(name) == 3


def test_sixteen_at_once_create_one_experiment(peer: Peer):
    spec = peer.experiment(peer.create("a model")).spec

    def create(i: int) -> str:
        request = pb.CreateExperimentRequest(spec=spec, request_id=f"at once {i // THREADS}")
        request.spec.name = request.request_id
        return peer.experiments.CreateExperiment(request).experiment.etag

    with ThreadPoolExecutor(THREADS) as pool:
        etags = list(pool.map(create, range(30 * THREADS)))
    assert all(len(set(etags[i : i + THREADS])) == 1 for i in range(0, len(etags), THREADS))
    assert len(set(etags)) == 30


def test_a_restart_forgets_nothing(store: Store, tmp_path: Path):
    with Peer(tmp_path, clock=Clock(), database=store(tmp_path)) as peer:
        name = peer.create("lasting", groups={"random": 0.3})
        requests = [decide_request(name, f"r{i}", include_propensities=True) for i in range(30)]
        first = [peer.decisions.Decide(request).decision for request in requests]
        for decision in first:
            peer.decisions.RecordReward(buys(f"e{decision.request_id}", decision))
        peer.learn(name)
        before = peer.experiment(name)
        peer.clock.advance(1_000)
        peer.restart()
        assert peer.experiment(name) == before
        assert before.snapshot.version == 1
        again = [peer.decisions.Decide(request).decision for request in requests]
        assert [same(d) for d in again] == first
        assert all(d.repeated_request for d in again)
        told = peer.decisions.RecordReward(buys("er0", first[0]))
        assert told.disposition == pb.DISPOSITION_DUPLICATE
        assert peer.create(name, start=False, groups={"random": 0.3}) == name
        assert peer.experiment(name) == before


def test_the_published_belief_survives_a_restart_bit_for_bit(store: Store, tmp_path: Path):
    (tmp_path / "restarted").mkdir()
    (tmp_path / "running").mkdir()
    clock = Clock()
    with Peer(tmp_path / "running", clock=clock) as running:
        source = tmp_path / "running/bandit.db.secret"
        shutil.copy(source, tmp_path / "restarted/bandit.db.secret")
        kept = store(tmp_path / "restarted")
        with Peer(tmp_path / "restarted", clock=clock, database=kept) as restarted:
            for peer in (running, restarted):
                peer.create("same")
                for i in range(20):
                    decision = peer.decide("same", f"r{i}")
                    peer.decisions.RecordReward(buys(f"e{i}", decision, i))
                peer.learn("same")
            restarted.restart()
            after = asks("same", 30, "after ")
            assert batch(running, *after) == batch(restarted, *after)


# --- rewards --------------------------------------------------------------------------------


def test_unknown_things_are_not_found(peer: Peer, name: str):
    decision = peer.decide(name, "r1")
    other = peer.create("of others")
    calls = {
        "experiment": lambda: peer.decide("unheard of", "r1"),
        "decision_id": lambda: peer.reward(name, "e1", NOBODY),
    }
    for field, call in calls.items():
        found = refusal(call)
        assert (found.code, found.reason, found.field) == (
            grpc.StatusCode.NOT_FOUND,
            "NOT_FOUND",
            field,
        )
    for call in (
        lambda: peer.get(name, NOBODY),
        lambda: peer.get("unheard of", decision.decision_id),
        lambda: peer.get(other, decision.decision_id),
        lambda: peer.reward(other, "e1", decision.decision_id),
        lambda: peer.reward("unheard of", "e1", decision.decision_id),
        lambda: peer.report("unheard of"),
    ):
        assert refusal(call).code is grpc.StatusCode.NOT_FOUND
    assert peer.log_length(name) == 1


def test_a_request_for_an_experiment_names_its_own_field(peer: Peer):
    found = refusal(peer.experiment, "unheard of")
    assert (found.code, found.field) == (grpc.StatusCode.NOT_FOUND, "name")


def test_each_event_of_a_batch_succeeds_or_fails_alone(peer: Peer, name: str):
    decision = peer.decide(name, "r1")
    peer.reward(name, "e1", decision.decision_id)
    events = [
        reward_request(name, "e1", decision.decision_id),
        reward_request(name, "e2", NOBODY),
        reward_request(name, "e1", decision.decision_id, value=0.5),
        reward_request(name, "e3", decision.decision_id),
    ]
    answer = peer.decisions.BatchRecordRewards(pb.BatchRecordRewardsRequest(events=events))
    assert [(r.event_id, r.disposition, r.sequence, r.error.code) for r in answer.results] == [
        ("e1", pb.DISPOSITION_DUPLICATE, 2, 0),
        ("e2", pb.DISPOSITION_UNSPECIFIED, 0, grpc.StatusCode.NOT_FOUND.value[0]),
        ("e1", pb.DISPOSITION_UNSPECIFIED, 0, grpc.StatusCode.ALREADY_EXISTS.value[0]),
        ("e3", pb.DISPOSITION_RECORDED, 3, 0),
    ]
    assert [r.error.reason for r in answer.results] == ["", "NOT_FOUND", "CONFLICTING_REUSE", ""]


def test_a_malformed_event_refuses_the_whole_batch(peer: Peer, name: str):
    decision = peer.decide(name, "r1")
    events = [
        reward_request(name, "e1", decision.decision_id),
        reward_request(name, "e2", decision.decision_id, value=float("nan")),
    ]
    found = refusal(peer.decisions.BatchRecordRewards, pb.BatchRecordRewardsRequest(events=events))
    assert (found.code, found.field) == (grpc.StatusCode.INVALID_ARGUMENT, "events[1].value")
    assert peer.log_length(name) == 1


def test_early_and_late_events_are_kept_and_do_not_count(still: Peer):
    name = still.create("timely")
    decision = still.decide(name, "r1")
    still.clock.advance(3_600)
    for event, at, disposition in (
        ("early", -61, pb.DISPOSITION_LATE),
        ("skewed", -60, pb.DISPOSITION_RECORDED),
        ("last", 3_600, pb.DISPOSITION_RECORDED),
        ("over", 3_601, pb.DISPOSITION_LATE),
    ):
        request = reward_request(name, event, decision.decision_id)
        request.occurred_at.FromNanoseconds((START + at * SECOND) * 1_000)
        assert still.decisions.RecordReward(request).disposition == disposition
    still.learn(name)
    found = still.get(name, decision.decision_id)
    assert found.outcome == 2.0
    assert [e.late for e in found.events] == [True, False, False, True]
    told = still.reward(name, "after all", decision.decision_id)
    assert told.disposition == pb.DISPOSITION_LATE
    assert still.get(name, decision.decision_id).outcome == 2.0


def test_an_instant_is_read_back_exactly(still: Peer):
    name = still.create("exact")
    decision = still.decide(name, "r1")
    request = reward_request(name, "e1", decision.decision_id)
    request.occurred_at.FromNanoseconds((START + 123_456) * 1_000 + 789)
    still.decisions.RecordReward(request)
    [event] = still.get(name, decision.decision_id).events
    assert event.occurred_at.ToNanoseconds() == (START + 123_456) * 1_000
    assert event.received_at.ToNanoseconds() == START * 1_000


# --- time -----------------------------------------------------------------------------------

SLOTS = [{"name": "now"}, {"name": "morning", "time": "09:00"}, {"name": "night", "time": "02:30"}]


@pytest.mark.parametrize(
    ("now", "zone", "slot", "expected"),
    [
        ("2026-01-01T00:00", "", "morning", "2026-01-01T09:00"),
        ("2026-01-01T00:00", "UTC", "now", "2026-01-01T00:00"),
        ("2026-01-01T00:00", "Europe/Berlin", "morning", "2026-01-01T08:00"),
        ("2026-07-01T00:00", "Europe/Berlin", "morning", "2026-07-01T07:00"),
        ("2026-01-01T00:00", "Asia/Tokyo", "morning", "2026-01-01T00:00"),
        ("2026-01-01T00:01", "Asia/Tokyo", "morning", "2026-01-02T00:00"),
        ("2026-01-01T00:00", "America/Los_Angeles", "morning", "2026-01-01T17:00"),
        ("2026-01-01T00:00", "Asia/Kathmandu", "morning", "2026-01-01T03:15"),
        ("2026-03-29T00:00", "Europe/Berlin", "night", "2026-03-29T01:30"),  # 02:30 is skipped
        ("2026-10-24T23:00", "Europe/Berlin", "night", "2026-10-25T00:30"),  # 02:30 comes twice
    ],
)
def test_a_slot_is_an_instant_in_the_customers_zone(
    still: Peer, now: str, zone: str, slot: str, expected: str
):
    still.clock.now = to_us(datetime.fromisoformat(now).replace(tzinfo=UTC))
    name = still.create("timed", actions={**_actions(), "slots": SLOTS})
    others = [{"slot": s["name"], "reason": "x"} for s in SLOTS if s["name"] != slot]
    decision = still.decide(name, "r1", time_zone=zone, exclusions=others)
    assert decision.action.slot == slot
    assert decision.action.send_at.ToDatetime(tzinfo=UTC).isoformat()[:16] == expected
    again = still.decide(name, "r1", time_zone=zone, exclusions=others)
    assert again.action == decision.action


def test_an_answer_given_again_keeps_its_instant(still: Peer):
    morning = {"variant": "short", "channel": "email", "slot": "morning"}
    actions = {**_actions(), "slots": SLOTS[1:2]}
    name = still.create("timed", actions=actions, fallback=morning)
    first = still.decide(name, "r1", time_zone="Asia/Tokyo")
    still.clock.advance(86_400)
    assert same(still.decide(name, "r1", time_zone="Asia/Tokyo")) == first
    assert still.get(name, first.decision_id).decision == first
