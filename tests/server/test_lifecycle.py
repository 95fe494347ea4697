"""An experiment's life: states, etags, pages, and fallbacks that are not learned from."""

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from server import catalogue
from server.pb import bandit_pb2 as pb
from tests.server.harness import SPEC, Clock, Peer, refusal

REQUESTS = {
    "start": ("StartExperiment", pb.StartExperimentRequest),
    "pause": ("PauseExperiment", pb.PauseExperimentRequest),
    "archive": ("ArchiveExperiment", pb.ArchiveExperimentRequest),
}


def move(peer: Peer, verb: str, name: str, etag: str = "") -> pb.Experiment:
    method, kind = REQUESTS[verb]
    return getattr(peer.experiments, method)(kind(name=name, etag=etag)).experiment


def page(peer: Peer, size: int = 0, token: str = "") -> pb.ListExperimentsResponse:
    request = pb.ListExperimentsRequest(page_size=size, page_token=token)
    return peer.experiments.ListExperiments(request)


# --- states ---------------------------------------------------------------------------------


def test_a_new_experiment_is_a_draft_with_its_defaults_written_out(still: Peer):
    made = still.experiment(still.create("new", start=False))
    assert (made.state, made.log_length, made.snapshot.version) == (pb.STATE_DRAFT, 0, 0)
    assert made.created_at.ToNanoseconds() == still.clock.now * 1_000
    assert made.spec.groups.random == 0.1
    assert made.spec.outcome.early == 60
    assert [s.name for s in made.spec.actions.slots] == ["now"]
    assert not made.snapshot.HasField("published_at")


def test_a_spec_that_was_read_can_be_created_again(still: Peer):
    spec = still.experiment(still.create("first")).spec
    spec.name = "second"
    still.experiments.CreateExperiment(pb.CreateExperimentRequest(spec=spec, request_id="2"))
    assert still.experiment("second").spec == spec


def test_a_name_is_taken_once(still: Peer):
    spec = still.experiment(still.create("taken")).spec
    request = pb.CreateExperimentRequest(spec=spec, request_id="another request")
    found = refusal(still.experiments.CreateExperiment, request)
    assert (found.code, found.field) == (grpc.StatusCode.ALREADY_EXISTS, "spec.name")


def test_a_creating_request_is_not_reused(still: Peer):
    spec = still.experiment(still.create("one")).spec
    spec.name = "two"
    request = pb.CreateExperimentRequest(spec=spec, request_id="create one")
    found = refusal(still.experiments.CreateExperiment, request)
    assert (found.code, found.field) == (grpc.StatusCode.ALREADY_EXISTS, "request_id")
    assert refusal(still.experiment, "two").code is grpc.StatusCode.NOT_FOUND


def test_creating_again_does_not_restart(still: Peer):
    name = still.create("paused")
    move(still, "pause", name)
    still.create(name, start=False)
    assert still.experiment(name).state == pb.STATE_PAUSED


def test_no_more_experiments_than_allowed(tmp_path: Path):
    with Peer(tmp_path, clock=Clock(), max_experiments=2) as peer:
        first = peer.experiment(peer.create("first", start=False))
        peer.create("second", start=False)
        found = refusal(peer.create, "third", start=False)
        assert (found.code, found.field) == (grpc.StatusCode.FAILED_PRECONDITION, "spec.name")
        peer.create("first", start=False)  # the same request still gets the first answer
        assert peer.experiment("first") == first
        assert [e.spec.name for e in page(peer).experiments] == ["first", "second"]


@pytest.mark.parametrize("state", ["draft", "archived"])
def test_only_started_experiments_decide(still: Peer, state: str):
    name = still.create("idle", start=False)
    if state == "archived":
        move(still, "archive", name)
    found = refusal(still.decide, name, "r1")
    assert (found.code, found.reason, found.field) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "WRONG_STATE",
        "experiment",
    )
    assert still.log_length(name) == 0


