"""Overload, late work, closed connections, made-up messages, and what the log must not say."""

import ast
import logging
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import grpc
import psutil
import pytest
from google.protobuf.internal import encoder
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError, OperationalError

from bandit import spec_file
from bandit.errors import BanditError, InvalidInputError, UnavailableError
from server import bounds
from server.client import BanditClient, Fact
from server.commands.local import LocalServer
from server.database import cause_of
from server.pb import bandit_pb2 as pb
from server.writer import Call, Job, Writer
from tests.server.access_harness import Bearer, code, create, make_token
from tests.server.harness import Peer, decide_request, eventually, refusal, reward_request
from tests.server.test_commands import WELCOME
from tests.server.test_packed import packed_request, packed_rewards

ROOT = Path(__file__).parents[2]
MARKERS = ("PLANTED-customer", "PLANTED-category", "PLANTED-reason", "PLANTED-token")


class Gate:
    """Holds the writer up, as a slow disk would."""

    def __init__(self, writer: Writer) -> None:
        self._inside, self._open = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=writer.call, args=(self._wait,))
        self._thread.start()
        assert self._inside.wait(10)

    def _wait(self, _: object) -> None:
        self._inside.set()
        self._open.wait(20)

    def open(self) -> None:
        self._open.set()
        self._thread.join()


# --- more than can be done --------------------------------------------------------------


def test_the_writers_queue_is_bounded(tmp_path: Path):
    with Peer(tmp_path, queue_rows=1_000) as peer:
        name = peer.create("queue")
        gate = Gate(peer.server.writer)
        batches = [
            pb.BatchDecideRequest(requests=[decide_request(name, f"{i}-{j}") for j in range(300)])
            for i in range(5)
        ]
        calls = [peer.decisions.BatchDecide.future(batch) for batch in batches]
        eventually(lambda: sum(call.done() for call in calls) == 2)
        shed = [refusal(call.result) for call in calls if call.done()]
        gate.open()
        assert {(one.code, one.retry) for one in shed} == {(grpc.StatusCode.UNAVAILABLE, True)}
        assert peer.server.counters.method("DecisionService/BatchDecide").shed == 2
        assert peer.server.counters.method("DecisionService/Decide").shed == 0
        kept = [call for call in calls if not call.exception(timeout=20)]
        assert len(kept) == 3
        assert peer.log_length(name) == 900
        assert peer.decide(name, "after").sequence == 901


def test_the_writer_still_takes_what_is_not_a_request(tmp_path: Path):
    """The learner's steps and changes of state get through, else nothing would get better."""
    with Peer(tmp_path) as peer:
        writer = Writer(peer.server.database.writer, most_waiting=1)

        class Held(Job[None]):
            pass

        ended: list[Job[None]] = []
        for kind in (Held, Held):
            job = kind(5)
            job.on_done = lambda job=job: ended.append(job)
            if ended or writer._queue.qsize():
                with pytest.raises(UnavailableError, match="rows wait"):
                    writer.submit(job)
            else:
                writer.submit(job)
        call = Call(lambda _: None)
        call.on_done = lambda: ended.append(call)
        writer.submit(call)
        assert writer._queue.qsize() == 2
        writer.stop()


def test_the_bytes_in_flight_are_bounded(tmp_path: Path):
    with Peer(tmp_path, bytes_in_flight=2**20) as peer:
        name = peer.create("heavy")
        gate = Gate(peer.server.writer)
        heavy = [
            pb.BatchDecideRequest(
                requests=[
                    decide_request(name, f"{i}-{j}".ljust(128, "x"), customer_id="c" * 256)
                    for j in range(700)
                ]
            )
            for i in range(5)
        ]
        assert 2**20 / 4 < heavy[0].ByteSize() < 2**20 / 3
        calls = [peer.decisions.BatchDecide.future(batch) for batch in heavy]
        eventually(lambda: sum(call.done() for call in calls) == 2)
        found = [refusal(call.result) for call in calls if call.done()]
        gate.open()
        assert all(one.retry and "bytes are in flight" in one.message for one in found)
        assert sum(not call.exception(timeout=20) for call in calls) == 3
        assert peer.server._transport._gate._bytes == 0
        assert peer.server._transport._gate._tenants == {}


