"""gRPC around the plain RPC functions: bytes in, bytes out, errors as rich statuses.

Messages are parsed here, not by grpcio, so that bytes that are no message get a declared
status like every other bad input.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from bandit.errors import BanditError, DeadlineError, UnavailableError
from server import convert, status
from server.pb import bandit_pb2 as pb
from server.service import Caller, DecisionService, ExperimentService
from server.settings import Settings

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

    Raises
    ------
    UnavailableError
        If the address can not be bound.
    """

    def __init__(
        self, settings: Settings, decisions: DecisionService, experiments: ExperimentService
    ) -> None:
        self._health = health.HealthServicer()
        self._server = grpc.server(
            ThreadPoolExecutor(settings.threads, thread_name_prefix="rpc"),
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.max_metadata_size", 16_384),
            ],
        )
        services = {"DecisionService": decisions, "ExperimentService": experiments}
        for name, service in services.items():
            descriptor = pb.DESCRIPTOR.services_by_name[name]
            handlers = {
                method.name: _handler(
                    getattr(service, method.name), getattr(pb, method.input_type.name)
                )
                for method in descriptor.methods
            }
            generic = grpc.method_handlers_generic_handler(descriptor.full_name, handlers)
            self._server.add_generic_rpc_handlers((generic,))
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


def _handler(method: Method, kind: type[Message]) -> "grpc.RpcMethodHandler[bytes, bytes]":
    def call(data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            _check_deadline(context)
            answer = method(convert.parse(kind, data), Caller(DEFAULT_TENANT))
            return answer.SerializeToString()
        except BanditError as error:
            failed = status.to_status(error)
        except Exception:
            log.exception("unexpected error in %s", kind.DESCRIPTOR.name)
            failed = status.internal()
        _end(context, failed)
        return b""

    return grpc.unary_unary_rpc_method_handler(call)


def _check_deadline(context: grpc.ServicerContext) -> None:
    remaining: float | None = context.time_remaining()
    if remaining is not None and remaining <= 0:
        raise DeadlineError("the deadline passed before the work began")


def _end(context: grpc.ServicerContext, failed: status_pb2.Status) -> None:
    """End the RPC with a rich status."""
    context.set_trailing_metadata(((status.DETAILS_KEY, failed.SerializeToString()),))
    context.abort(status.CODES[failed.code], failed.message)
