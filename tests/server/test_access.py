"""Nobody gets in without a token, no token does more than its roles, no tenant sees another."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError

from bandit.errors import InvalidInputError, UnauthenticatedError
from server import access, tokens
from server.access import DEFAULT_TENANT, ROLES
from server.app import Server
from server.audit_log import entries
from server.client import BanditClient
from server.clock import system_clock
from server.pb import bandit_pb2 as pb
from server.settings import Settings
from server.tls import Security
from server.tokens import Role
from tests.server.access_harness import METHODS, Bearer, code, create, empty, make_token
from tests.server.harness import (
    Peer,
    Refusal,
    decide_request,
    eventually,
    refusal,
)

UNKNOWN_ID = "00000000-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """Run a server that asks for tokens, for all tests of a module."""
    with Peer(tmp_path_factory.mktemp("guarded"), auth="tokens") as peer:
        yield peer


# --- roles ------------------------------------------------------------------------------


def test_every_rpc_has_a_role():
    assert set(ROLES) == set(METHODS)


def test_nothing_that_changes_something_is_for_readers():
    read = {method.partition("/")[2] for method, role in ROLES.items() if role is Role.READ}
    assert all(name.startswith(("Get", "List")) for name in read)
    assert ROLES["DecisionService/Decide"] is Role.DECIDE
    assert ROLES["DecisionService/RecordReward"] is Role.REPORT


@pytest.mark.parametrize("role", Role)
def test_a_role_opens_its_rpcs_and_no_other(guarded: Peer, role: Role):
    bearer = Bearer(guarded, make_token(guarded, [role])[1])
    for method, needed in ROLES.items():
        if role in (needed, Role.ADMIN):
            accepted = method in (LISTS, AUDITS)  # all others refuse an empty request
            expected = grpc.StatusCode.OK if accepted else grpc.StatusCode.INVALID_ARGUMENT
            assert code(bearer.call, method, empty(method)) is expected
        else:
            found = refusal(bearer.call, method, empty(method))
            assert found.code is grpc.StatusCode.PERMISSION_DENIED
            assert (found.reason, found.retry) == ("ROLE_MISSING", False)
            assert needed.value in found.message


# --- credentials ------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_no_rpc_is_open(guarded: Peer, method: str):
    found = refusal(Bearer(guarded).call, method, empty(method))
    assert (found.code, found.reason) == (
        grpc.StatusCode.UNAUTHENTICATED,
        "UNAUTHENTICATED",
    )
    assert not found.retry


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=300))
def test_what_is_no_token_lets_nobody_in(guarded: Peer, header: str):
    metadata = (("authorization", header.strip()),)
    request = decide_request("x", "r")
    found = refusal(guarded.decisions.Decide, request, metadata=metadata)
    assert found.code is grpc.StatusCode.UNAUTHENTICATED


def test_a_token_almost_right_lets_nobody_in(guarded: Peer):
    _, token = make_token(guarded)
    other = token[:-1] + ("A" if token[-1] != "A" else "B")
    headers = [
        [f"Bearer {other}"],
        [f"Bearer {token} "],
        [f"Bearer {token}="],
        [f"Basic {token}"],
        [token],
        [f"Bearer {token}", f"Bearer {token}"],
        [f"Bearer {tokens.digest(token).hex()}"],
    ]
    for values in headers:
        metadata = tuple(("authorization", value) for value in values)
        call = guarded.experiments.ListExperiments
        found = code(call, pb.ListExperimentsRequest(), metadata=metadata)
        expected = grpc.StatusCode.UNAUTHENTICATED
        if values == [f"Bearer {token} "]:  # white space at the ends of a value is not sent
            assert found in (expected, grpc.StatusCode.OK)
        else:
            assert found is expected, values
    lower = (("authorization", f"bearer {token}"),)
    found = code(guarded.experiments.ListExperiments, pb.ListExperimentsRequest(), metadata=lower)
    assert found is grpc.StatusCode.OK


def test_the_database_holds_no_token(guarded: Peer):
    _, token = make_token(guarded)
    files = Path(str(guarded.server.database.url.database)).parent.iterdir()
    assert all(token.encode() not in file.read_bytes() for file in files)
    assert token.startswith("bandit_")
    assert len(token) >= len("bandit_") + 43  # 256 bits


def test_a_revoked_token_ends_within_seconds(guarded: Peer):
    number, token = make_token(guarded)
    bearer = Bearer(guarded, token)
    bearer.call(LISTS, empty(LISTS))
    guarded.server.writer.call(lambda c: tokens.revoke(c, number, who="test", now=system_clock()))
    began = time.monotonic()
    eventually(lambda: code(bearer.call, LISTS, empty(LISTS)) is grpc.StatusCode.UNAUTHENTICATED)
    assert time.monotonic() - began < 10 * access.REREAD


def test_an_expired_token_ends_within_seconds(guarded: Peer):
    _, token = make_token(guarded, expires_at=system_clock() + 1_000_000)
    bearer = Bearer(guarded, token)
    eventually(lambda: code(bearer.call, LISTS, empty(LISTS)) is grpc.StatusCode.UNAUTHENTICATED)


def test_when_tokens_can_not_be_read_nobody_gets_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A revocation that can not be seen must not let the revoked one in for ever."""
    monkeypatch.setattr(access, "REREAD", 0.01)
    monkeypatch.setattr(access, "TRUSTED", 0.3)
    with Peer(tmp_path, auth="tokens") as peer:
        bearer = Bearer(peer, make_token(peer)[1])
        bearer.call(LISTS, empty(LISTS))

        def fail(*_: object) -> None:
            raise OperationalError("SELECT", {}, sqlite3.OperationalError("disk I/O error"))

        monkeypatch.setattr(tokens, "in_force", fail)
        eventually(lambda: code(bearer.call, LISTS, empty(LISTS)) is grpc.StatusCode.UNAVAILABLE)
        monkeypatch.undo()
        eventually(lambda: code(bearer.call, LISTS, empty(LISTS)) is grpc.StatusCode.OK)


