"""What gRPC sees: health, reflection, deadlines, ports, and how a server ends."""

import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError

from bandit.errors import InvalidInputError, UnavailableError
from server.app import Server
from server.pb import bandit_pb2 as pb
from server.settings import Settings
from server.transport import READINESS
from tests.server.harness import (
    Peer,
    decide_request,
    eventually,
    read_refusal,
    refusal,
    reward_request,
)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Gate:
    """Holds the writer up, as a slow disk would."""

    def __init__(self, peer: Peer) -> None:
        self._inside, self._open = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=peer.server.writer.call, args=(self._wait,))
        self._thread.start()
        assert self._inside.wait(10)

    def _wait(self, _: Connection) -> None:
        self._inside.set()
        self._open.wait(5)

    def open(self) -> None:
        self._open.set()
        self._thread.join()


@pytest.mark.parametrize("service", ["", READINESS])
def test_health_says_serving(peer: Peer, service: str):
    health = health_pb2_grpc.HealthStub(peer.channel)
    found = health.Check(health_pb2.HealthCheckRequest(service=service))
    assert found.status == SERVING


def test_health_of_what_is_not_there(peer: Peer):
    health = health_pb2_grpc.HealthStub(peer.channel)
    found = refusal(health.Check, health_pb2.HealthCheckRequest(service="nothing"))
    assert found.code is grpc.StatusCode.NOT_FOUND


def test_health_ends_before_the_service_does(tmp_path: Path):
    with Peer(tmp_path) as peer:
        name = peer.create("ending")
        health = health_pb2_grpc.HealthStub(peer.channel)
        watched = health.Watch(health_pb2.HealthCheckRequest(service=READINESS))
        seen = [next(watched).status]
        gate = Gate(peer)
        under_way = peer.decisions.Decide.future(decide_request(name, "r1"))
        eventually(lambda: peer.server.writer._queue.qsize())

        def watch() -> None:
            seen.append(next(watched).status)
            watched.cancel()
            gate.open()

        watching = threading.Thread(target=watch)
        watching.start()
        peer.server.stop()
        watching.join(10)
        assert seen == [SERVING, NOT_SERVING]
        assert under_way.result(timeout=5).decision.sequence == 1
        peer.channel.close()
        peer.start()


