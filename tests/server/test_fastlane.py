"""Replies that wait for another call's end: all are sent, in whatever way that call ends."""

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import fastlane
from server.fastlane import Outbox
from tests.server.harness import Peer, decide_request, eventually

METHOD = b"/bandit.v1.DecisionService/Decide"


class Call:
    """A call that ends when it is told to."""

    def __init__(self, *, has_ended: bool = False) -> None:
        self.callbacks: list[Callable[[], None]] = []
        self._has_ended = has_ended

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self.callbacks.append(callback)
        return not self._has_ended

    def end(self) -> None:
        for callback in self.callbacks:
            callback()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let replies wait for their call only."""
    monkeypatch.setattr(fastlane, "PATIENCE", 60.0)


@pytest.mark.usefixtures("patient")
def test_the_first_is_sent_and_the_rest_when_its_call_ends():
    outbox, sent = Outbox(), list[int]()
    calls = [Call() for _ in range(5)]
    for i, call in enumerate(calls):
        outbox.send(lambda i=i: sent.append(i), call)  # type: ignore[misc, arg-type]
    assert sent == [0]
    calls[0].end()
    assert sent == [0, 1, 2, 3, 4]
    outbox.send(lambda: sent.append(5), calls[1])  # type: ignore[arg-type]
    assert sent[-1] == 5


@pytest.mark.usefixtures("patient")
def test_nobody_waits_for_a_call_that_has_ended():
    outbox, sent = Outbox(), list[int]()
    for i in range(3):
        outbox.send(lambda i=i: sent.append(i), Call(has_ended=True))  # type: ignore[misc, arg-type]
    assert sent == [0, 1, 2]


def test_a_call_that_does_not_end_holds_nobody_up():
    outbox, sent = Outbox(), list[int]()
    for i in range(10):
        outbox.send(lambda i=i: sent.append(i), Call())  # type: ignore[misc, arg-type]
    eventually(lambda: len(sent) == 10)
    assert sorted(sent) == list(range(10))


@given(st.lists(st.booleans(), max_size=200), st.integers(1, 4))
def test_every_reply_is_sent_once(ends: list[bool], threads: int):
    outbox, sent = Outbox(), list[tuple[int, int]]()

    def run(thread: int) -> None:
        for i, does_end in enumerate(ends):
            call = Call()
            outbox.send(lambda i=i: sent.append((thread, i)), call)  # type: ignore[misc, arg-type]
            if does_end:
                call.end()

    running = [threading.Thread(target=run, args=(k,)) for k in range(threads)]
    for each in running:
        each.start()
    for each in running:
        each.join()
    outbox.close()
    eventually(lambda: len(sent) == threads * len(ends))
    assert len(set(sent)) == len(sent)


# --- a client that takes no reply ------------------------------------------------------------


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Give an HTTP/2 frame."""
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def header(name: bytes, value: bytes) -> bytes:
    """Give a header field as HPACK literals without an index."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def ask_without_room(address: str, message: bytes) -> socket.socket:
    """Make a call whose reply may not be sent: the window for it has no byte."""
    host, _, port = address.rpartition(":")
    opened = socket.create_connection((host, int(port)))
    window = (4).to_bytes(2, "big") + (0).to_bytes(4, "big")
    fields = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", METHOD),
        (b":authority", b"x"), (b"te", b"trailers"), (b"content-type", b"application/grpc"),
    ]  # fmt: skip
    headers = b"".join(header(*field) for field in fields)
    data = b"\0" + len(message).to_bytes(4, "big") + message
    opened.sendall(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(4, 0, 0, window)
        + frame(1, 4, 1, headers)
        + frame(0, 1, 1, data)
    )
    return opened


def stuck(peer: Peer, name: str) -> bool:
    """Whether others get no answer while a client takes none."""
    rude = ask_without_room(
        f"127.0.0.1:{peer.server.port}", decide_request(name, "rude").SerializeToString()
    )
    try:
        tally = peer.server.counters.methods["DecisionService/Decide"]
        eventually(lambda: "OK" in tally.by_code)  # it was answered, as far as we can
        for i in range(5):
            peer.decisions.Decide(decide_request(name, f"polite-{i}"), timeout=3)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return True
    finally:
        rude.close()
    return False


def test_a_client_that_takes_no_reply_holds_nobody_up(tmp_path: Path):
    with Peer(tmp_path) as peer:
        assert not stuck(peer, peer.create("one"))


@pytest.mark.usefixtures("patient")
def test_without_patience_it_would(tmp_path: Path):
    with Peer(tmp_path) as peer:
        assert stuck(peer, peer.create("one"))