def test_the_client_sends_its_token(guarded: Peer):
    address = f"127.0.0.1:{guarded.server.port}"
    security = Security(token=make_token(guarded)[1])
    assert security.token not in repr(security)
    with BanditClient(address, security=security) as client:
        client.list_experiments()
    with BanditClient(address) as client, pytest.raises(UnauthenticatedError, match="Bearer"):
        client.list_experiments()


def test_health_needs_no_token(guarded: Peer):
    health = health_pb2_grpc.HealthStub(guarded.channel)
    assert health.Check(health_pb2.HealthCheckRequest()).status == 1


def test_reflection_tells_nothing_to_strangers(guarded: Peer):
    with pytest.raises(grpc.RpcError) as caught:
        ProtoReflectionDescriptorDatabase(guarded.channel).get_services()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    token = make_token(guarded, [Role.REPORT])[1]
    call = guarded.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    )
    metadata = (("authorization", f"Bearer {token}"),)
    [answer] = call(iter([b"\x3a\x01*"]), metadata=metadata)  # list_services: "*"
    assert b"bandit.v1.DecisionService" in answer


# --- where tokens are needed ------------------------------------------------------------


def test_tokens_are_asked_for_wherever_others_can_call():
    assert not Settings().has_tokens
    assert not Settings(host="localhost").has_tokens
    assert Settings(auth="tokens").has_tokens
    assert Settings(host="192.0.2.1").has_tokens
    assert not Settings(host="192.0.2.1", insecure=True).has_tokens
    assert Settings(host="192.0.2.1", insecure=True, auth="tokens").has_tokens