PATHS = [
    (["start"], pb.STATE_RUNNING),
    (["start", "start"], pb.STATE_RUNNING),
    (["start", "pause"], pb.STATE_PAUSED),
    (["start", "pause", "pause"], pb.STATE_PAUSED),
    (["start", "pause", "start"], pb.STATE_RUNNING),
    (["archive"], pb.STATE_ARCHIVED),
    (["start", "archive", "archive"], pb.STATE_ARCHIVED),
    (["start", "pause", "archive"], pb.STATE_ARCHIVED),
]


@pytest.mark.parametrize(
    ("verbs", "state"), PATHS, ids=lambda part: "-".join(part) if isinstance(part, list) else ""
)
def test_states_follow_the_calls_and_last(still: Peer, verbs: list[str], state: int):
    name = still.create("moving", start=False)
    for verb in verbs:
        answered = move(still, verb, name)
    assert answered.state == state
    assert still.experiment(name) == answered
    still.restart()
    assert still.experiment(name) == answered


@pytest.mark.parametrize("verbs", [["pause"], ["archive", "start"], ["archive", "pause"]])
def test_states_that_can_not_be_reached(still: Peer, verbs: list[str]):
    name = still.create("stuck", start=False)
    *before, last = verbs
    for verb in before:
        move(still, verb, name)
    found = refusal(move, still, last, name)
    assert (found.code, found.field) == (grpc.StatusCode.FAILED_PRECONDITION, "name")


def test_an_etag_that_was_overtaken_is_refused(still: Peer):
    name = still.create("contended")
    seen = still.experiment(name).etag
    paused = move(still, "pause", name, seen)
    assert paused.etag != seen
    for verb in REQUESTS:
        found = refusal(move, still, verb, name, seen)
        assert (found.code, found.reason, found.field) == (
            grpc.StatusCode.ABORTED,
            "ETAG_CHANGED",
            "etag",
        )
    assert move(still, "start", name, paused.etag).state == pb.STATE_RUNNING


def test_concurrent_changes_end_as_stored(still: Peer):
    """Whatever wins, what decides is what the database says."""
    name = still.create("hectic")
    for _ in range(20):
        with ThreadPoolExecutor(8) as pool:
            verbs = ["start", "pause"] * 8
            answers = list(pool.map(lambda verb: move(still, verb, name), verbs))
        with still.server.database.reader.connect() as connection:
            row = catalogue.find_experiment(connection, "default", name)
        found = still.experiment(name)
        assert (found.state, found.etag) == (row.state, f"{row.id}-{row.revision}")
        states = {"start": pb.STATE_RUNNING, "pause": pb.STATE_PAUSED}
        assert [a.state for a in answers] == [states[verb] for verb in verbs]


# --- fallbacks ------------------------------------------------------------------------------


def buy(peer: Peer, decision: pb.Decision, event_id: str = "") -> None:
    peer.reward(
        decision.experiment,
        event_id or f"event of {decision.decision_id}",
        decision.decision_id,
        name="buy",
        value=50.0,
    )


def test_a_paused_experiment_answers_the_fallback_and_learns_nothing_from_it(still: Peer):
    name = still.create("on hold", groups={"random": 0})
    before = still.decide(name, "r0")
    move(still, "pause", name)
    paused = still.decide(name, "r1", include_propensities=True)
    assert paused.reason == pb.REASON_PAUSED
    assert (paused.action.variant, paused.action.channel) == ("short", "email")
    assert [p.propensity for p in paused.propensities] == [1.0, 0.0, 0.0, 0.0]
    assert paused.propensity == 1.0

    buy(still, paused)
    buy(still, before)
    still.learn(name)
    assert still.experiment(name).snapshot.outcomes == 1  # what came before the pause
    assert still.get(name, paused.decision_id).outcome == 25.0

    move(still, "start", name)
    resumed = still.decide(name, "r2")
    assert (resumed.reason, resumed.snapshot_version) == (pb.REASON_POLICY, 1)


def test_a_fallback_never_sends_what_a_rule_removed(still: Peer):
    name = still.create("ruled out", groups={"random": 0})
    move(still, "pause", name)
    decision = still.decide(name, "r1", exclusions=[{"channel": "email", "reason": "no consent"}])
    assert decision.reason == pb.REASON_PAUSED
    assert not decision.HasField("action")


def test_without_a_fallback_nothing_is_sent(still: Peer):
    spec = {key: value for key, value in SPEC.items() if key != "fallback"}
    still.create("model", start=False)
    message = still.experiment("model").spec
    message.ClearField("fallback")
    message.name = "bare"
    assert "fallback" not in spec
    request = pb.CreateExperimentRequest(spec=message, request_id="bare")
    still.experiments.CreateExperiment(request)
    move(still, "start", "bare")
    move(still, "pause", "bare")
    decision = still.decide("bare", "r1")
    assert (decision.reason, decision.HasField("action")) == (pb.REASON_PAUSED, False)


def test_levels_travel_with_attributes_generation_and_retirement(still: Peer):
    levels = [
        {"name": "short", "attributes": {"length": 0.5, "warmth": -1}},
        {"name": "old", "attributes": {"length": 0, "warmth": 0}, "retired": True},
        {"name": "added", "attributes": {"length": 1, "warmth": 1}, "generation": 3},
    ]
    actions = {**SPEC["actions"], "variants": levels}
    name = still.create("described", actions=actions)
    shown = still.experiment(name).spec
    assert [dict(v.attributes) for v in shown.actions.variants] == [v["attributes"] for v in levels]
    assert [v.generation for v in shown.actions.variants] == [0, 0, 3]
    assert [v.retired for v in shown.actions.variants] == [False, True, False]
    shown.name = "again"
    request = pb.CreateExperimentRequest(spec=shown, request_id="again")
    still.experiments.CreateExperiment(request)
    assert still.experiment("again").spec == shown
    decision = still.decide(name, "r1", include_removed=True)
    removed = [r for r in decision.removed if r.reason == "retired"]
    assert len(removed) == 2
    assert decision.action.variant in {"short", "added"}


def test_the_no_contact_group_gets_no_fallback(still: Peer):
    name = still.create("quiet", groups={"random": 0, "no_contact": 0.5})
    move(still, "pause", name)
    decisions = [still.decide(name, f"r{i}") for i in range(40)]
    quiet = [d for d in decisions if d.group == pb.GROUP_NO_CONTACT]
    assert quiet
    assert not any(d.HasField("action") for d in quiet)


@pytest.mark.parametrize("verb", ["pause", "archive"])
def test_a_retry_gets_the_first_answer_whatever_the_state(still: Peer, verb: str):
    name = still.create("retried")
    first = still.decide(name, "r1")
    move(still, verb, name)
    again = still.decide(name, "r1")
    assert again.repeated_request
    assert (again.decision_id, again.action, again.reason) == (
        first.decision_id,
        first.action,
        first.reason,
    )


@pytest.mark.parametrize("verb", ["pause", "archive"])
def test_rewards_are_taken_in_every_state(still: Peer, verb: str):
    name = still.create("earning")
    decision = still.decide(name, "r1")
    move(still, verb, name)
    buy(still, decision)
    assert still.get(name, decision.decision_id).outcome == 25.0


def test_a_belief_that_lags_too_far_behind_does_not_decide(still: Peer):
    publishing = {"outcomes": 1_000, "seconds": 10, "max_age": 20}
    name = still.create("stale", publishing=publishing, groups={"random": 0})
    buy(still, still.decide(name, "r0"))
    still.learn(name, flush=False)
    assert still.experiment(name).snapshot.version == 0
    still.clock.advance(20)
    fresh = still.decide(name, "r1")
    still.clock.advance(0.001)
    stale = still.decide(name, "r2")
    assert fresh.reason == pb.REASON_POLICY
    assert stale.reason == pb.REASON_STALE_SNAPSHOT
    assert (stale.action.variant, stale.propensity) == ("short", 1.0)

    buy(still, stale)
    still.learn(name, flush=False)
    found = still.experiment(name)
    assert (found.snapshot.version, found.snapshot.outcomes) == (1, 1)
    assert still.decide(name, "r3").reason == pb.REASON_POLICY


def test_outcomes_that_nobody_folds_make_a_belief_stale(still: Peer):
    """A learner that has died must not go unnoticed: that is what max_age is for."""
    publishing = {"outcomes": 1_000, "seconds": 10, "max_age": 20}
    name = still.create("dead learner", publishing=publishing, groups={"random": 0})
    buy(still, still.decide(name, "r0"))
    still.clock.advance(1_000)
    assert still.decide(name, "r1").reason == pb.REASON_STALE_SNAPSHOT


# --- pages ----------------------------------------------------------------------------------


@pytest.fixture
def several(still: Peer) -> Peer:
    for i in (3, 0, 6, 2, 5, 1, 4):
        still.create(f"n{i}", start=False)
    return still


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 1_000, 2**31 - 1])
def test_pages_give_everything_once_in_order(several: Peer, size: int):
    found, token, pages = [], "", 0
    while True:
        answer = page(several, size, token)
        found += [e.spec.name for e in answer.experiments]
        assert len(answer.experiments) <= size
        pages += 1
        token = answer.next_page_token
        if not token:
            break
    assert found == [f"n{i}" for i in range(7)]
    assert pages == -(-7 // min(size, 7))


def test_the_default_page(several: Peer):
    answer = page(several)
    assert (len(answer.experiments), answer.next_page_token) == (7, "")


def test_a_page_goes_on_where_the_last_ended(several: Peer):
    first = page(several, 3)
    several.create("n25", start=False)  # between n2 and n3
    second = page(several, 3, first.next_page_token)
    assert [e.spec.name for e in second.experiments] == ["n25", "n3", "n4"]


def test_a_token_lasts_over_a_restart(several: Peer):
    token = page(several, 3).next_page_token
    several.restart()
    assert page(several, 1, token).experiments[0].spec.name == "n3"


def _tampered(token: str) -> str:
    data = bytearray(base64.urlsafe_b64decode(token))
    data[-1] ^= 1
    return base64.urlsafe_b64encode(bytes(data)).decode()


@pytest.mark.parametrize(
    "garble",
    [
        _tampered,
        lambda token: token[:-4],
        lambda token: token + "A",
        lambda _: "n2",
        lambda _: "\N{EURO SIGN}",
        lambda _: "====",
        lambda _: "x" * 100_000,
        lambda _: base64.urlsafe_b64encode(b"n2").decode(),
    ],
)
def test_a_token_that_is_none_of_ours(several: Peer, garble: Callable[[str], str]):
    token = page(several, 3).next_page_token
    found = refusal(page, several, 3, garble(token))
    assert (found.code, found.field) == (grpc.StatusCode.INVALID_ARGUMENT, "page_token")


def test_a_token_of_another_server(several: Peer, tmp_path: Path):
    (tmp_path / "other").mkdir()
    with Peer(tmp_path / "other", clock=Clock()) as other:
        for i in range(7):
            other.create(f"n{i}", start=False)
        foreign = page(other, 3).next_page_token
    found = refusal(page, several, 3, foreign)
    assert (found.code, found.field) == (grpc.StatusCode.INVALID_ARGUMENT, "page_token")


def test_a_negative_page(several: Peer):
    found = refusal(page, several, -1)
    assert (found.code, found.field) == (grpc.StatusCode.INVALID_ARGUMENT, "page_size")
