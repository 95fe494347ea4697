"""gRPC around the plain RPC functions: bytes in, bytes out, errors as rich statuses.

Messages are parsed here, not by grpcio, so that bytes that are no message get a declared
status like every other bad input.
"""

import logging
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from bandit.errors import BanditError, DeadlineError, UnavailableError
from server import convert, status
from server.fastlane import FastLane, Reply
from server.pb import bandit_pb2 as pb
from server.service import Caller, DecisionService, ExperimentService, Pending
from server.settings import Settings
from server.writer import Writer

log = logging.getLogger(__name__)

READINESS = "bandit.v1.Readiness"
DEFAULT_TENANT = "default"

Method = Callable[[Any, Caller], Message]


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

    Raises
    ------
    UnavailableError
        If the address can not be bound.
    """

    def __init__(
        self,
        settings: Settings,
        decisions: DecisionService,
        experiments: ExperimentService,
        writer: Writer,
    ) -> None:
        self._health = health.HealthServicer()
        self._server = grpc.server(
            FastLane(settings.threads),
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
                method.name: _handler(
                    getattr(service, method.name),
                    getattr(pb, method.input_type.name),
                    writer if method.name in begins else None,
                    begins.get(method.name),
                )
                for method in descriptor.methods
            }
            generic = grpc.method_handlers_generic_handler(descriptor.full_name, handlers)
            self._server.add_generic_rpc_handlers((generic,))
            self._server.add_registered_method_handlers(descriptor.full_name, handlers)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.set_serving(is_serving=False)
        names = [f"{pb.DESCRIPTOR.package}.{name}" for name in services]
        reflection.enable_server_reflection(
            [*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )
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
        code = health_pb2.HealthCheckResponse
        for name in ("", READINESS):
            self._health.set(name, code.SERVING if is_serving else code.NOT_SERVING)

    def stop(self, grace: float) -> None:
        """Take no more requests, finish those under way, then close."""
        self.set_serving(is_serving=False)
        self._server.stop(grace).wait()


def _handler(
    method: Method,
    kind: type[Message],
    writer: Writer | None = None,
    begin: Callable[[Any, Caller], Pending] | None = None,
) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """Wrap an RPC function; with ``begin``, also as a call for the fast lane."""

    def call(data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            _check_deadline(context)
            answer = method(convert.parse(kind, data), Caller(DEFAULT_TENANT))
            return answer.SerializeToString()
        except Exception as error:  # noqa: BLE001
            failed = _failed(error, kind)
        context.set_trailing_metadata(((status.DETAILS_KEY, failed.SerializeToString()),))
        context.abort(status.CODES[failed.code], failed.message)
        raise AssertionError("abort returned")

    def start(data: bytes, context: grpc.ServicerContext, reply: Reply) -> None:
        def finish() -> None:
            try:
                reply(pending.answer().SerializeToString())
            except Exception as error:  # noqa: BLE001
                reply(_failed(error, kind))

        try:
            _check_deadline(context)
            assert begin is not None and writer is not None  # noqa: S101
            pending = begin(convert.parse(kind, data), Caller(DEFAULT_TENANT))
            pending.job.on_done = finish
            writer.submit(pending.job)
        except Exception as error:  # noqa: BLE001
            reply(_failed(error, kind))

    if begin is not None:
        call.begin = start  # type: ignore[attr-defined]
    return grpc.unary_unary_rpc_method_handler(call)


def _failed(error: Exception, kind: type[Message]) -> status_pb2.Status:
    """Give the status of an error; a bug is logged, and tells the caller nothing."""
    if isinstance(error, BanditError):
        return status.to_status(error)
    log.error("unexpected error in %s", kind.DESCRIPTOR.name, exc_info=error)
    return status.internal()


def _check_deadline(context: grpc.ServicerContext) -> None:
    remaining: float | None = context.time_remaining()
    if remaining is not None and remaining <= 0:
        raise DeadlineError("the deadline passed before the work began")