def test_open_to_all_off_loopback_is_refused(tmp_path: Path):
    settings = Settings(
        database=f"sqlite:///{tmp_path / 'bandit.db'}",
        host="192.0.2.1",
        auth="none",
        tls_certificate=tmp_path / "c",
        tls_key=tmp_path / "k",
    )
    with pytest.raises(InvalidInputError, match="--insecure") as caught:
        Server(settings)
    assert caught.value.field == "auth"
    assert list(tmp_path.iterdir()) == []


# --- tenants ----------------------------------------------------------------------------


def ask(method: str, experiment: str, decision_id: str) -> Message:
    """Give a request that would succeed for the tenant that has the experiment."""
    one = decide_request(experiment, f"again {method}")
    event = pb.RecordRewardRequest(
        experiment=experiment,
        event_id=f"e {method}",
        decision_id=decision_id,
        name="click",
        value=1,
    )
    rank = pb.RankRequest.FromString(one.SerializeToString())
    rank.count = 1
    requests: dict[str, Message] = {
        "DecisionService/Decide": one,
        "DecisionService/Rank": rank,
        "DecisionService/BatchDecide": pb.BatchDecideRequest(requests=[one]),
        "DecisionService/RecordReward": event,
        "DecisionService/BatchRecordRewards": pb.BatchRecordRewardsRequest(events=[event]),
    }
    if method in requests:
        return requests[method]
    request = empty(method)
    fields = request.DESCRIPTOR.fields_by_name
    for name, value in (
        ("experiment", experiment),
        ("name", experiment),
        ("decision_id", decision_id),
        ("event_id", f"e {method}"),
        ("request_id", f"r {method}"),
        ("reason", "a test"),
    ):
        if name in fields:
            setattr(request, name, value)
    return request


def build(bearer: Bearer, name: str) -> str:
    """Create and start an experiment, and decide once; give the decision's id."""
    create(bearer, name)
    answer = bearer.call("DecisionService/Decide", decide_request(name, "r1"))
    return answer.decision.decision_id


LISTS = "ExperimentService/ListExperiments"
AUDITS = "ExperimentService/ListAuditEntries"
CREATES = "ExperimentService/CreateExperiment"
SUBMITS = "ExperimentService/SubmitVerdict"
"""Of a specification, which need not be stored."""
OF_EXPERIMENT = sorted(set(METHODS) - {LISTS, AUDITS, CREATES, SUBMITS})


class Two:
    """Two tenants of one server, each with an experiment of its own."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.mine = Bearer(peer, make_token(peer, tenant="mine")[1])
        self.theirs = Bearer(peer, make_token(peer, tenant="theirs")[1])
        self.my_id = build(self.mine, "shared-name")
        self.their_id = build(self.theirs, "their-own")
        build(self.theirs, "shared-name")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    with Peer(tmp_path_factory.mktemp("two"), auth="tokens") as peer:
        yield Two(peer)


def same_but_for_names(found: Refusal, name: str) -> Refusal:
    return found._replace(message=found.message.replace(name, "NAME"))


@pytest.mark.parametrize("method", OF_EXPERIMENT)
def test_foreign_is_as_absent(two: Two, method: str):
    foreign = refusal(two.mine.call, method, ask(method, "their-own", two.their_id))
    absent = refusal(two.mine.call, method, ask(method, "not-there", UNKNOWN_ID))
    assert foreign.code is grpc.StatusCode.NOT_FOUND
    assert same_but_for_names(foreign, "their-own") == same_but_for_names(absent, "not-there")


@pytest.mark.parametrize(
    "method", [m for m in OF_EXPERIMENT if "decision_id" in empty(m).DESCRIPTOR.fields_by_name]
)
def test_a_foreign_decision_is_as_absent(two: Two, method: str):
    """Also in an experiment of one's own that has the same name as theirs."""
    foreign = refusal(two.mine.call, method, ask(method, "shared-name", two.their_id))
    absent = refusal(two.mine.call, method, ask(method, "shared-name", UNKNOWN_ID))
    assert foreign.code is grpc.StatusCode.NOT_FOUND
    assert foreign == absent


