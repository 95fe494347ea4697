"""The fast lane: no call holds a thread while it waits for its message or for the writer.

grpcio's sync server gives every call a thread, which here would mostly wait: for the message,
and for the commit. Each wait costs two thread switches and a fight for the interpreter lock.
Here the polling thread takes a call's message when it arrives and begins the call: a small one
that only waits for the writer is begun at once and answered by the writer's thread; all others
get a thread of the pool, which they then use from start to end. So calls that never send their
message hold nothing.

It leans on four private functions of ``grpc._server``. Where they are not as expected, or
the calls have no ``begin``, everything goes the ordinary way: slower, and the same answers.
See ``docs/decisions/0004-fast-lane.md``.
"""

import inspect
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import grpc
from google.rpc import status_pb2

from server import bugs
from server.status import CODES, DETAILS_KEY

log = logging.getLogger(__name__)

Reply = Callable[[bytes | status_pb2.Status], None]
Begin = Callable[[bytes, grpc.ServicerContext, Reply], None]
"""Reads a message and arranges for a reply, from any thread; never raises, never waits."""

PATIENCE = 0.02
"""Seconds that a reply waits for another call to end."""

_EXPECTED = {
    "_unary_response_in_pool": [
        "rpc_event", "state", "behavior", "argument_thunk", "request_deserializer",
        "response_serializer",
    ],
    "_receive_message": ["state", "call", "request_deserializer"],
    "_status": ["rpc_event", "state", "serialized_response"],
    "_is_rpc_state_active": ["state"],
    "_Context": ["rpc_event", "state", "request_deserializer"],
}  # fmt: skip


def is_available() -> bool:
    """Whether this release of grpcio has the private functions that the lane needs."""
    from grpc import _server

    try:
        return hasattr(_server, "_RECEIVE_MESSAGE_TOKEN") and all(
            list(inspect.signature(getattr(_server, name)).parameters) == parameters
            for name, parameters in _EXPECTED.items()
        )
    except (AttributeError, TypeError, ValueError):
        return False


class FastLane(ThreadPoolExecutor):
    """A thread pool that takes calls with a ``begin`` without giving them a thread.

    Parameters
    ----------
    threads
        For all other calls.
    """

    def __init__(self, threads: int) -> None:
        super().__init__(threads, thread_name_prefix="rpc")
        self._is_open = is_available()
        self._outbox = Outbox()
        if not self._is_open:
            log.warning("this release of grpcio is not known: calls go without the fast lane")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":  # noqa: ANN401
        """Take a call: begin it in the polling thread, or give it to a thread of the pool."""
        if self._is_open and len(args) == 7:
            begin: Begin | None = getattr(args[3], "begin", None)
            if begin is not None:
                return _receive(args[1], args[2], begin, self._outbox)
        return super().submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """End the threads."""
        self._outbox.close()
        super().shutdown(wait=wait, cancel_futures=cancel_futures)


class _Ended:
    """The part of a Future that grpcio uses, without the locks of one."""

    __slots__ = ("_callback", "_is_done")

    def __init__(self) -> None:
        self._callback: Callable[[Any], None] | None = None
        self._is_done = False

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call back once the call has ended, at once if it has."""
        self._callback = callback
        if self._is_done:
            callback(self)

    def end(self) -> None:
        """Say that the call has ended."""
        self._is_done = True
        if self._callback is not None:
            self._callback(self)


class Outbox:
    """Replies on their way, sent with as few wake-ups of the polling thread as can be.

    A reply that another thread sends wakes the polling thread, and both then fight for the
    interpreter lock. The writer has many at a time: it sends the first; the polling thread, which
    hears that its call has ended, sends all that came meanwhile. A client that does not take
    its reply holds up the others for ``PATIENCE`` at most: then a thread of our own sends.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Callable[[], None]] = []
        self._is_awaited = False
        self._has_some = threading.Event()
        self._is_open = True
        threading.Thread(target=self._watch, name="outbox", daemon=True).start()

    def send(self, reply: Callable[[], None], call: grpc.RpcContext) -> None:
        """Send a reply now, or when a call ends that was answered before."""
        with self._lock:
            if self._is_awaited:
                self._waiting.append(reply)
                if not self._has_some.is_set():
                    self._has_some.set()
                return
            self._is_awaited = call.add_callback(self.flush)  # False: it has ended already
        reply()

    def flush(self) -> None:
        """Send what waits."""
        while True:
            with self._lock:
                replies, self._waiting = self._waiting, []
                if not replies:
                    self._is_awaited = False
                    return
            for reply in replies:
                reply()

    def close(self) -> None:
        """Send what waits, and watch no more."""
        self._is_open = False
        self._has_some.set()

    def _watch(self) -> None:
        while self._is_open:
            self._has_some.wait()
            time.sleep(PATIENCE)
            self._has_some.clear()
            self.flush()
        self.flush()


def _receive(
    rpc_event: Any,  # noqa: ANN401
    state: Any,  # noqa: ANN401
    begin: Begin,
    outbox: Outbox,
) -> "Future[Any]":
    """Ask for the message; when it comes, the polling thread begins the call with it."""
    from grpc import _server
    from grpc._cython import cygrpc  # type: ignore[attr-defined]

    ended = _Ended()
    received = _server._receive_message(state, rpc_event.call, None)

    def reply(answer: bytes | status_pb2.Status) -> None:
        context = _server._Context(rpc_event, state, None)

        def send() -> None:
            try:
                if isinstance(answer, bytes):
                    _server._status(rpc_event, state, answer)
                else:
                    context.set_code(CODES[answer.code])
                    context.set_details(answer.message)
                    context.set_trailing_metadata(((DETAILS_KEY, answer.SerializeToString()),))
                    _server._status(rpc_event, state, None)
            except Exception as error:  # noqa: BLE001
                bugs.tell(log, "a reply could not be sent", error)
                outbox.flush()  # its call may not end, and others wait for that
            finally:
                ended.end()

        outbox.send(send, context)

    def on_event(event: Any) -> Any:  # noqa: ANN401  the polling thread must never see an error
        result = received(event)
        data, state.request = state.request, None
        if data is None:  # cancelled, or closed without a message: nobody waits for an answer
            if _server._is_rpc_state_active(state):
                reply(status_pb2.Status(code=3, message="a request message is required"))
            else:
                ended.end()
        else:
            begin(data, _server._Context(rpc_event, state, None), reply)
        return result

    rpc_event.call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), on_event)
    state.due.add(_server._RECEIVE_MESSAGE_TOKEN)
    return cast("Future[Any]", ended)
