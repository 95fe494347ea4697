"""gRPC around the plain RPC functions: bytes in, bytes out, errors as rich statuses.

Messages are parsed here, not by grpcio, so that bytes that are no message get a declared
status like every other bad input.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from bandit.errors import BanditError, DeadlineError, UnavailableError
from server import convert, status
from server.counters import Counters
from server.database import storage_error
from server.fastlane import FastLane, Reply
from server.pb import bandit_pb2 as pb
from server.service import Caller, DecisionService, ExperimentService, Pending
from server.settings import Settings
from server.tracing import Tracing
from server.watching import Watch
from server.writer import Writer

log = logging.getLogger(__name__)

READINESS = "bandit.v1.Readiness"
LIVENESS = "bandit.v1.Liveness"
DEFAULT_TENANT = "default"

SMALL = 32_768
"""Bytes of a message up to which the polling thread reads it itself."""

Method = Callable[[Any, Caller], Message]
T = TypeVar("T")


class Transport:
    """A gRPC server on one port.

    Parameters
    ----------
    settings
        Address, threads and limits.
    decisions, experiments
        What to serve.
    writer
        Takes the jobs of calls that wait without a thread.
    counters
        Told how every call ended.
    tracing
        Where spans go; None for nowhere.

    Raises
    ------
    UnavailableError
        If the address can not be bound.
    """

    def __init__(  # noqa: PLR0913
        self,
        settings: Settings,
        decisions: DecisionService,
        experiments: ExperimentService,
        writer: Writer,
        counters: Counters,
        tracing: Tracing | None = None,
    ) -> None:
        self._health = health.HealthServicer()
        self._lane = FastLane(settings.threads)
        self._gate = _Gate(settings.in_flight)
        self._server = grpc.server(
            self._lane,
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.max_metadata_size", 16_384),
            ],
        )
        services = {"DecisionService": decisions, "ExperimentService": experiments}
        begins: dict[str, Callable[[Any, Caller], Pending]] = {
            "Decide": decisions.begin_decide,
            "RecordReward": decisions.begin_record,
        }
        for name, service in services.items():
            descriptor = pb.DESCRIPTOR.services_by_name[name]
            handlers = {
                method.name: _Call(
                    getattr(service, method.name),
                    getattr(pb, method.input_type.name),
                    self._lane,
                    self._gate,
                    writer,
                    begins.get(method.name),
                    Watch(f"{name}/{method.name}", counters, settings.slow_request, tracing),
                ).handler()
                for method in descriptor.methods
            }
            generic = grpc.method_handlers_generic_handler(descriptor.full_name, handlers)
            self._server.add_generic_rpc_handlers((generic,))
            self._server.add_registered_method_handlers(descriptor.full_name, handlers)
        aside = ThreadPoolExecutor(8, thread_name_prefix="aside")
        health_pb2_grpc.add_HealthServicer_to_server(_aside(self._health, aside), self._server)
        self.set_serving(is_serving=False)
        self.set_alive(is_alive=True)
        names = [f"{pb.DESCRIPTOR.package}.{name}" for name in services]
        names = [*names, health.SERVICE_NAME, reflection.SERVICE_NAME]
        servicer = _aside(reflection.ReflectionServicer(names), aside)
        add_reflection: Callable[[Any, grpc.Server], None] = (
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server
        )
        add_reflection(servicer, self._server)
        address = f"{settings.host}:{settings.port}"
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError:
            raise UnavailableError(
                f"can not listen on {address}: the port is in use, or the address is not ours",
                field="port",
            ) from None

    def start(self) -> None:
        """Listen; health says NOT_SERVING until ``set_serving``."""
        self._server.start()

    def set_serving(self, *, is_serving: bool) -> None:
        """Tell health checks whether requests are welcome."""
        for name in ("", READINESS):
            self._health.set(name, _health_code(is_good=is_serving))

    def set_alive(self, *, is_alive: bool) -> None:
        """Tell health checks whether the process can still do its work."""
        self._health.set(LIVENESS, _health_code(is_good=is_alive))

    def stop(self, grace: float) -> None:
        """Take no more requests, finish those under way, then close."""
        self.set_serving(is_serving=False)
        self._server.stop(grace).wait()


def _health_code(*, is_good: bool) -> int:
    code = health_pb2.HealthCheckResponse
    return int(code.SERVING if is_good else code.NOT_SERVING)


class _Gate:
    """Counts requests in flight, so that more than can be served are turned away at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._inside = 0
        self._lock = threading.Lock()

    def enter(self) -> None:
        with self._lock:
            if self._inside >= self._most:
                raise UnavailableError(f"{self._most} requests are in flight; try again")
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1