def test_reflection_lists_every_service(peer: Peer):
    database = ProtoReflectionDescriptorDatabase(peer.channel)
    assert set(database.get_services()) == {
        "bandit.v1.DecisionService",
        "bandit.v1.ExperimentService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    file = database.FindFileContainingSymbol("bandit.v1.DecisionService")
    assert file.package == "bandit.v1"
    methods = [m.name for service in file.service for m in service.method]
    served = [m.name for s in pb.DESCRIPTOR.services_by_name.values() for m in s.methods]
    assert methods == served


def test_a_call_ends_at_its_deadline(peer: Peer, name: str):
    gate = Gate(peer)
    calls = [
        (peer.decisions.Decide, decide_request(name, "r1")),
        (peer.decisions.BatchDecide, pb.BatchDecideRequest(requests=[decide_request(name, "r2")])),
    ]
    for method, request in calls:
        found = refusal(method, request, timeout=0.1)
        assert found.code is grpc.StatusCode.DEADLINE_EXCEEDED
    gate.open()
    assert peer.decide(name, "r3").request_id == "r3"


def test_expired_work_is_not_done(peer: Peer, name: str):
    """Whoever has given up waiting is not decided for."""
    gate = Gate(peer)
    with ThreadPoolExecutor(8) as pool:
        calls = [decide_request(name, f"r{i}") for i in range(8)]
        found = list(pool.map(lambda r: refusal(peer.decisions.Decide, r, timeout=0.2), calls))
    assert {one.code for one in found} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    time.sleep(0.3)  # the server's deadline is later than the client's by what a message takes
    gate.open()
    peer.decide(name, "after")
    assert peer.log_length(name) == 1


def test_a_retry_after_a_deadline_gets_one_decision(peer: Peer, name: str):
    gate = Gate(peer)
    request = decide_request(name, "r1")
    assert refusal(peer.decisions.Decide, request, timeout=0.1).code is (
        grpc.StatusCode.DEADLINE_EXCEEDED
    )
    gate.open()
    decision = peer.decisions.Decide(request).decision
    assert peer.log_length(name) == 1
    assert peer.get(name, decision.decision_id).decision.decision_id == decision.decision_id


def test_calls_that_were_cancelled_hold_nobody_up(peer: Peer, name: str):
    gate = Gate(peer)
    calls = [peer.decisions.Decide.future(decide_request(name, f"r{i}")) for i in range(50)]
    for call in calls:
        call.cancel()
    gate.open()
    assert peer.decide(name, "after").request_id == "after"
    assert peer.reward(name, "e", peer.decide(name, "r99").decision_id).sequence > 0


def test_a_full_disk_is_unavailable_until_there_is_room(tmp_path: Path):
    def pages(most: int | None) -> Callable[[Connection], object]:
        def limit(connection: Connection) -> None:
            count = connection.exec_driver_sql("pragma page_count").scalar_one()
            connection.exec_driver_sql(f"pragma max_page_count = {most or count}")

        return limit

    with Peer(tmp_path) as peer:
        peer.server.learner.stop()  # whose small writes may still fit, and would say SERVING
        name = peer.create("on a small disk")
        health = health_pb2_grpc.HealthStub(peer.channel)
        one = peer.decide(name, "r0").decision_id
        peer.server.writer.call(pages(None))
        requests = [decide_request(name, f"r{i}") for i in range(1, 900)]
        events = [reward_request(name, f"{i:0120}", one) for i in range(900)]
        for method, message in (
            (peer.decisions.BatchDecide, pb.BatchDecideRequest(requests=requests)),
            (peer.decisions.BatchRecordRewards, pb.BatchRecordRewardsRequest(events=events)),
        ):
            found = refusal(method, message)
            assert (found.code, found.reason, found.retry) == (
                grpc.StatusCode.UNAVAILABLE,
                "UNAVAILABLE",
                True,
            )
        assert peer.log_length(name) == 1
        assert peer.get(name, one).decision.decision_id == one
        assert health.Check(health_pb2.HealthCheckRequest()).status == NOT_SERVING

        peer.server.writer.call(pages(2**30))
        assert len(peer.decisions.BatchDecide(pb.BatchDecideRequest(requests=requests)).decisions)
        assert health.Check(health_pb2.HealthCheckRequest()).status == SERVING
        assert peer.log_length(name) == 900


def test_a_read_that_fails_is_unavailable(peer: Peer, name: str, monkeypatch: pytest.MonkeyPatch):
    decision = peer.decide(name, "r1")

    def fail() -> None:
        raise OperationalError("SELECT", {}, sqlite3.OperationalError("disk I/O error"))

    monkeypatch.setattr(peer.server.database.reader, "connect", fail)
    reads = [
        lambda: peer.get(name, decision.decision_id),
        lambda: peer.report(name),
        lambda: peer.experiment(name),
    ]
    found = [refusal(read) for read in reads]
    assert {one.code for one in found} == {grpc.StatusCode.UNAVAILABLE}
    assert all(one.retry for one in found)


def test_more_callers_than_threads(tmp_path: Path):
    """Calls that wait for a commit must not keep others, such as health checks, from answers."""
    with Peer(tmp_path, threads=2) as peer:
        name = peer.create("crowded")
        gate = Gate(peer)
        calls: list[Future] = [
            peer.decisions.Decide.future(decide_request(name, f"r{i}")) for i in range(64)
        ]
        health = health_pb2_grpc.HealthStub(peer.channel)
        found = health.Check(health_pb2.HealthCheckRequest(), timeout=5)
        gate.open()
        places = sorted(call.result(timeout=20).decision.sequence for call in calls)
        assert found.status == SERVING
        assert places == list(range(1, 65))


@pytest.mark.parametrize("method", ["Decide", "BatchDecide"])
def test_more_callers_than_can_be_served_are_turned_away_at_once(tmp_path: Path, method: str):
    with Peer(tmp_path, threads=2, in_flight=8) as peer:
        name = peer.create("overrun")
        gate = Gate(peer)
        asked = [decide_request(name, f"r{i}") for i in range(30)]
        if method == "BatchDecide":
            asked = [pb.BatchDecideRequest(requests=[one]) for one in asked]
        calls = [getattr(peer.decisions, method).future(one) for one in asked]
        eventually(lambda: sum(call.done() for call in calls) >= 30 - 8, 4)
        turned_away = [read_refusal(call.exception()) for call in calls if call.done()]
        gate.open()
        served = [call for call in calls if not call.exception(timeout=10)]
        assert {(one.code, one.retry) for one in turned_away} == {
            (grpc.StatusCode.UNAVAILABLE, True)
        }
        assert 0 < len(served) <= 8
        assert peer.log_length(name) == len(served)
        assert peer.decide(name, "after").sequence == len(served) + 1


def test_a_stop_finishes_what_is_under_way(tmp_path: Path):
    with Peer(tmp_path) as peer:
        name = peer.create("ending")
        first = peer.decide(name, "r0")
        gate = Gate(peer)
        asked = [peer.decisions.Decide.future(decide_request(name, f"r{i}")) for i in range(1, 9)]
        told = peer.decisions.RecordReward.future(reward_request(name, "e1", first.decision_id))
        eventually(lambda: peer.server.writer._queue.qsize() >= 9)
        opening = threading.Timer(0.2, gate.open)
        opening.start()
        peer.server.stop()
        opening.join()
        answered = {call.result(timeout=10).decision.decision_id for call in asked}
        assert told.result(timeout=10).sequence > 0
        peer.channel.close()
        peer.start()
        assert len(answered) == 8
        assert all(peer.get(name, one).decision.decision_id == one for one in answered)
        assert peer.log_length(name) == 10


def test_a_stopped_server_takes_nothing(tmp_path: Path):
    with Peer(tmp_path) as peer:
        name = peer.create("stopped")
        peer.server.stop()
        found = refusal(peer.decide, name, "r1")
        assert found.code is grpc.StatusCode.UNAVAILABLE
        peer.channel.close()
        peer.start()
        assert peer.log_length(name) == 0


def test_any_thread_may_stop_a_server(tmp_path: Path):
    with Peer(tmp_path) as peer:
        stopping = threading.Thread(target=peer.stop)
        stopping.start()
        stopping.join(10)
        peer.start()


def test_a_port_in_use(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        database = f"sqlite:///{tmp_path / 'bandit.db'}"
        with pytest.raises(UnavailableError) as caught:
            Server(Settings(database=database, port=port))
        assert caught.value.field == "port"
        assert str(port) in caught.value.message
    with Peer(tmp_path) as peer:  # nothing was left open
        assert peer.server.port > 0


def test_two_servers_do_not_share_a_port(tmp_path: Path, peer: Peer):
    database = f"sqlite:///{tmp_path / 'bandit.db'}"
    with pytest.raises(UnavailableError):
        Server(Settings(database=database, port=peer.server.port))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])  # noqa: S104
def test_plain_text_stays_on_this_machine(tmp_path: Path, host: str):
    database = f"sqlite:///{tmp_path / 'bandit.db'}"
    with pytest.raises(InvalidInputError) as caught:
        Server(Settings(database=database, port=0, host=host))
    assert caught.value.field == "host"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_loopback_addresses(tmp_path: Path, host: str):
    with Peer(tmp_path, host=host) as peer:
        assert peer.server.port > 0


def test_a_server_that_was_never_started_can_be_stopped(tmp_path: Path):
    database = f"sqlite:///{tmp_path / 'bandit.db'}"
    server = Server(Settings(database=database, port=0))
    server.stop()
    with Peer(tmp_path):
        pass