def test_a_message_larger_than_all_bytes_is_still_served_alone(tmp_path: Path):
    with Peer(tmp_path, bytes_in_flight=2**20) as peer:
        name = peer.create("alone")
        large = pb.BatchDecideRequest(
            requests=[
                decide_request(name, f"{j}".ljust(128, "x"), customer_id="\N{GRINNING FACE}" * 256)
                for j in range(1_000)
            ]
        )
        assert large.ByteSize() > 2**20
        assert len(peer.decisions.BatchDecide(large).decisions) == 1_000


# --- late work --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "form"),
    [
        ("Decide", "one"),
        ("RecordReward", "one"),
        ("BatchDecide", "named"),
        ("BatchDecide", "packed"),
        ("BatchRecordRewards", "named"),
        ("BatchRecordRewards", "packed"),
    ],
)
def test_what_expired_while_waiting_is_not_done(still: Peer, method: str, form: str):
    peer, name = still, still.create("late")
    first = peer.decide(name, "r0")
    gate = Gate(peer.server.writer)
    asked, told = decide_request(name, "late"), reward_request(name, "late", first.decision_id)
    ids = UUID(first.decision_id).bytes
    request: Message = {
        ("Decide", "one"): asked,
        ("BatchDecide", "named"): pb.BatchDecideRequest(requests=[asked]),
        ("BatchDecide", "packed"): pb.BatchDecideRequest(
            packed=packed_request(name, "late", [(41.0, 0, 1, 2)])
        ),
        ("RecordReward", "one"): told,
        ("BatchRecordRewards", "named"): pb.BatchRecordRewardsRequest(events=[told]),
        ("BatchRecordRewards", "packed"): pb.BatchRecordRewardsRequest(
            packed=packed_rewards(name, ids)
        ),
    }[method, form]
    call = getattr(peer.decisions, method)
    assert code(call, request, timeout=0.3) is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: peer.server.writer._queue.qsize() == 1)
    time.sleep(0.3)  # the server's deadline is later than the client's by what a message takes
    gate.open()
    peer.server.writer.call(lambda _: None)
    assert peer.log_length(name) == 1


@pytest.mark.parametrize("verb", ["Start", "Pause", "Archive"])
def test_a_change_that_expired_while_waiting_is_not_made(still: Peer, verb: str):
    peer = still
    name = peer.create(f"late-{verb}", start=verb != "Start")
    before = peer.experiment(name)
    gate = Gate(peer.server.writer)
    request = getattr(pb, f"{verb}ExperimentRequest")(name=name)
    call = getattr(peer.experiments, f"{verb}Experiment")
    assert code(call, request, timeout=0.3) is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: peer.server.writer._queue.qsize() == 1)
    time.sleep(0.3)
    gate.open()
    peer.server.writer.call(lambda _: None)
    assert peer.experiment(name) == before
    entries = peer.experiments.ListAuditEntries(pb.ListAuditEntriesRequest(name=name)).entries
    assert len(entries) == (1 if verb == "Start" else 2)


# --- connections ------------------------------------------------------------------------


def test_a_client_lives_through_the_end_of_its_connections(tmp_path: Path):
    """Connections end by age again and again; no call of the client fails, none is done twice."""
    with Peer(tmp_path, connection_age=0.3, connection_idle=0.3, keepalive=0.5) as peer:
        name = peer.create("ageing")
        address = f"127.0.0.1:{peer.server.port}"
        with BanditClient(address, timeout=30.0) as client:
            ids = []
            end = time.monotonic() + 2.0
            while time.monotonic() < end:
                ids.append(client.decide(name, "c", {"age": 41}).decision_id)
        assert len(set(ids)) == len(ids)
        assert peer.server.database.url.database
        with sqlite3.connect(str(peer.server.database.url.database)) as connection:
            [(count,)] = connection.execute("select count(*) from decisions").fetchall()
        connection.close()
        assert count == len(ids)


def test_metadata_have_a_bound(peer: Peer, name: str):
    """However they are sent: one value, or many small ones."""
    for metadata in ((("x", "y" * 40_000),), tuple((f"x{i}", "y") for i in range(3_000))):
        found = code(
            peer.decisions.Decide, decide_request(name, "r"), metadata=metadata, timeout=20
        )
        assert found in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
    assert peer.decide(name, "r").sequence == 1


# --- messages that ask for memory -------------------------------------------------------

LISTS = [
    (pb.BatchDecideRequest, b"\x0a\x00", "requests"),
    (pb.BatchRecordRewardsRequest, b"\x0a\x00", "events"),
    (pb.DecideRequest, b"\x2a\x00", "exclusions"),
]


