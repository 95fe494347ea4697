"""Several processes on one PostgreSQL: one log, one learner an experiment, nothing lost."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from google.protobuf.json_format import ParseDict
from sqlalchemy import text

from server import catalogue
from server.app import Server
from server.audit import audit
from server.catalogue import State
from server.database import Database
from server.live import Live
from server.pb import bandit_pb2 as pb
from server.pb import bandit_pb2_grpc as stubs
from server.settings import Settings, load_secret
from tests.postgres import PostgresServer
from tests.server.harness import SPEC, decide_request, eventually, refusal, reward_request

QUICK = {"outcomes": 20, "seconds": 0.2}


@pytest.fixture
def settings(postgres: PostgresServer, tmp_path: Path) -> Iterator[Settings]:
    url, secret = postgres.fresh(), tmp_path / "secret"
    secret.write_text("s" * 64)
    yield Settings(database=url, secret_file=secret, port=0, lease=1.0, poll=0.05, grace=5.0)


class Connection:
    """One connection of its own, so that the kernel may give each to another process."""

    def __init__(self, port: int) -> None:
        own = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=own)
        self.decisions = stubs.DecisionServiceStub(self.channel)
        self.experiments = stubs.ExperimentServiceStub(self.channel)

    def create(self, name: str) -> None:
        spec = ParseDict({**SPEC, "name": name, "publishing": QUICK}, pb.ExperimentSpec())
        self.experiments.CreateExperiment(
            pb.CreateExperimentRequest(spec=spec, request_id=f"create-{name}"), timeout=30
        )
        self.experiments.StartExperiment(
            pb.StartExperimentRequest(name=name, override="a test"), timeout=30
        )

    def decide(self, name: str, request: str) -> pb.Decision:
        asked = decide_request(name, request)
        return self.decisions.Decide(asked, timeout=30, wait_for_ready=True).decision

    def buy(self, name: str, decision: pb.Decision) -> None:
        event = reward_request(
            name, f"e-{decision.request_id}", decision.decision_id, name="buy", value=1.0
        )
        self.decisions.RecordReward(event, timeout=30, wait_for_ready=True)

    def version(self, name: str) -> int:
        asked = pb.GetExperimentRequest(name=name)
        return self.experiments.GetExperiment(asked, timeout=30).experiment.snapshot.version


def problems(settings: Settings) -> list[str]:
    """Audit the database as ``banditctl verify`` does."""
    database = Database(settings.database, read_only=True)
    live, found = Live(load_secret(settings)), []
    with database.reader.connect() as connection:
        live.load(connection)
        for entry in live.entries():
            found += audit(connection, entry).problems
    database.close()
    return found


@contextmanager
def two(settings: Settings) -> Iterator[tuple[Server, Server]]:
    """Run two servers in this process, on one database."""
    servers = Server(settings), Server(settings)
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            server.stop()


@contextmanager
def workers(settings: Settings, count: int = 2) -> Iterator[tuple[subprocess.Popen, int]]:
    """Run ``serve --workers``; give the process and its port."""
    environment = {
        f"BANDIT_{k.upper()}": str(v) for k, v in settings.model_dump(exclude_none=True).items()
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "serve", "--workers", str(count)],
        env=os.environ | environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("serving on"), line
        yield process, int(line.split()[2].rpartition(":")[2])
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        process.stdout.close()


def test_what_one_server_writes_the_other_knows(settings: Settings):
    with two(settings) as servers:
        a, b = (Connection(server.port) for server in servers)
        a.create("welcome")
        first = b.decide("welcome", "r1")
        again = a.decide("welcome", "r1")
        assert again.repeated_request
        assert (again.decision_id, again.propensity) == (first.decision_id, first.propensity)
        for i in range(40):
            b.buy("welcome", a.decide("welcome", f"many-{i}"))
        eventually(lambda: a.version("welcome") == b.version("welcome") > 0)
        b.experiments.PauseExperiment(pb.PauseExperimentRequest(name="welcome"))
        eventually(
            lambda: a.decide("welcome", f"p{os.urandom(4).hex()}").reason == pb.REASON_PAUSED
        )
        a.experiments.ArchiveExperiment(pb.ArchiveExperimentRequest(name="welcome"))
        eventually(
            lambda: refusal_reason(b, f"a{os.urandom(4).hex()}") == "WRONG_STATE",
        )
    assert problems(settings) == []


def refusal_reason(connection: Connection, request: str) -> str:
    try:
        connection.decide("welcome", request)
    except grpc.RpcError:
        return refusal(connection.decisions.Decide, decide_request("welcome", request)).reason
    return ""


def test_one_request_on_two_servers_at_once_is_one_decision(settings: Settings):
    with two(settings) as servers, ThreadPoolExecutor(8) as pool:
        connections = [Connection(server.port) for server in servers]
        connections[0].create("welcome")
        for i in range(30):
            asked = [pool.submit(connections[j % 2].decide, "welcome", f"r{i}") for j in range(4)]
            assert len({answer.result().decision_id for answer in asked}) == 1
    assert problems(settings) == []


def test_a_stop_without_its_database_ends_well(tmp_path: Path):
    mortal, secret = PostgresServer(), tmp_path / "secret"
    secret.write_text("s" * 64)
    try:
        told = Settings(database=mortal.fresh(), secret_file=secret, port=0, lease=1.0, grace=5.0)
        server = Server(told)
        server.start()
        Connection(server.port).create("welcome")
        eventually(lambda: server.leases.epoch(1) is not None)
        mortal.halt()
        server.stop()
        assert not server.writer._thread.is_alive()
    finally:
        mortal.stop()


def test_a_database_that_says_nothing_is_given_up(settings: Settings):
    """Only the settings are looked at: to lose a machine takes one."""
    database = Database(f"{settings.database}&connect_timeout=3")
    for engine in (database.writer, database.reader):
        with engine.connect() as connection:
            found = connection.connection.dbapi_connection.info.get_parameters()
            assert found["tcp_user_timeout"] == "30000"
            assert found["keepalives_idle"] == "10"
            assert found["connect_timeout"] == "3"
    database.close()


def test_changes_on_two_servers_follow_each_other(settings: Settings):
    """What another server archives at the same moment is not brought back."""
    with two(settings) as servers:
        a, b = (Connection(server.port) for server in servers)
        a.create("welcome")
        [one] = [live.id for live in servers[0].live.entries()]
        b.decide("welcome", "known there")
        with servers[0].database.writer.begin() as connection:
            catalogue.set_state(connection, one, State.ARCHIVED)
            paused = b.experiments.PauseExperiment.future(pb.PauseExperimentRequest(name="welcome"))
            waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")

            def waits() -> bool:
                with servers[1].database.reader.connect() as looking:
                    return bool(looking.execute(waiting).scalar_one())

            eventually(waits)
        assert refusal(paused.result).code is grpc.StatusCode.FAILED_PRECONDITION


def test_an_experiment_is_learned_by_one_server_and_taken_over_by_the_other(settings: Settings):
    with two(settings) as servers:
        a, b = (Connection(server.port) for server in servers)
        a.create("welcome")
        [one] = [live.id for live in servers[0].live.entries()]
        leases = [server.learner._leases for server in servers]
        eventually(lambda: any(held.epoch(one) for held in leases))
        holder = 0 if leases[0].epoch(one) else 1
        assert leases[1 - holder].epoch(one) is None
        left = (b, a)[holder]
        servers[holder].stop()
        eventually(lambda: leases[1 - holder].epoch(one) is not None)
        before = left.version("welcome")
        for i in range(25):
            left.buy("welcome", left.decide("welcome", f"r{i}"))
        eventually(lambda: left.version("welcome") > before)
        servers[holder].stop = lambda: None
    assert problems(settings) == []


def test_workers_survive_kills_and_a_paused_holder_is_fenced(settings: Settings):
    with workers(settings) as (parent, port):
        connections = [Connection(port) for _ in range(6)]
        connections[0].create("welcome")
        acknowledged = set()

        def load(first: int, n: int) -> None:
            for i in range(first, first + n):
                connection = connections[i % 6]
                try:
                    decision = connection.decide("welcome", f"r{i}")
                    connection.buy("welcome", decision)
                except grpc.RpcError as error:
                    assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
                else:
                    acknowledged.add(decision.decision_id)

        load(0, 60)
        children = psutil.Process(parent.pid).children()
        assert len(children) == 2
        for child in children:  # whoever holds the lease sleeps past its term
            child.suspend()
            psutil.Process(parent.pid)
            survivors = [c for c in connections if _answers(c)]
            for i, connection in enumerate(survivors):
                connection.buy("welcome", connection.decide("welcome", f"s{child.pid}-{i}"))
            child.resume()
        load(60, 60)
        children[0].kill()

        def others() -> set[int]:  # one that was killed is a child until it is asked for
            return {c.pid for c in psutil.Process(parent.pid).children()} - {children[0].pid}

        eventually(lambda: len(others()) == 2, 60)
        eventually(lambda: all(_answers(c) for c in connections), 60)
        load(120, 60)
        before = connections[0].version("welcome")
        load(180, 60)
        eventually(lambda: connections[0].version("welcome") > before, 30)
    assert problems(settings) == []
    database = Database(settings.database, read_only=True)
    with database.reader.connect() as connection:
        stored = connection.exec_driver_sql("SELECT encode(decision_id, 'hex') FROM decisions")
        ids = [row[0] for row in stored]
    database.close()
    assert len(ids) == len(set(ids))
    assert {one.replace("-", "") for one in acknowledged} <= set(ids)


def _answers(connection: Connection) -> bool:
    try:
        connection.experiments.GetExperiment(pb.GetExperimentRequest(name="welcome"), timeout=2)
    except grpc.RpcError:
        return False
    return True


def test_workers_end_with_their_parent(settings: Settings):
    with workers(settings) as (parent, _):
        children = psutil.Process(parent.pid).children()
        parent.kill()
        parent.wait()
        _, alive = psutil.wait_procs(children, timeout=60)
        assert alive == []


def test_workers_are_refused_on_sqlite(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "server", "serve", "--workers", "2",
         "--database", f"sqlite:///{tmp_path / 'b.db'}"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "workers: 2 processes can not share SQLite" in done.stderr
    assert not (tmp_path / "b.db").exists()
