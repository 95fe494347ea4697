"""gRPC around the plain RPC functions: bytes in, bytes out, errors as rich statuses.

Messages are parsed here, not by grpcio, so that bytes that are no message get a declared
status like every other bad input.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from bandit.errors import BanditError, DeadlineError, UnavailableError
from server import bugs, convert, status, tls
from server.access import ROLES, Access, Caller
from server.counters import Counters
from server.database import storage_error
from server.fastlane import FastLane, Reply
from server.pb import bandit_pb2 as pb
from server.service import DecisionService, ExperimentService, Pending
from server.settings import Settings
from server.tokens import Role
from server.tracing import Tracing
from server.watching import Watch
from server.writer import Writer

log = logging.getLogger(__name__)

READINESS = "bandit.v1.Readiness"
LIVENESS = "bandit.v1.Liveness"
SMALL = 32_768
"""Bytes of a message up to which the polling thread reads it itself."""

Method = Callable[[Any, Caller], Message]
Begin = Callable[[Any, Caller], Pending | None]
"""Reads a call whose answer waits for the writer alone; gives None if it would wait before."""
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
    access
        Decides who may call what.
    counters
        Told how every call ended.
    tracing
        Where spans go; None for nowhere.

    Raises
    ------
    UnavailableError
        If the address can not be bound.
    InvalidInputError
        If the TLS files can not be used.
    """

    def __init__(  # noqa: PLR0913
        self,
        settings: Settings,
        decisions: DecisionService,
        experiments: ExperimentService,
        writer: Writer,
        access: Access,
        counters: Counters,
        tracing: Tracing | None = None,
    ) -> None:
        credentials = tls.server_credentials(settings)
        self._health = health.HealthServicer()
        self._lane = FastLane(settings.threads)
        self._gate = _Gate(settings)
        self._server = grpc.server(self._lane, options=_options(settings))
        services = {"DecisionService": decisions, "ExperimentService": experiments}
        begins: dict[str, Begin] = {
            "Decide": decisions.begin_decide,
            "RecordReward": decisions.begin_record,
        }
        for name, service in services.items():
            descriptor = pb.DESCRIPTOR.services_by_name[name]
            handlers = {
                method.name: _Call(
                    getattr(service, method.name),
                    getattr(pb, method.input_type.name),
                    _Desk(self._lane, self._gate, writer, access),
                    ROLES[f"{name}/{method.name}"],
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
        servicer = _aside(_Reflection(names, access), aside)
        add_reflection: Callable[[Any, grpc.Server], None] = (
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server
        )
        add_reflection(servicer, self._server)
        address = f"{settings.host}:{settings.port}"
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, credentials)
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
        self._lane.shutdown(wait=False)


def _options(settings: Settings) -> list[tuple[str, int]]:
    """Give what grpc is told: limits that hold before anything is allocated, and connections."""
    options = {
        "grpc.max_receive_message_length": settings.max_message_bytes,
        "grpc.max_send_message_length": -1,
        "grpc.so_reuseport": int(settings.share_port),
        "grpc.max_metadata_size": 8_192,
        "grpc.absolute_max_metadata_size": 16_384,
        "grpc.max_concurrent_streams": 16 * settings.in_flight + 100,  # of one connection
        "grpc.http2.min_recv_ping_interval_without_data_ms": 10_000,
        "grpc.keepalive_permit_without_calls": 1,
    }
    seconds = {
        "grpc.keepalive_time_ms": settings.keepalive,
        "grpc.max_connection_idle_ms": settings.connection_idle,
        "grpc.max_connection_age_ms": settings.connection_age,
        "grpc.max_connection_age_grace_ms": settings.connection_age and 60.0,
    }
    options |= {name: round(1_000 * told) for name, told in seconds.items() if told}
    return list(options.items())


def _health_code(*, is_good: bool) -> int:
    code = health_pb2.HealthCheckResponse
    return int(code.SERVING if is_good else code.NOT_SERVING)


class _Reflection(reflection.ReflectionServicer):
    """Tells what is served to those who may call something."""

    def __init__(self, names: list[str], access: Access) -> None:
        super().__init__(names)
        self._access = access

    def ServerReflectionInfo(self, requests: Any, context: Any) -> Any:  # noqa: ANN401, N802
        try:
            self._access.admit(context.invocation_metadata, None)
        except BanditError as error:
            _abort(context, status.to_status(error))
        return super().ServerReflectionInfo(requests, context)


class _Gate:
    """Counts requests in flight, so that more than can be served are turned away at once.

    A request's bytes are counted from before it is read until it is answered, so they also
    bound what waits for the writer.
    """

    def __init__(self, settings: Settings) -> None:
        self._most = settings.in_flight
        self._most_bytes = settings.bytes_in_flight
        shared = settings.has_tokens  # else there is one tenant, and nobody to be fair to
        self._most_of_tenant = settings.tenant_in_flight if shared else self._most
        self._inside = 0
        self._bytes = 0
        self._tenants: dict[str, int] = {}
        self._lock = threading.Lock()

    def enter(self, tenant: str, size: int) -> None:
        with self._lock:
            of_tenant = self._tenants.get(tenant, 0)
            if self._inside >= self._most:
                raise _full(f"{self._most} requests")
            if of_tenant >= self._most_of_tenant:
                raise _full(f"{of_tenant} requests of yours")
            if self._bytes + size > self._most_bytes and self._inside:
                raise _full(f"{self._bytes} bytes")
            self._inside += 1
            self._bytes += size
            self._tenants[tenant] = of_tenant + 1

    def leave(self, tenant: str, size: int) -> None:
        with self._lock:
            self._inside -= 1
            self._bytes -= size
            left = self._tenants[tenant] - 1
            if left:
                self._tenants[tenant] = left
            else:
                del self._tenants[tenant]


def _full(what: str) -> UnavailableError:
    return UnavailableError(f"{what} are in flight; try again", is_shed=True)


class _Desk(NamedTuple):
    """What the calls of all methods share."""

    lane: FastLane
    gate: _Gate
    writer: Writer
    access: Access


class _Call:
    """One RPC function as gRPC sees it."""

    def __init__(  # noqa: PLR0913
        self,
        method: Method,
        kind: type[Message],
        desk: _Desk,
        role: Role,
        begin: Begin | None,
        watch: Watch,
    ) -> None:
        self._watch = watch
        self._method = method
        self._kind = kind
        self._lane, self._gate, self._writer, self._access = desk
        self._role = role
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
            _abort(context, answer)
            raise AssertionError("abort returned")

        call.begin = self._take  # type: ignore[attr-defined]
        return grpc.unary_unary_rpc_method_handler(call)

    def _take(self, data: bytes, context: grpc.ServicerContext, reply: Reply) -> None:
        """Begin a call in the polling thread, or give it a thread."""
        reply = self._watch.over(reply, context)
        caller = self._admitted(data, context, reply)
        if caller is None:
            return
        if self._begin is not None and len(data) <= SMALL:
            self._start(data, context, reply, caller)
        else:
            self._give_thread(data, context, reply, caller)

    def _give_thread(
        self, data: bytes, context: grpc.ServicerContext, reply: Reply, caller: Caller
    ) -> None:
        try:
            self._lane.submit(self._run, data, context, reply, caller)
        except RuntimeError:  # the pool is shut down
            self._gate.leave(caller.tenant, len(data))
            reply(status.to_status(UnavailableError("the server is shutting down")))

    def _admitted(self, data: bytes, context: grpc.ServicerContext, reply: Reply) -> Caller | None:
        """Let a call in before its message is read; else reply why not, and give None."""
        try:
            caller = self._access.admit(context.invocation_metadata, self._role)
            self._gate.enter(caller.tenant, len(data))
        except Exception as error:  # noqa: BLE001  the polling thread must never see one
            reply(self._failed(error))
            return None
        return caller

    def _enter_and_run(self, data: bytes, context: grpc.ServicerContext, reply: Reply) -> None:
        """Carry a call that came without the fast lane."""
        reply = self._watch.over(reply, context)
        caller = self._admitted(data, context, reply)
        if caller is not None:
            self._run(data, context, reply, caller)

    def _run(
        self, data: bytes, context: grpc.ServicerContext, reply: Reply, caller: Caller
    ) -> None:
        """Carry a call from start to end in this thread."""
        answer: bytes | status_pb2.Status
        try:
            remaining = _remaining(context)
            if remaining is not None:
                caller = caller._replace(expires=time.monotonic() + remaining)
            message = convert.parse(self._kind, data)
            answer = self._method(message, caller).SerializeToString()
        except Exception as error:  # noqa: BLE001
            answer = self._failed(error)
        finally:
            self._gate.leave(caller.tenant, len(data))
        reply(answer)

    def _start(
        self, data: bytes, context: grpc.ServicerContext, reply: Reply, caller: Caller
    ) -> None:
        """Begin a call that the writer's thread will answer."""
        size = len(data)

        def finish() -> None:
            self._gate.leave(caller.tenant, size)
            try:
                reply(pending.answer().SerializeToString())
            except Exception as error:  # noqa: BLE001
                reply(self._failed(error))

        try:
            remaining = _remaining(context)
            begun = self._begin(convert.parse(self._kind, data), caller)  # type: ignore[misc]
            if begun is None:
                self._give_thread(data, context, reply, caller)
                return
            pending = begun
            pending.job.on_done = finish
            if remaining is not None:
                pending.job.expires = time.monotonic() + remaining
            self._writer.submit(pending.job)
        except Exception as error:  # noqa: BLE001
            self._gate.leave(caller.tenant, size)
            reply(self._failed(error))

    def _failed(self, error: Exception) -> status_pb2.Status:
        """Give the status of an error; a bug is logged, and tells the caller nothing."""
        name = self._kind.DESCRIPTOR.name
        if isinstance(error, UnavailableError) and error.is_shed:
            self._watch.shed()
        if isinstance(error, BanditError):
            return status.to_status(error)
        if (known := storage_error(error)) is not None:
            log.error("%s: %s", name, known)
            return status.to_status(type(known)(known.message.partition(":")[0]))
        bugs.tell(log, f"unexpected error in {name}", error)
        return status.internal()


def _abort(context: grpc.ServicerContext, answer: status_pb2.Status) -> None:
    """End a call that grpcio's own machinery carries with a rich status."""
    context.set_trailing_metadata(((status.DETAILS_KEY, answer.SerializeToString()),))
    context.abort(status.CODES[answer.code], answer.message)


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


def _remaining(context: grpc.ServicerContext) -> float | None:
    """Give the seconds left to a call, None if it waits for ever; refuse one that is late."""
    remaining: float | None = context.time_remaining()
    if remaining is not None and remaining <= 0:
        raise DeadlineError("the deadline passed before the work began")
    return remaining