@pytest.mark.parametrize(("kind", "item", "name"), LISTS)
def test_a_list_too_long_is_refused_before_it_is_read(kind: type[Message], item: bytes, name: str):
    data = item * 2_000_000
    with pytest.raises(InvalidInputError) as caught:
        bounds.check_counts(kind, data)
    assert caught.value.field == name


@pytest.mark.parametrize(("kind", "item", "name"), LISTS)
def test_made_up_lists_take_no_memory(peer: Peer, kind: type[Message], item: bytes, name: str):
    service = "DecisionService"
    method = peer.raw(f"{service}/{kind.DESCRIPTOR.name.removesuffix('Request')}")
    before = psutil.Process().memory_info().rss
    most = before
    for _ in range(3):
        found = refusal(method, item * 2_000_000)
        assert (found.code, found.field) == (grpc.StatusCode.INVALID_ARGUMENT, name)
        most = max(most, psutil.Process().memory_info().rss)
    assert most - before < 100 * 2**20  # read, they would take more than twice of that


NESTED = [
    ("BatchDecide", b"\x2a\x00", (1,), "requests[0].exclusions"),
    ("BatchDecide", b"\x0a\x03\x0a\x01k", (1, 4), "requests[0].context.values"),
    ("CreateExperiment", b"\x22\x00", (1, 3), "spec.actions.exclusions"),
]


@pytest.mark.parametrize(("method", "item", "within", "path"), NESTED)
def test_lists_within_are_counted(
    peer: Peer, method: str, item: bytes, within: tuple[int, ...], path: str
):
    data = item * 500_000
    for number in reversed(within):
        data = bytes([number << 3 | 2]) + encoder._VarintBytes(len(data)) + data
    service = "DecisionService" if method == "BatchDecide" else "ExperimentService"
    found = refusal(peer.raw(f"{service}/{method}"), data)
    assert (found.code, found.field) == (grpc.StatusCode.INVALID_ARGUMENT, path)
    assert "holds more than" in found.message


@given(st.binary(max_size=300), st.integers(0, 3_000), st.sampled_from(LISTS))
@settings(deadline=None)
def test_counting_agrees_with_reading(junk: bytes, n: int, case: tuple):
    """What is no message is left to the reader; what is one is counted as it reads."""
    kind, item, name = case
    filler = b"\x0a\x08" + b"f" * 8 if kind is pb.DecideRequest else item
    data = item * n + filler * 4_100 * (kind is pb.DecideRequest) + junk
    try:
        message = kind.FromString(data)
    except Exception:  # noqa: BLE001  no message
        message = None
    try:
        bounds.check_counts(kind, data)
    except InvalidInputError as error:
        assert message is None or len(getattr(message, name)) > bounds.MOST_ITEMS
        assert error.field in (name, "")
    else:
        assert (
            message is None
            or len(data) <= bounds.HARMLESS
            or len(getattr(message, name)) <= bounds.MOST_ITEMS
        )


# --- a stop under load ------------------------------------------------------------------


def test_a_stop_under_load_loses_nothing(tmp_path: Path):
    """Everything acknowledged before, during and after SIGTERM is in the log."""
    server = LocalServer(tmp_path)
    acknowledged: list[tuple[str, str]] = []
    with BanditClient(server.address, timeout=30) as client:
        client.create_experiment(spec_file.parse(WELCOME, "toml"))
        client.start_experiment("welcome", override="a test")
    stop = threading.Event()
    begun = threading.Barrier(7)

    def load(number: int) -> None:
        with BanditClient(server.address, timeout=1.0) as client:
            for i in range(1_000_000):
                if i == 5:
                    begun.wait(60)
                if stop.is_set():
                    return
                try:
                    answer = client.decide("welcome", f"c{number}", {"age": 41})
                    acknowledged.append(("decisions", answer.decision_id))
                    event = f"e{number}-{i}"
                    fact = Fact(decision_id=answer.decision_id, name="click", event_id=event)
                    client.record_reward("welcome", fact)
                    acknowledged.append(("events", event))
                except BanditError:
                    if i >= 5:
                        return

    with ThreadPoolExecutor(6) as pool:
        for number in range(6):
            pool.submit(load, number)
        begun.wait(60)
        before = len(acknowledged)
        status = server.stop()
        stop.set()
    assert status == 0
    assert len(acknowledged) >= before >= 6 * 8
    with sqlite3.connect(tmp_path / "bandit.db") as connection:
        ids = {
            one for (one,) in connection.execute("select lower(hex(decision_id)) from decisions")
        }
        events = {one for (one,) in connection.execute("select event_id from reward_events")}
    connection.close()
    assert {one.replace("-", "") for kind, one in acknowledged if kind == "decisions"} <= ids
    assert {one for kind, one in acknowledged if kind == "events"} <= events


