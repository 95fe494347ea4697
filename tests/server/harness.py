"""A server in this process, spoken to over a real loopback channel."""

import secrets
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
from google.protobuf.json_format import ParseDict
from google.rpc import error_details_pb2, status_pb2

from server import app
from server.access import DEFAULT_TENANT
from server.app import Server
from server.live import LiveExperiment
from server.pb import bandit_pb2 as pb
from server.pb import bandit_pb2_grpc as stubs
from server.settings import Settings

START = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
SECOND = 1_000_000

Store = Callable[[Path], str]
"""Makes a new database, in this folder if it is a file; gives its URL."""

SPEC: dict[str, Any] = {
    "name": "welcome",
    "actions": {
        "variants": [{"name": "short"}, {"name": "long"}],
        "channels": [{"name": "email"}, {"name": "push"}],
    },
    "context": [
        {"name": "age", "kind": "number", "bounds": [18, 90]},
        {"name": "segment", "kind": "category", "levels": ["new", "regular"]},
        {"name": "has_app", "kind": "flag"},
        {"name": "hour", "kind": "cyclic", "period": 24},
    ],
    "outcome": {
        "window": 3_600,
        "rewards": [
            {"name": "click"},
            {"name": "buy", "bounds": [0, 100], "weight": 0.5, "terminal": True},
        ],
    },
    "fallback": {"variant": "short", "channel": "email"},
}
"""An experiment with a field of every kind, a plain and a terminal reward, and a fallback."""


app.warm_up = cache(app.warm_up)  # once in a process is enough, however many servers it runs


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)


def eventually(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until a condition holds; fail if it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this did not happen in time"
        time.sleep(0.002)


class Refusal(NamedTuple):
    """How a call ended that was refused."""

    code: grpc.StatusCode
    message: str
    reason: str
    field: str
    retry: bool


def refusal(call: Callable[..., Any], *args: object, **kwargs: object) -> Refusal:
    """Make a call that must be refused, and read the rich status."""
    try:
        answer = call(*args, **kwargs)
    except grpc.RpcError as error:
        return read_refusal(error)
    raise AssertionError(f"this should have been refused: {answer}")


def read_refusal(error: grpc.RpcError) -> Refusal:
    """Read the details of a status; without any, reason and field are empty."""
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    has_retry = False
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
        has_retry |= detail.Unpack(retry)
    field = bad.field_violations[0].field if bad.field_violations else ""
    return Refusal(error.code(), error.details(), info.reason, field, has_retry)


class Peer:
    """A server on a database, SQLite in a folder unless told otherwise, and a channel to it."""

    def __init__(self, folder: Path, *, clock: Clock | None = None, **settings: object) -> None:
        self.clock = clock
        settings.setdefault("database", f"sqlite:///{folder / 'bandit.db'}")
        settings.setdefault("gate", "off")  # test_gate.py has it on
        if not settings["database"].startswith("sqlite"):
            secret = settings["secret_file"] = folder / "bandit.db.secret"
            if not secret.exists():
                secret.write_text(secrets.token_hex(32))
        self.settings = Settings(port=0, grace=5.0, **settings)
        self.start()

    def start(self) -> None:
        kwargs = {} if self.clock is None else {"clock": self.clock}
        self.server = Server(self.settings, **kwargs)
        if self.clock is not None:  # it stands still: the test says when to learn
            self.server.learner.start = self.server.learner.stop = lambda: None
        self.server.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.server.port}")
        self.decisions = stubs.DecisionServiceStub(self.channel)
        self.experiments = stubs.ExperimentServiceStub(self.channel)

    def stop(self) -> None:
        self.channel.close()
        self.server.stop()

    def restart(self) -> None:
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def raw(self, method: str) -> Callable[..., bytes]:
        """Give a method that takes and answers bytes, such as ``DecisionService/Decide``."""
        return self.channel.unary_unary(f"/bandit.v1.{method}")

    def live(self, name: str) -> LiveExperiment:
        return self.server.live.find(DEFAULT_TENANT, name)

    def create(self, name: str, *, start: bool = True, **changes: object) -> str:
        """Create an experiment like ``SPEC``, with changes, and start it; give its name."""
        spec = ParseDict({**SPEC, "name": name, **changes}, pb.ExperimentSpec())
        self.experiments.CreateExperiment(
            pb.CreateExperimentRequest(spec=spec, request_id=f"create {name}")
        )
        if start:
            self.experiments.StartExperiment(pb.StartExperimentRequest(name=name))
        return name

    def decide(self, name: str, request_id: str, **fields: object) -> pb.Decision:
        return self.decisions.Decide(decide_request(name, request_id, **fields)).decision

    def reward(
        self,
        experiment: str,
        event_id: str,
        decision_id: str,
        *,
        name: str = "click",
        value: float = 1.0,
    ) -> pb.RecordRewardResponse:
        request = reward_request(experiment, event_id, decision_id, name=name, value=value)
        return self.decisions.RecordReward(request)

    def get(self, name: str, decision_id: str) -> pb.GetDecisionResponse:
        request = pb.GetDecisionRequest(experiment=name, decision_id=decision_id)
        return self.decisions.GetDecision(request)

    def experiment(self, name: str) -> pb.Experiment:
        return self.experiments.GetExperiment(pb.GetExperimentRequest(name=name)).experiment

    def report(self, name: str) -> pb.GetReportResponse:
        return self.experiments.GetReport(pb.GetReportRequest(name=name))

    def log_length(self, name: str) -> int:
        return self.experiment(name).log_length

    def learn(self, name: str, *, flush: bool = True) -> None:
        """Settle, fold and publish all that is due; only with a clock that stands still."""
        while self.server.learner.step(self.live(name), flush=flush):
            pass


def decide_request(name: str, request_id: str, **fields: object) -> pb.DecideRequest:
    """Ask for the customer of the same name as the request, aged 41, unless told otherwise."""
    data = {"customer_id": f"customer of {request_id}", **fields}
    data.setdefault("context", {"values": {"age": {"number": 41}}})
    return ParseDict({"experiment": name, "request_id": request_id, **data}, pb.DecideRequest())


def reward_request(
    experiment: str, event_id: str, decision_id: str, *, name: str = "click", value: float = 1.0
) -> pb.RecordRewardRequest:
    """Report a click of value 1, unless told otherwise."""
    return pb.RecordRewardRequest(
        experiment=experiment, event_id=event_id, decision_id=decision_id, name=name, value=value
    )