def test_a_foreign_decision_is_as_absent_in_a_batch(two: Two):
    method = "DecisionService/BatchRecordRewards"
    answers = [
        two.mine.call(method, ask(method, "shared-name", one)) for one in (two.their_id, UNKNOWN_ID)
    ]
    assert answers[0].results[0].error.code == grpc.StatusCode.NOT_FOUND.value[0]
    assert answers[0] == answers[1]


def test_nobody_is_listed_to_others(two: Two):
    for bearer, names in ((two.mine, {"shared-name"}), (two.theirs, {"shared-name", "their-own"})):
        found = bearer.call(LISTS, pb.ListExperimentsRequest())
        assert {one.spec.name for one in found.experiments} == names
        entries = bearer.call(AUDITS, pb.ListAuditEntriesRequest(page_size=1000)).entries
        changed = {e.what for e in entries if e.action.startswith("experiment.")}
        assert changed == names
        assert [e.sequence for e in entries] == list(range(len(entries), 0, -1))
    foreign = two.mine.call(AUDITS, pb.ListAuditEntriesRequest(name="their-own"))
    assert foreign == pb.ListAuditEntriesResponse()


def test_a_page_token_of_others_is_refused(two: Two):
    page = two.theirs.call(LISTS, pb.ListExperimentsRequest(page_size=1))
    request = pb.ListExperimentsRequest(page_token=page.next_page_token)
    assert two.theirs.call(LISTS, request).experiments
    assert refusal(two.mine.call, LISTS, request).field == "page_token"


def test_the_same_ids_in_two_tenants_are_two(two: Two):
    """Request ids, customers and names of one tenant mean nothing in another."""
    method = "DecisionService/Decide"
    answers = [
        bearer.call(method, decide_request("shared-name", "one-id"))
        for bearer in (two.mine, two.theirs)
    ]
    assert answers[0].decision.decision_id != answers[1].decision.decision_id
    assert not any(one.decision.repeated_request for one in answers)
    with two.peer.server.database.reader.connect() as connection:
        rows = connection.exec_driver_sql(
            "select customer from decisions where request_id = 'one-id'"
        ).all()
    assert len({row.customer for row in rows}) == 2


def test_one_tenant_can_not_take_all_places(tmp_path: Path):
    with Peer(tmp_path, auth="tokens", in_flight=64, tenant_in_flight=4) as peer:
        greedy = Bearer(peer, make_token(peer, tenant="greedy")[1])
        modest = Bearer(peer, make_token(peer, tenant="modest")[1])
        build(greedy, "e")
        build(modest, "e")
        held = hold(peer)
        decide = peer.decisions.Decide
        calls = [
            decide.future(decide_request("e", f"r{i}"), metadata=greedy.metadata, timeout=20)
            for i in range(30)
        ]
        eventually(lambda: sum(call.done() for call in calls) == 26)
        other = decide.future(decide_request("e", "x"), metadata=modest.metadata, timeout=20)
        held()
        assert other.result(timeout=20).decision.request_id == "x"
        ended = [call.code() for call in calls]
        assert ended.count(grpc.StatusCode.OK) == 4
        assert ended.count(grpc.StatusCode.UNAVAILABLE) == 26


def hold(peer: Peer) -> Callable[[], None]:
    """Hold the writer up; give what lets it go on."""
    inside, opened = threading.Event(), threading.Event()

    def wait(_: object) -> None:
        inside.set()
        opened.wait(20)

    thread = threading.Thread(target=peer.server.writer.call, args=(wait,))
    thread.start()
    assert inside.wait(10)

    def go() -> None:
        opened.set()
        thread.join()

    return go


# --- who changed what -------------------------------------------------------------------


