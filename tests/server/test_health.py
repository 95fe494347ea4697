"""Health tells the truth: each test breaks one thing and sees the answers change."""

import logging
import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy.exc import OperationalError

from server import health
from server.catalogue import fact
from server.database import LOOK
from server.transport import LIVENESS, READINESS
from server.writer import Call
from tests.server.harness import Peer, decide_request, eventually, refusal
from tests.server.scrape import page, scrape, value
from tests.server.test_transport import Gate

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def sick(tmp_path: Path):
    """Run a server that a test may break."""
    with Peer(tmp_path, metrics_port=0) as running:
        yield running


def told(peer: Peer, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(peer.channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=service)).status


def becomes(peer: Peer, *, ready: bool, alive: bool) -> str:
    """Wait until gRPC and HTTP both say so; give the reasons that HTTP tells."""
    codes = {True: SERVING, False: NOT_SERVING}
    eventually(lambda: told(peer, READINESS) == codes[ready])
    eventually(lambda: told(peer, LIVENESS) == codes[alive])
    assert told(peer) == codes[ready]
    reasons = page(peer, "/readyz")
    assert reasons.status == (200 if ready else 503)
    assert page(peer, "/healthz").status == (200 if alive else 503)
    samples = scrape(peer)
    assert value(samples, "bandit_ready") == ready
    assert value(samples, "bandit_alive") == alive
    return reasons.text


def test_a_server_that_is_well_says_so(sick: Peer):
    assert becomes(sick, ready=True, alive=True) == "ok\n"


def test_not_ready_before_the_start_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, str, int]] = []
    monkeypatch.setattr(
        "server.app.warm_up",
        lambda: seen.append((*page(peer, "/readyz"), page(peer, "/healthz").status)),
    )

    class Early(Peer):
        def start(self) -> None:
            nonlocal peer
            peer = self
            super().start()

    peer: Peer
    with Early(tmp_path, metrics_port=0) as started:
        assert seen == [(503, "starting\n", 200)]
        becomes(started, ready=True, alive=True)


def test_a_deleted_database_is_noticed_and_nothing_more_is_acknowledged(sick: Peer, tmp_path: Path):
    name = sick.create("deleted")
    sick.decide(name, "r1")
    away = tmp_path / "away.db"
    (tmp_path / "bandit.db").rename(away)
    time.sleep(2 * LOOK)
    found = refusal(sick.decide, name, "r2")
    assert (found.code, found.retry) == (grpc.StatusCode.UNAVAILABLE, True)
    reasons = becomes(sick, ready=False, alive=True)
    assert "was removed or replaced" in reasons
    away.rename(tmp_path / "bandit.db")
    becomes(sick, ready=True, alive=True)
    assert sick.decide(name, "r2").sequence == 2, "what was refused was not stored"


def test_an_idle_server_notices_a_deleted_database(sick: Peer, tmp_path: Path):
    (tmp_path / "bandit.db").unlink()
    assert "was removed or replaced" in becomes(sick, ready=False, alive=True)


def test_a_database_replaced_by_another_is_noticed(sick: Peer, tmp_path: Path):
    path = tmp_path / "bandit.db"
    path.rename(tmp_path / "away.db")
    path.write_bytes((tmp_path / "away.db").read_bytes())
    assert "replaced" in becomes(sick, ready=False, alive=True)


def test_a_deleted_write_ahead_log_is_noticed(sick: Peer, tmp_path: Path):
    name = sick.create("without a log")
    (tmp_path / "bandit.db-wal").unlink()
    time.sleep(2 * LOOK)
    assert refusal(sick.decide, name, "r1").code is grpc.StatusCode.UNAVAILABLE
    assert "write-ahead log" in becomes(sick, ready=False, alive=True)


def test_a_write_ahead_log_made_anew_is_noticed(sick: Peer, tmp_path: Path):
    """Whoever opens the database next makes an empty one, and the server's own is lost."""
    name = sick.create("another log")
    log = tmp_path / "bandit.db-wal"
    log.unlink()
    other = sqlite3.connect(tmp_path / "bandit.db")
    with suppress(sqlite3.OperationalError):
        other.execute("SELECT count(*) FROM decisions")
    assert log.exists()
    time.sleep(2 * LOOK)
    assert refusal(sick.decide, name, "r1").code is grpc.StatusCode.UNAVAILABLE
    assert "write-ahead log" in becomes(sick, ready=False, alive=True)
    other.close()


def test_where_the_lock_was_deleted_only_one_server_goes_on(sick: Peer, tmp_path: Path):
    name = sick.create("two servers")
    (tmp_path / "bandit.db.lock").unlink()
    with Peer(tmp_path) as second:
        assert refusal(sick.decide, name, "r1").code is grpc.StatusCode.UNAVAILABLE
        assert "others may write beside it" in becomes(sick, ready=False, alive=True)
        assert second.decide(name, "r1").sequence == 1


