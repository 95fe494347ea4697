"""Tokens, certificates and callers for the tests of access."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from server import tokens
from server.clock import system_clock
from server.pb import bandit_pb2 as pb
from server.tokens import Role
from tests.server.harness import SPEC, Peer

METHODS = {
    f"{service.name}/{method.name}": method
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Every RPC of the contract by service and name."""


def make_token(
    peer: Peer,
    roles: Iterable[Role] = (Role.ADMIN,),
    *,
    tenant: str = "default",
    name: str = "tester",
    expires_at: int | None = None,
) -> tuple[int, str]:
    """Make a token on a running server's database, and let it take notice at once."""
    number, token = peer.server.writer.call(
        lambda c: tokens.create(
            c,
            name=name,
            tenant=tenant,
            roles=roles,
            who="test",
            now=system_clock(),
            expires_at=expires_at,
        )
    )
    peer.server._tokens.read()
    return number, token


class Bearer:
    """Calls any RPC of a server with a token."""

    def __init__(self, peer: Peer, token: str = "") -> None:
        self._peer = peer
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def call(self, method: str, request: Message) -> Any:  # noqa: ANN401  a message
        """Call a method by its name, such as ``DecisionService/Decide``."""
        return self.method(method)(request, metadata=self.metadata, timeout=20)

    def method(self, method: str) -> Callable[..., Any]:
        service, _, name = method.partition("/")
        stub = self._peer.decisions if service == "DecisionService" else self._peer.experiments
        return getattr(stub, name)


def create(bearer: Bearer, name: str) -> None:
    """Create and start an experiment like ``SPEC``."""
    spec = ParseDict({**SPEC, "name": name}, pb.ExperimentSpec())
    request = pb.CreateExperimentRequest(spec=spec, request_id=f"create {name}")
    bearer.call("ExperimentService/CreateExperiment", request)
    bearer.call("ExperimentService/StartExperiment", pb.StartExperimentRequest(name=name))


def empty(method: str) -> Message:
    """Give an empty request of a method."""
    return getattr(pb, METHODS[method].input_type.name)()


def write(folder: Path, **files: bytes) -> dict[str, Path]:
    """Write files; give their paths by name."""
    paths = {}
    for name, content in files.items():
        paths[name] = folder / f"{name}.pem"
        paths[name].write_bytes(content)
    return paths


def code(call: Callable[..., Any], *args: object, **kwargs: object) -> grpc.StatusCode:
    """Give the code with which a call ends."""
    try:
        call(*args, **kwargs)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK
