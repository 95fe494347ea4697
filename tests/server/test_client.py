"""The client: typed answers and errors, deadlines, and retries that can not decide twice."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from bandit.actions import Exclusion
from bandit.decision import Group, Reason
from bandit.errors import (
    BanditError,
    ChangedError,
    ConflictError,
    DeadlineError,
    InvalidInputError,
    NotFoundError,
    StateError,
    UnavailableError,
)
from bandit.policy import ActionName
from bandit.spec_file import from_data
from server.client import Ask, BanditClient, Fact
from server.pb import bandit_pb2 as pb
from server.pb import bandit_pb2_grpc as stubs
from tests.server.harness import SPEC, Clock, Peer

NOBODY = "00000000-0000-7000-8000-000000000000"
NEWSLETTER = ActionName(variant="newsletter", channel="email")


@pytest.fixture(scope="module")
def client(peer: Peer) -> Iterator[BanditClient]:
    with BanditClient(f"127.0.0.1:{peer.server.port}", timeout=10) as opened:
        yield opened


@pytest.fixture
def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Script(stubs.DecisionServiceServicer):
    """A server that answers Decide as it is told, and remembers what it was asked."""

    def __init__(self, *steps: grpc.StatusCode | None) -> None:
        self.steps = list(steps)
        self.asked: list[pb.DecideRequest] = []

    def Decide(self, request: pb.DecideRequest, context: grpc.ServicerContext):  # noqa: N802
        self.asked.append(request)
        step = self.steps.pop(0) if self.steps else None
        if step is not None:
            context.abort(step, "as told")
        decision = pb.Decision(decision_id=NOBODY, group=1, reason=1, propensity=1.0)
        return pb.DecideResponse(decision=decision)


@pytest.fixture
def scripted() -> Iterator[Callable[..., tuple[Script, str]]]:
    """Give a function that starts a scripted server; give the script and its address."""
    servers = []

    def start(*steps: grpc.StatusCode | None) -> tuple[Script, str]:
        script = Script(*steps)
        server = grpc.server(ThreadPoolExecutor(4))
        stubs.add_DecisionServiceServicer_to_server(script, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return script, f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()


# --- answers --------------------------------------------------------------------------------


def test_a_decision_is_typed(client: BanditClient, name: str):
    answer = client.decide(
        name,
        "c1",
        {"age": 41, "segment": "new", "has_app": True, "hour": 7.5},
        request_id="r1",
        exclusions=[Exclusion(variant="long", reason="too long")],
        time_zone="Europe/Berlin",
        include_propensities=True,
        include_removed=True,
    )
    assert (answer.variant, answer.slot) == ("short", "now")
    assert answer.action in (0, 1)
    assert isinstance(answer.group, Group)
    assert answer.reason in (Reason.POLICY, Reason.RANDOM_GROUP)
    assert answer.send_at is not None
    assert abs((datetime.now(UTC) - answer.send_at).total_seconds()) < 60
    assert answer.propensities[answer.action] == answer.propensity
    assert answer.removed == {2: "too long", 3: "too long"}
    assert not answer.is_fallback
    assert not answer.is_repeated

    found = client.get_decision(name, answer.decision_id)
    assert found.decision.request_id == "r1"
    assert found.context.values["has_app"].flag is True


def test_missing_values_are_none(client: BanditClient, name: str):
    answer = client.decide(name, "c1", {"age": None, "segment": None})
    assert "age" not in client.get_decision(name, answer.decision_id).context.values


def test_ids_are_made_where_none_are_given(client: BanditClient, name: str):
    one, two = (client.decide(name, "c1", {}) for _ in range(2))
    assert one.decision_id != two.decision_id
    facts = [Fact(decision_id=one.decision_id, name="click") for _ in range(2)]
    assert client.record_rewards(name, facts) == ["recorded", "recorded"]


def test_a_repeated_request_says_so(client: BanditClient, name: str):
    first, again = (client.decide(name, "c1", {"age": 9}, request_id="r") for _ in range(2))
    assert (first.is_repeated, again.is_repeated) == (False, True)
    assert first.decision_id == again.decision_id


def test_a_batch_is_in_order(client: BanditClient, name: str):
    asks = [
        Ask(customer_id=f"c{i}", context={"age": i}, request_id=f"r{i}", time_zone="Asia/Tokyo")
        for i in range(50)
    ]
    answers = client.decide_batch(name, asks)
    ids = [client.decide(name, f"c{i}", {"age": i}, request_id=f"r{i}", time_zone="Asia/Tokyo")
           for i in range(50)]  # fmt: skip
    assert [a.decision_id for a in answers] == [a.decision_id for a in ids]


def test_a_ranking_is_typed(peer: Peer, client: BanditClient):
    outcome = {**SPEC["outcome"], "exposure": "confirmed"}
    name = peer.create("ranking", outcome=outcome, groups={"random": 1})
    ask = Ask(customer_id="c", context={"age": 41}, request_id="call", time_zone="Asia/Tokyo",
              exclusions=[Exclusion(variant="long", channel="push", reason="has it")])  # fmt: skip
    options = {"count": 5, "include_propensities": True, "include_removed": True}
    answers = client.rank(name, ask, **options)
    assert sorted(one.action for one in answers) == [0, 1, 2]
    assert [one.propensity for one in answers] == [1 / 3, 1 / 2, 1.0]
    assert answers[1].removed == {3: "has it", answers[0].action: "ranked above"}
    assert answers[2].propensities[answers[2].action] == 1.0
    again = client.rank(name, ask, **options)
    assert all(one.is_repeated for one in again)
    assert [one.decision_id for one in again] == [one.decision_id for one in answers]
    shown = answers[1].decision_id
    assert client.confirm_exposure(name, shown) == "recorded"
    assert client.record_reward(name, Fact(decision_id=shown, name="click")) == "recorded"
    with pytest.raises(ConflictError):
        client.decide(name, "c", {"age": 41}, request_id="call")


def test_a_ranking_falls_back_as_a_decision_does(free_port: int):
    ask = Ask(customer_id="c", context={})
    address = f"127.0.0.1:{free_port}"
    with BanditClient(address, timeout=0.2, fallback=NEWSLETTER) as client:
        [answer] = client.rank("welcome", ask, count=3)
    assert (answer.variant, answer.is_fallback) == ("newsletter", True)
    with BanditClient(address, timeout=0.2) as client, pytest.raises(UnavailableError):
        client.rank("welcome", ask, count=3)


def test_dispositions(client: BanditClient, name: str):
    one = client.decide(name, "c1", {}).decision_id
    fact = Fact(decision_id=one, name="click", event_id="e1")
    long_ago = Fact(
        decision_id=one, name="click", event_id="e2", occurred_at=datetime(2020, 1, 1, tzinfo=UTC)
    )
    assert client.record_reward(name, fact) == "recorded"
    assert client.record_reward(name, fact) == "duplicate"
    assert client.record_reward(name, long_ago) == "late"


def test_an_experiment_is_created_started_paused_and_ended(client: BanditClient):
    spec = from_data({**SPEC, "name": "by client"})
    made = client.create_experiment(spec, request_id="once")
    assert client.create_experiment(spec, request_id="once") == made
    assert made.state == pb.STATE_DRAFT
    assert client.start_experiment("by client").state == pb.STATE_RUNNING
    assert client.pause_experiment("by client").state == pb.STATE_PAUSED
    answer = client.decide("by client", "c1", {})
    assert (answer.is_fallback, answer.reason) == (True, Reason.PAUSED)
    assert client.archive_experiment("by client").state == pb.STATE_ARCHIVED
    assert client.report("by client").experiment == client.get_experiment("by client")


def test_all_experiments_are_listed(tmp_path: Path):
    with Peer(tmp_path, clock=Clock()) as peer:
        names = sorted(peer.create(f"n{i:03}", start=False) for i in range(103))
        with BanditClient(f"127.0.0.1:{peer.server.port}") as client:
            assert [e.spec.name for e in client.list_experiments()] == names


# --- errors ---------------------------------------------------------------------------------


def test_errors_are_typed(client: BanditClient, peer: Peer, name: str):
    one = client.decide(name, "c1", {}, request_id="r1").decision_id
    client.record_reward(name, Fact(decision_id=one, name="click", event_id="e1"))
    draft = peer.create("draft of a client", start=False)
    click = {"decision_id": one, "name": "click"}
    calls: list[tuple[type[BanditError], str, Callable[[], object]]] = [
        (InvalidInputError, r"age", lambda: client.decide(name, "c1", {"age": "old"})),
        (InvalidInputError, r"value", lambda: client.record_reward(name, Fact(**click, value=2))),
        (NotFoundError, "unheard of", lambda: client.decide("unheard of", "c1", {})),
        (NotFoundError, "decision", lambda: client.get_decision(name, NOBODY)),
        (ConflictError, "r1", lambda: client.decide(name, "c2", {}, request_id="r1")),
        (StateError, "DRAFT", lambda: client.decide(draft, "c1", {})),
        (StateError, "DRAFT", lambda: client.pause_experiment(draft)),
    ]
    for kind, said, call in calls:
        with pytest.raises(kind, match=said) as caught:
            call()
        assert type(caught.value) is kind


def test_an_error_names_its_field(client: BanditClient, name: str):
    with pytest.raises(InvalidInputError) as caught:
        client.decide(name, "c1", {"agee": 41})
    assert str(caught.value).startswith('context.values["agee"]: ')


def test_an_unusable_value_never_leaves(client: BanditClient, name: str):
    with pytest.raises(InvalidInputError) as caught:
        client.decide(name, "c1", {"age": [41]})
    assert 'values["age"]' in caught.value.field


def test_an_event_of_a_batch_that_was_refused_is_raised(client: BanditClient, name: str):
    one = client.decide(name, "c1", {}).decision_id
    facts = [
        Fact(decision_id=one, name="click", event_id="e1"),
        Fact(decision_id=NOBODY, name="click", event_id="e2"),
        Fact(decision_id=one, name="click", event_id="e3"),
    ]
    with pytest.raises(NotFoundError) as caught:
        client.record_rewards(name, facts)
    assert caught.value.field.startswith("events[1]")
    assert client.record_rewards(name, [facts[0], facts[2]]) == ["duplicate", "duplicate"]


def test_a_reused_event_of_a_batch_is_a_conflict(client: BanditClient, name: str):
    one = client.decide(name, "c1", {}).decision_id
    client.record_reward(name, Fact(decision_id=one, name="click", event_id="e1"))
    with pytest.raises(ConflictError, match="e1"):
        client.record_rewards(name, [Fact(decision_id=one, name="click", value=0, event_id="e1")])


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.ABORTED, ChangedError),
        (grpc.StatusCode.INTERNAL, BanditError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, BanditError),
        (grpc.StatusCode.UNKNOWN, BanditError),
    ],
)
def test_other_codes_are_errors_and_not_retried(
    scripted: Callable[..., tuple[Script, str]], code: grpc.StatusCode, kind: type[BanditError]
):
    script, address = scripted(code)
    with BanditClient(address, fallback=NEWSLETTER) as client:
        with pytest.raises(kind) as caught:
            client.decide("any", "c1", {})
        assert type(caught.value) is kind
        assert len(script.asked) == 1


# --- retries, deadlines, fallbacks ----------------------------------------------------------


def test_unavailable_is_retried_with_the_same_request(
    scripted: Callable[..., tuple[Script, str]],
):
    script, address = scripted(*[grpc.StatusCode.UNAVAILABLE] * 3)
    with BanditClient(address) as client:
        assert client.decide("any", "c1", {"age": 1}).decision_id == NOBODY
    assert len(script.asked) == 4
    assert all(request == script.asked[0] for request in script.asked)
    assert script.asked[0].request_id


def test_a_server_that_starts_late_is_waited_for(tmp_path: Path):
    with Peer(tmp_path) as peer:
        name, port = peer.create("late"), peer.server.port
        peer.stop()
        peer.settings = peer.settings.model_copy(update={"port": port})
        with BanditClient(f"127.0.0.1:{port}", timeout=20) as client:
            answers = []
            asking = threading.Thread(
                target=lambda: answers.append(client.decide(name, "c1", {}, request_id="r1"))
            )
            asking.start()
            time.sleep(0.3)
            assert not answers
            peer.start()
            asking.join(20)
            assert (
                answers[0].decision_id
                == peer.decide(name, "r1", customer_id="c1", context={}).decision_id
            )
        assert peer.log_length(name) == 1


@pytest.mark.parametrize("timeout", [0.05, 0.4])
def test_an_unreachable_server_is_given_up_in_time(free_port: int, timeout: float):
    with BanditClient(f"127.0.0.1:{free_port}", timeout=timeout) as client:
        began = time.monotonic()
        with pytest.raises((UnavailableError, DeadlineError)):
            client.decide("any", "c1", {})
        assert time.monotonic() - began < timeout + 1.0


def test_the_declared_fallback_answers_for_an_unreachable_server(free_port: int):
    with BanditClient(f"127.0.0.1:{free_port}", timeout=0.2, fallback=NEWSLETTER) as client:
        answer = client.decide("any", "c1", {"age": 41})
        assert (answer.variant, answer.channel, answer.slot) == ("newsletter", "email", "now")
        assert (answer.is_fallback, answer.decision_id, answer.propensity) == (True, "", 1.0)
        assert answer.group is answer.reason is answer.send_at is None
        with pytest.raises((UnavailableError, DeadlineError)):
            client.record_reward("any", Fact(decision_id=NOBODY, name="click"))


def test_the_fallback_answers_for_a_server_that_hangs(peer: Peer, name: str):
    held = threading.Event()
    holding = threading.Thread(target=peer.server.writer.call, args=(lambda _: held.wait(10),))
    holding.start()
    address = f"127.0.0.1:{peer.server.port}"
    with BanditClient(address, timeout=0.3, fallback=NEWSLETTER) as client:
        began = time.monotonic()
        assert client.decide(name, "c1", {}).is_fallback
        assert time.monotonic() - began < 1.3
    held.set()
    holding.join()


def test_a_fallback_does_not_hide_mistakes(peer: Peer, name: str):
    address = f"127.0.0.1:{peer.server.port}"
    with BanditClient(address, fallback=NEWSLETTER) as client:
        with pytest.raises(InvalidInputError):
            client.decide(name, "c1", {"agee": 41})
        with pytest.raises(NotFoundError):
            client.decide("unheard of", "c1", {})


def test_clients_may_be_shared_by_threads(client: BanditClient, name: str):
    def ask(i: int) -> str:
        return client.decide(name, f"c{i}", {"age": i}, request_id=f"r{i % 40}").decision_id

    with ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(ask, list(range(40)) * 1))
    assert len(set(ids)) == 40