class _Call:
    """One RPC function as gRPC sees it."""

    def __init__(  # noqa: PLR0913
        self,
        method: Method,
        kind: type[Message],
        lane: FastLane,
        gate: _Gate,
        writer: Writer,
        begin: Callable[[Any, Caller], Pending] | None,
        watch: Watch,
    ) -> None:
        self._watch = watch
        self._method = method
        self._kind = kind
        self._lane = lane
        self._gate = gate
        self._writer = writer
        self._begin = begin
        if watch.is_tracing:
            self._run = watch.within(self._run)  # type: ignore[method-assign]
            self._start = watch.within(self._start)  # type: ignore[method-assign]

    def handler(self) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """Give the handler; its ``begin`` is for the fast lane, the rest for without."""

        def call(data: bytes, context: grpc.ServicerContext) -> bytes:
            answers: list[bytes | status_pb2.Status] = []
            self._enter_and_run(data, context, answers.append)
            [answer] = answers
            if isinstance(answer, bytes):
                return answer
            details = ((status.DETAILS_KEY, answer.SerializeToString()),)
            context.set_trailing_metadata(details)
            context.abort(status.CODES[answer.code], answer.message)
            raise AssertionError("abort returned")

        call.begin = self._take  # type: ignore[attr-defined]
        return grpc.unary_unary_rpc_method_handler(call)

    def _take(self, data: bytes, context: grpc.ServicerContext, reply: Reply) -> None:
        """Begin a call in the polling thread, or give it a thread."""
        reply = self._watch.over(reply, context)
        try:
            self._gate.enter()
        except UnavailableError as error:
            self._watch.shed()
            reply(status.to_status(error))
            return
        if self._begin is not None and len(data) <= SMALL:
            self._start(data, context, reply, self._begin)
            return
        try:
            self._lane.submit(self._run, data, context, reply)
        except RuntimeError:  # the pool is shut down
            self._gate.leave()
            reply(status.to_status(UnavailableError("the server is shutting down")))

    def _enter_and_run(self, data: bytes, context: grpc.ServicerContext, reply: Reply) -> None:
        """Carry a call that came without the fast lane."""
        reply = self._watch.over(reply, context)
        try:
            self._gate.enter()
        except UnavailableError as error:
            self._watch.shed()
            reply(status.to_status(error))
        else:
            self._run(data, context, reply)

    def _run(self, data: bytes, context: grpc.ServicerContext, reply: Reply) -> None:
        """Carry a call from start to end in this thread."""
        answer: bytes | status_pb2.Status
        try:
            _check_deadline(context)
            message = convert.parse(self._kind, data)
            answer = self._method(message, Caller(DEFAULT_TENANT)).SerializeToString()
        except Exception as error:  # noqa: BLE001
            answer = _failed(error, self._kind)
        finally:
            self._gate.leave()
        reply(answer)

    def _start(
        self,
        data: bytes,
        context: grpc.ServicerContext,
        reply: Reply,
        begin: Callable[[Any, Caller], Pending],
    ) -> None:
        """Begin a call that the writer's thread will answer."""

        def finish() -> None:
            self._gate.leave()
            try:
                reply(pending.answer().SerializeToString())
            except Exception as error:  # noqa: BLE001
                reply(_failed(error, self._kind))

        try:
            _check_deadline(context)
            pending = begin(convert.parse(self._kind, data), Caller(DEFAULT_TENANT))
            pending.job.on_done = finish
            remaining: float | None = context.time_remaining()
            if remaining is not None:
                pending.job.expires = time.monotonic() + remaining
            self._writer.submit(pending.job)
        except Exception as error:  # noqa: BLE001
            self._gate.leave()
            reply(_failed(error, self._kind))


def _aside(servicer: T, pool: ThreadPoolExecutor) -> T:
    """Let a servicer's methods run in a pool of their own, so that no load can hold them up."""
    kind = type(servicer)
    methods = {}
    for name in ("Check", "Watch", "List", "ServerReflectionInfo"):
        original = getattr(kind, name, None)
        if original is not None:
            methods[name] = _copied(original, pool)
    servicer.__class__ = type(kind.__name__, (kind,), methods)
    return servicer


def _copied(original: Callable[..., Any], pool: ThreadPoolExecutor) -> Callable[..., Any]:
    def method(self: object, request: Any, context: Any) -> Any:  # noqa: ANN401
        return original(self, request, context)

    method.experimental_thread_pool = pool  # type: ignore[attr-defined]
    return method


def _failed(error: Exception, kind: type[Message]) -> status_pb2.Status:
    """Give the status of an error; a bug is logged, and tells the caller nothing."""
    if isinstance(error, BanditError):
        return status.to_status(error)
    if (known := storage_error(error)) is not None:
        log.error("%s: %s", kind.DESCRIPTOR.name, known)
        return status.to_status(known)
    log.error("unexpected error in %s", kind.DESCRIPTOR.name, exc_info=error)
    return status.internal()


def _check_deadline(context: grpc.ServicerContext) -> None:
    remaining: float | None = context.time_remaining()
    if remaining is not None and remaining <= 0:
        raise DeadlineError("the deadline passed before the work began")