def test_writes_that_fail_and_work_again(sick: Peer, monkeypatch: pytest.MonkeyPatch):
    name = sick.create("failing")
    begin = sick.server.writer._transaction

    def fail() -> None:
        raise OperationalError("INSERT", {}, sqlite3.OperationalError("disk I/O error"))

    monkeypatch.setattr(sick.server.writer, "_transaction", fail)
    assert refusal(sick.decide, name, "r1").code is grpc.StatusCode.UNAVAILABLE
    assert "writes fail" in becomes(sick, ready=False, alive=True)
    assert value(scrape(sick), "bandit_commit_failures_total") >= 1
    monkeypatch.setattr(sick.server.writer, "_transaction", begin)
    becomes(sick, ready=True, alive=True)  # found out by a probe: nobody else writes


def test_an_idle_server_proves_its_writes(sick: Peer, monkeypatch: pytest.MonkeyPatch):
    def probes() -> str | None:
        with sick.server.database.reader.connect() as connection:
            return fact(connection, "last_probe")

    monkeypatch.setattr(health, "PROVE_EVERY", 0.05)
    eventually(probes)
    first = probes()
    eventually(lambda: probes() != first)


def test_a_busy_server_makes_no_probes(sick: Peer, monkeypatch: pytest.MonkeyPatch):
    name = sick.create("busy")
    monkeypatch.setattr(health, "PROVE_EVERY", 3_600.0)
    asked: list[object] = []
    monkeypatch.setattr(sick.server.writer, "submit", asked.append)
    sick.server.health._proved_at = -1e9  # long ago, but for what follows
    sick.server.writer.proved_at = -1e9
    sick.server.health.prove()
    assert len(asked) == 1
    sick.server.health._probe = None
    monkeypatch.undo()
    sick.decide(name, "r1")
    eventually(lambda: sick.server.writer.proved_at > 0)
    monkeypatch.setattr(sick.server.writer, "submit", asked.append)
    sick.server.health.prove()
    assert len(asked) == 1


def test_a_write_that_hangs(sick: Peer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(health, "PROVE_EVERY", 0.01)
    monkeypatch.setattr(health, "PATIENCE", 0.1)
    gate = Gate(sick)
    assert "a write takes longer" in becomes(sick, ready=False, alive=True)
    monkeypatch.setattr(health, "PATIENCE", 60.0)
    gate.open()
    becomes(sick, ready=True, alive=True)


def test_a_learner_that_died(sick: Peer, monkeypatch: pytest.MonkeyPatch):
    def end() -> None:
        raise SystemExit

    monkeypatch.setattr(sick.server.learner, "_pause", end)
    assert "the learner's thread died" in becomes(sick, ready=False, alive=False)
    assert page(sick, "/healthz").text == "the learner's thread died\n"


def test_a_writer_that_died_keeps_nobody_waiting(sick: Peer):
    name = sick.create("orphaned")
    gate = Gate(sick)
    waiting = [sick.decisions.Decide.future(decide_request(name, f"r{i}")) for i in range(3)]
    eventually(lambda: sick.server.writer.waiting == 3)
    broken: Call[None] = Call(lambda _: None)
    broken.expires = None  # type: ignore[assignment]
    told_off = threading.Event()
    broken.on_done = told_off.set
    sick.server.writer.submit(broken)
    gate.open()
    assert "the writer's thread died" in becomes(sick, ready=False, alive=False)
    for call in waiting:
        error = call.exception(timeout=10)
        assert isinstance(error, grpc.RpcError)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert told_off.wait(10)
    assert refusal(sick.decide, name, "after").code is grpc.StatusCode.UNAVAILABLE


def test_a_drain_is_not_ready_and_alive(tmp_path: Path):
    with Peer(tmp_path, metrics_port=0) as peer:
        name = peer.create("draining")
        gate = Gate(peer)
        under_way = peer.decisions.Decide.future(decide_request(name, "r1"))
        eventually(lambda: peer.server.writer.waiting)
        stopping = threading.Thread(target=peer.server.stop)
        stopping.start()
        eventually(lambda: page(peer, "/readyz").status == 503)
        assert page(peer, "/readyz").text == "draining\n"
        assert page(peer, "/healthz").status == 200
        gate.open()
        assert under_way.result(timeout=10).decision.sequence == 1
        stopping.join(20)
        peer.channel.close()
        peer.start()


def test_changes_of_health_are_logged_once(
    sick: Peer, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    (tmp_path / "bandit.db").rename(tmp_path / "away.db")
    becomes(sick, ready=False, alive=True)
    (tmp_path / "away.db").rename(tmp_path / "bandit.db")
    becomes(sick, ready=True, alive=True)
    lines = [r.getMessage() for r in caplog.records if r.name == "server.health"]
    gone = [line for line in lines if "was removed or replaced" in line]
    assert 1 <= len(gone) <= 3, "once for each change of the reasons"
    assert lines[-1] == "ready"
