"""The server that is fuzzed: its byte-level handlers, called without a socket between."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from unittest.mock import patch

import grpc
import psutil
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from bandit import spec_file
from server import convert
from server.access import DEFAULT_TENANT
from server.app import Server
from server.audit import audit
from server.pb import bandit_pb2 as pb
from server.pb import bandit_pb2_grpc as stubs
from server.settings import Settings
from server.status import STATUS
from sims import worlds
from tests.server.harness import SPEC, decide_request, reward_request

DECLARED = {code for code, _ in STATUS.values()} | {grpc.StatusCode.OK}
REQUESTS: dict[str, type[Message]] = {
    f"{service.full_name}/{method.name}": getattr(pb, method.input_type.name)
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
EXAMPLES = sorted(p for p in worlds.EXAMPLES.glob("*.toml") if not p.stem.endswith("_world"))


def _edits() -> dict[type[Message], list[Message]]:
    """Give valid edits; those of a request id of its own are made once."""
    why: dict[str, Any] = {"reason": "a test", "override": "a test"}
    mask = FieldMask(paths=["policy.exploration", "actions.exclusions"])
    spec = ParseDict({**SPEC, "name": "moving1"}, pb.ExperimentSpec())
    return {
        pb.UpdateExperimentRequest: [
            pb.UpdateExperimentRequest(name="target", spec=spec, request_id="u0", **why),
            pb.UpdateExperimentRequest(
                name="moving1", spec=spec, update_mask=mask, request_id="u1", **why
            ),
            pb.UpdateExperimentRequest(name="draft", spec=spec, request_id="u2", **why),
        ],
        pb.AddLevelRequest: [
            pb.AddLevelRequest(
                name=name, factor="variant", level=pb.Level(name="poem"), request_id="a", **why
            )
            for name in ("moving0", "draft", "paused")
        ],
        pb.RetireLevelRequest: [
            pb.RetireLevelRequest(
                name=name, factor="variant", level="long", request_id="r", reason="a test"
            )
            for name in ("target", "moving2", "ended")
        ],
    }


class _Ended(Exception):  # noqa: N818  what ``abort`` raises is no error
    """What grpc raises to leave a handler that aborts."""


class Call:
    """The part of a call that handlers see."""

    def __init__(self) -> None:
        self.code = grpc.StatusCode.OK

    def abort(self, code: grpc.StatusCode, _details: str) -> None:
        self.code = code
        raise _Ended

    def set_trailing_metadata(self, _metadata: object) -> None:
        """Nobody reads it."""

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def time_remaining(self) -> None:
        return None

    def is_active(self) -> bool:
        return True


class Found(Counter[str]):
    """How many inputs ended with which status; and the slowest of them."""

    slowest = 0.0
    slowest_what = ""

    def note(self, what: str, seconds: float) -> None:
        """Remember the slowest."""
        if seconds > self.slowest:
            self.slowest, self.slowest_what = seconds, what


class Target:
    """A server with experiments to decide on.

    Parameters
    ----------
    folder
        Where its database goes.

    Attributes
    ----------
    words
        Texts that mean something, by field.
    seeds
        Requests that are valid, by method.
    """

    def __init__(self, folder: Path) -> None:
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}
        self.found = Found()
        settings = Settings(
            database=f"sqlite:///{folder / 'bandit.db'}", port=0, max_experiments=40, grace=5.0
        )
        with patch("server.transport.grpc.server", self._recorded(grpc.server)):
            self.server = Server(settings)
        self.server.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.server.port}")
        self._decisions = stubs.DecisionServiceStub(self.channel)
        self._experiments = stubs.ExperimentServiceStub(self.channel)
        self._prepare()
        self._before = psutil.Process().memory_info().rss

    def _recorded(self, make: Callable[..., grpc.Server]) -> Callable[..., grpc.Server]:
        """Keep the handlers that a server is given."""

        def made(*args: Any, **kwargs: Any) -> grpc.Server:  # noqa: ANN401
            server = make(*args, **kwargs)
            add = server.add_registered_method_handlers

            def keep(service: str, handlers: Mapping[str, grpc.RpcMethodHandler]) -> None:
                self._handlers |= {f"{service}/{name}": h for name, h in handlers.items()}
                add(service, handlers)

            server.add_registered_method_handlers = keep  # type: ignore[method-assign]
            return server

        return made

    def _prepare(self) -> None:
        names = ["target", "paused", "ended", "draft", "shown", *(f"moving{i}" for i in range(4))]
        for name in names:
            spec = ParseDict({**SPEC, "name": name}, pb.ExperimentSpec())
            if name == "shown":
                spec.outcome.exposure = "confirmed"
            create = pb.CreateExperimentRequest(spec=spec, request_id=f"create {name}")
            self._experiments.CreateExperiment(create)
            if name != "draft":
                self._experiments.StartExperiment(
                    pb.StartExperimentRequest(name=name, override="a test")
                )
        self._experiments.ArchiveExperiment(pb.ArchiveExperimentRequest(name="ended"))
        self._experiments.PauseExperiment(pb.PauseExperimentRequest(name="paused"))
        ids = []
        for i in range(4):
            request = decide_request("target", f"r{i}")
            ids.append(self._decisions.Decide(request).decision.decision_id)
        page = self._experiments.ListExperiments(pb.ListExperimentsRequest(page_size=1))
        texts = ["target", "r1", ids[0], "age", "short", "email", "now", "click", "buy"]
        self.words = {
            "": [*texts, "segment", "number", "Europe/Berlin", "18:30", "sum", "context:variant"],
            "experiment": [*["target"] * 3, "shown", "paused", "draft", "ended", "moving0"],
            "name": ["target", "moving0", "moving1", "moving2", "moving3", "click", "buy", "fresh"],
            "request_id": [f"r{i}" for i in range(8)],
            "event_id": [f"e{i}" for i in range(8)],
            "decision_id": ids,
            "page_token": [page.next_page_token],
            "key": ["age", "segment", "has_app", "hour"],
            "factor": ["variant", "channel", "slot"],
            "level": ["short", "long", "email", "push", "now", "fresh"],
            "paths": ["description", "policy.exploration", "actions.variants", "groups", "*"],
            "kind": ["number", "category", "flag", "cyclic", "thompson_sampling", "softmax"],
            "time_zone": ["Europe/Berlin", "UTC", "Pacific/Chatham", "../etc/passwd"],
        }
        self.seeds = self._seeds(ids, page.next_page_token)

    def _seeds(self, ids: list[str], token: str) -> dict[str, list[Message]]:
        """Give valid requests for the RPCs that have something to refuse; others start bare."""
        rules = [{"variant": "long", "reason": "quiet"}]
        values = {
            "age": {"number": 41},
            "segment": {"category": "new"},
            "has_app": {"flag": True},
            "hour": {"number": 3},
        }
        decide = decide_request(
            "target", "fresh", context={"values": values}, exclusions=rules, time_zone="UTC"
        )
        rank = pb.RankRequest.FromString(decide.SerializeToString())
        rank.experiment, rank.count = "shown", 3
        reward = reward_request("target", "fresh", ids[0])
        reward.occurred_at.GetCurrentTime()
        specs = [
            convert.spec_message(spec_file.parse(path.read_text(), "toml")) for path in EXAMPLES
        ]
        known: dict[type[Message], list[Message]] = {
            pb.DecideRequest: [decide],
            pb.BatchDecideRequest: [pb.BatchDecideRequest(requests=[decide, decide])],
            pb.RankRequest: [rank],
            pb.RecordRewardRequest: [reward],
            pb.BatchRecordRewardsRequest: [pb.BatchRecordRewardsRequest(events=[reward, reward])],
            pb.GetDecisionRequest: [pb.GetDecisionRequest(experiment="target", decision_id=ids[0])],
            pb.CreateExperimentRequest: [
                pb.CreateExperimentRequest(spec=spec, request_id="fresh") for spec in specs
            ],
            **_edits(),
            pb.ListExperimentsRequest: [pb.ListExperimentsRequest(page_size=2, page_token=token)],
        }
        return {method: known.get(kind, [kind()]) for method, kind in REQUESTS.items()}

    def handle(self, method: str, data: bytes) -> grpc.StatusCode:
        """Give bytes to a method's handler; count and give the status."""
        call = Call()
        began = time.perf_counter()
        with suppress(_Ended):
            self._handlers[method].unary_unary(data, call)
        self._note(method, call.code, time.perf_counter() - began)
        return call.code

    def send(self, method: str, data: bytes) -> grpc.StatusCode:
        """Send bytes to a method over the socket; count and give the status."""
        began = time.perf_counter()
        code = grpc.StatusCode.OK
        try:
            self.channel.unary_unary(f"/{method}")(data, timeout=60)
        except grpc.RpcError as error:
            code = error.code()
        self._note(method, code, time.perf_counter() - began)
        return code

    def _note(self, what: str, code: grpc.StatusCode, seconds: float) -> None:
        self.found[code.name] += 1
        self.found.note(what, seconds)

    def grown(self) -> float:
        """Give the megabytes that the process has grown by since it was ready."""
        return (psutil.Process().memory_info().rss - self._before) / 2**20

    def problems(self) -> list[str]:
        """Audit every log: whatever was sent, all that is stored follows from it."""
        found = []
        with self.server.database.reader.connect() as connection:
            for live in self.server.live.entries():
                found += audit(connection, live).problems
        again = self._decisions.Decide(decide_request("target", "r0"), timeout=60).decision
        if not again.repeated_request:
            found.append("a request id was forgotten")
        return found

    def live(self, name: str) -> Any:  # noqa: ANN401
        """Give an experiment as the server holds it."""
        return self.server.live.find(DEFAULT_TENANT, name)

    def close(self) -> None:
        """End the server."""
        self.channel.close()
        self.server.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