def test_every_change_is_told(two: Two):
    peer = two.peer
    bearer = Bearer(peer, make_token(peer, tenant="told", name="chief")[1])
    build(bearer, "story")
    moves = [
        ("Pause", "too many complaints"),
        ("Pause", "once more"),  # nothing changes
        ("Start", ""),
        ("Archive", "done"),
    ]
    for verb, reason in moves:
        message = getattr(pb, f"{verb}ExperimentRequest")(name="story", reason=reason)
        bearer.call(f"ExperimentService/{verb}Experiment", message)
    found = bearer.call(AUDITS, pb.ListAuditEntriesRequest(name="story")).entries
    assert [(e.action, e.who, e.reason) for e in found] == [
        ("experiment.archive", "chief", "done"),
        ("experiment.start", "chief", ""),
        ("experiment.pause", "chief", "too many complaints"),
        ("experiment.start", "chief", ""),
        ("experiment.create", "chief", ""),
    ]
    assert found[2].before == '{"revision":2,"state":"RUNNING"}'
    assert found[2].after == '{"revision":3,"state":"PAUSED"}'
    assert (found[-1].before, '"name":"story"' in found[-1].after) == ("", True)
    assert all(abs(e.at.ToMicroseconds() - system_clock()) < 3_600_000_000 for e in found)
    everything = bearer.call(AUDITS, pb.ListAuditEntriesRequest()).entries
    assert [e.action for e in everything][-1] == "token.create"


def test_the_audit_log_comes_in_pages(two: Two):
    whole = two.theirs.call(AUDITS, pb.ListAuditEntriesRequest(page_size=1000)).entries
    pages: list[pb.AuditEntry] = []
    token = ""
    while True:
        request = pb.ListAuditEntriesRequest(page_size=2, page_token=token)
        page = two.theirs.call(AUDITS, request)
        assert len(page.entries) <= 2
        pages += page.entries
        token = page.next_page_token
        if not token:
            break
        other = pb.ListAuditEntriesRequest(page_size=2, page_token=token, name="their-own")
        assert refusal(two.theirs.call, AUDITS, other).field == "page_token"
        assert refusal(two.mine.call, AUDITS, pb.ListAuditEntriesRequest(page_token=token)).field
    assert pages == list(whole)


def test_a_change_that_fails_is_not_told(two: Two):
    before = len(two.mine.call(AUDITS, pb.ListAuditEntriesRequest(page_size=1000)).entries)
    late = pb.StartExperimentRequest(name="shared-name", etag="0-0", reason="late")
    assert code(two.mine.call, "ExperimentService/StartExperiment", late) is (
        grpc.StatusCode.ABORTED
    )
    long = pb.PauseExperimentRequest(name="shared-name", reason="x" * 501)
    assert refusal(two.mine.call, "ExperimentService/PauseExperiment", long).field == "reason"
    after = two.mine.call(AUDITS, pb.ListAuditEntriesRequest(page_size=1000)).entries
    assert len(after) == before


def test_tokens_leave_entries_without_secrets(guarded: Peer):
    number, token = make_token(guarded, [Role.READ], tenant="traced", name="reader")
    for _ in range(2):  # the second time nothing changes
        guarded.server.writer.call(
            lambda c: tokens.revoke(c, number, who="ops", now=system_clock(), reason="leaked")
        )
    with guarded.server.database.reader.connect() as connection:
        found = entries(connection, "traced")
    assert [(e.seq, e.action, e.what, e.who, e.reason) for e in found] == [
        (2, "token.revoke", "reader", "ops", "leaked"),
        (1, "token.create", "reader", "test", ""),
    ]
    assert all(token not in str(e) and tokens.digest(token).hex() not in str(e) for e in found)


def test_without_tokens_the_caller_is_anonymous(peer: Peer, name: str):
    found = peer.experiments.ListAuditEntries(pb.ListAuditEntriesRequest(name=name)).entries
    assert [(e.who, e.action) for e in found] == [
        ("anonymous", "experiment.start"),
        ("anonymous", "experiment.create"),
    ]
    assert peer.live(name).tenant == DEFAULT_TENANT