def test_a_stop_that_hangs_ends_all_the_same(tmp_path: Path):
    """A writer that is held for ever can not keep the process: the deadline is hard."""
    script = tmp_path / "hanging.py"
    script.write_text(
        "import threading, sys\n"
        "from server.app import Server\n"
        "from server.settings import Settings\n"
        f"server = Server(Settings(database='sqlite:///{tmp_path}/bandit.db', port=0, grace=0.1))\n"
        "server.start()\n"
        "held = threading.Event()\n"
        "def hold(_):\n"
        "    held.set()\n"
        "    threading.Event().wait()\n"
        "threading.Thread(target=server.writer.call, args=(hold,), daemon=True).start()\n"
        "held.wait()\n"
        "print('held', flush=True)\n"
        "server.stop()\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    began = time.monotonic()
    assert process.wait(60) == 1
    assert time.monotonic() - began < 5.1 + 20  # grace, five seconds, and a slow machine
    process.stdout.close()


# --- what the log must not say ----------------------------------------------------------


def test_no_log_line_tells_of_customers_or_tokens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """At level DEBUG, with good calls, bad ones, bugs and a database that fails."""
    customer, category, reason, planted = MARKERS
    caplog.set_level(logging.DEBUG)
    with Peer(tmp_path, auth="tokens") as peer:
        admin = Bearer(peer, make_token(peer)[1])
        token = admin.metadata[0][1].removeprefix("Bearer ")
        name = "logged"
        create(admin, name)
        context = {"values": {"segment": {"category": category}, "age": {"number": 41}}}
        rules = [{"variant": "long", "reason": reason}]

        def asked(i: object) -> pb.DecideRequest:
            fields = {"context": context, "exclusions": rules, "customer_id": f"{customer} {i}"}
            return decide_request(name, f"r{i}", **fields)

        decide = "DecisionService/Decide"
        for i in range(20):
            admin.call(decide, asked(i))
        other = asked(0)
        other.customer_id += " another"
        assert code(admin.call, decide, other) is grpc.StatusCode.ALREADY_EXISTS
        other.context.values[category].number = 1
        assert code(admin.call, decide, other) is grpc.StatusCode.INVALID_ARGUMENT
        assert code(Bearer(peer, planted).call, decide, other) is grpc.StatusCode.UNAUTHENTICATED
        for fail in (
            lambda *_: _raise(ZeroDivisionError(f"{customer} {category}")),
            lambda *_: _raise(OperationalError(customer, {}, sqlite3.Error(f"full\n{category}"))),
        ):
            monkeypatch.setattr("server.storage.take_seq", fail)
            assert code(admin.call, decide, asked("x")) is not grpc.StatusCode.OK
            monkeypatch.undo()
        monkeypatch.setattr(peer.server.live, "here", lambda *_: _raise(KeyError(customer)))
        assert code(admin.call, decide, asked("y")) is grpc.StatusCode.INTERNAL
        monkeypatch.undo()
        eventually(lambda: "without a valid token" in caplog.text)
    told = caplog.text
    assert "met a bug: ZeroDivisionError" in told
    assert "failed to commit: full" in told
    assert "unexpected error in DecideRequest: KeyError" in told
    assert [marker for marker in (*MARKERS, token) if marker in told] == []


def _raise(error: Exception) -> None:
    raise error


def test_integrity_errors_of_the_database_quote_rows_only_behind_the_first_line():
    said = Exception("duplicate key\nDETAIL:  Key (request_id)=(PLANTED) already exists.")
    assert cause_of(IntegrityError("insert", {}, said)) == "duplicate key"


def test_nothing_unpickles():
    """No module of the server or the engine reads or writes a format that runs code."""
    banned = {"pickle", "cPickle", "dill", "shelve", "joblib", "marshal", "cloudpickle"}
    found = []
    for folder in ("server", "bandit"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name.partition(".")[0] for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [(node.module or "").partition(".")[0]]
                elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                    is_false = isinstance(node.value, ast.Constant) and node.value.value is False
                    names = [] if is_false else ["pickle"]
                elif isinstance(node, ast.Name) and node.id in ("eval", "exec"):
                    names = ["pickle"]
                found += [str(path) for name in names if name in banned]
    assert found == []
