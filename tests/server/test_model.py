"""A server against a plain model of what it promises, under any sequence of calls.

The model holds dicts and a few lines of arithmetic. It does not choose actions: it takes the
first answer to a request as given, and demands it ever after.
"""

import math
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from server.audit import audit
from server.pb import bandit_pb2 as pb
from tests.server.harness import SECOND, Clock, Peer, decide_request, refusal, reward_request

WINDOW, EARLY = 100, 10
NOBODY = "00000000-0000-7000-8000-000000000000"
WEIGHTS = {"click": 1.0, "buy": 0.5, "unsubscribe": -3.0}
REWARDS = [
    {"name": "click"},
    {"name": "buy", "bounds": [0, 100], "weight": 0.5, "terminal": True},
    {"name": "unsubscribe", "weight": -3.0},
]
EXPERIMENTS = {"one": ("sum", "default"), "two": ("last", "ignore"), "three": ("max", "default")}

NAMES = st.sampled_from(sorted(EXPERIMENTS))
REQUESTS = st.integers(0, 12).map("r{}".format)
CUSTOMERS = st.integers(0, 2).map("c{}".format)
EVENTS = st.integers(0, 15).map("e{}".format)
VALUES = st.sampled_from([0.0, 0.25, 1.0, 40.0, -1.0, 101.0, math.nan, math.inf])
OFFSETS = st.sampled_from([-11, -10, 0, 1, 50, 100, 101])


@dataclass
class Told:
    """A recorded event."""

    decision_id: str
    name: str
    value: float
    at: int
    late: bool


@dataclass
class Made:
    """A decision and what became of it."""

    answer: pb.Decision
    customer: str
    at: int
    closed: bool = False
    outcome: float | None = None


@dataclass
class Model:
    """An experiment."""

    state: str = "draft"
    requests: dict[str, Made] = field(default_factory=dict)
    events: dict[str, Told] = field(default_factory=dict)

    @property
    def by_id(self) -> dict[str, Made]:
        return {made.answer.decision_id: made for made in self.requests.values()}

    @property
    def length(self) -> int:
        outcomes = sum(made.outcome is not None for made in self.requests.values())
        return len(self.requests) + len(self.events) + outcomes

    def refuses(self, asked: list[tuple[str, str]]) -> bool:
        """Whether nothing is decided in this state, and not all of this was decided before."""
        before = [(request, made.customer) for request, made in self.requests.items()]
        return self.state in ("draft", "archived") and not all(one in before for one in asked)

    def close(self, name: str, made: Made) -> None:
        """Settle one decision: the rule of the experiment, in a few lines."""
        aggregation, silence = EXPERIMENTS[name]
        told = [e for e in self.events.values() if e.decision_id == made.answer.decision_id]
        counted = sorted((e for e in told if not e.late), key=lambda e: e.at)
        values = [WEIGHTS[e.name] * e.value for e in counted]
        made.closed = True
        if not values:
            made.outcome = 0.0 if silence == "default" else None
        elif aggregation == "sum":
            made.outcome = math.fsum(values)
        else:
            made.outcome = values[-1] if aggregation == "last" else max(values)


class Campaigns(RuleBasedStateMachine):
    """Calls in any order, and now and then a restart."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.clock = Clock()
        self.peer = Peer(self.folder, clock=self.clock)
        self.models: dict[str, Model] = {}

    @rule(name=NAMES)
    def create(self, name: str) -> None:
        aggregation, silence = EXPERIMENTS[name]
        outcome = {
            "window": WINDOW,
            "early": EARLY,
            "rewards": REWARDS,
            "aggregation": aggregation,
            "silence": silence,
        }
        groups = {"random": 0.3, "baseline": 0.2, "no_contact": 0.1}
        baseline = {"variant": "long", "channel": "email"}
        publishing = {"outcomes": 3, "seconds": 60}
        self.peer.create(
            name,
            start=False,
            outcome=outcome,
            groups=groups,
            baseline=baseline,
            publishing=publishing,
        )
        self.models.setdefault(name, Model())

    @rule(name=NAMES, to=st.sampled_from(["running", "running", "paused"]))
    def move(self, name: str, to: str) -> None:
        model = self.models.get(name)
        kind, method = {
            "running": (pb.StartExperimentRequest, self.peer.experiments.StartExperiment),
            "paused": (pb.PauseExperimentRequest, self.peer.experiments.PauseExperiment),
        }[to]
        if model is None:
            assert refusal(method, kind(name=name)).code is grpc.StatusCode.NOT_FOUND
        elif (model.state, to) == ("draft", "paused") or model.state == "archived":
            found = refusal(method, kind(name=name))
            assert found.code is grpc.StatusCode.FAILED_PRECONDITION
        else:
            method(kind(name=name))
            model.state = to

    @rule()
    def archive(self) -> None:
        """End one of the experiments, so that the others go on."""
        kind, method = pb.ArchiveExperimentRequest, self.peer.experiments.ArchiveExperiment
        if "three" not in self.models:
            assert refusal(method, kind(name="three")).code is grpc.StatusCode.NOT_FOUND
        else:
            method(kind(name="three"))
            self.models["three"].state = "archived"

    @rule(name=NAMES, request=REQUESTS, customer=CUSTOMERS, batch=st.booleans())
    def decide(self, name: str, request: str, customer: str, *, batch: bool) -> None:
        model = self.models.get(name)
        asked = decide_request(name, request, customer_id=customer, include_propensities=True)

        def ask() -> pb.Decision:
            if not batch:
                return self.peer.decisions.Decide(asked).decision
            message = pb.BatchDecideRequest(requests=[asked])
            return self.peer.decisions.BatchDecide(message).decisions[0]

        if model is None:
            assert refusal(ask).code is grpc.StatusCode.NOT_FOUND
        elif model.refuses([(request, customer)]):
            assert refusal(ask).code is grpc.StatusCode.FAILED_PRECONDITION
        elif request not in model.requests:
            answer = ask()
            self.check_fresh(model, answer)
            model.requests[request] = Made(answer, customer, self.clock.now)
        elif model.requests[request].customer != customer:
            assert refusal(ask).code is grpc.StatusCode.ALREADY_EXISTS
        else:
            answer = ask()
            assert answer.repeated_request
            answer.repeated_request = False
            assert answer == model.requests[request].answer

    @rule(name=NAMES, asked=st.lists(st.tuples(REQUESTS, CUSTOMERS), min_size=2, max_size=5))
    def decide_many(self, name: str, asked: list[tuple[str, str]]) -> None:
        """All of a batch, or nothing; one decision for an id that stands twice."""
        model = self.models.get(name)
        message = pb.BatchDecideRequest(
            requests=[
                decide_request(name, request, customer_id=customer, include_propensities=True)
                for request, customer in asked
            ]
        )
        customers = {r: made.customer for r, made in model.requests.items()} if model else {}
        first = dict(reversed(asked)) | customers
        if model is None:
            code = refusal(self.peer.decisions.BatchDecide, message).code
            assert code is grpc.StatusCode.NOT_FOUND
        elif model.refuses(asked):
            code = refusal(self.peer.decisions.BatchDecide, message).code
            assert code is grpc.StatusCode.FAILED_PRECONDITION
        elif any(first[request] != customer for request, customer in asked):
            code = refusal(self.peer.decisions.BatchDecide, message).code
            assert code is grpc.StatusCode.ALREADY_EXISTS
        else:
            answers = self.peer.decisions.BatchDecide(message).decisions
            for (request, customer), answer in zip(asked, answers, strict=True):
                if request not in model.requests:
                    self.check_fresh(model, answer)
                    model.requests[request] = Made(answer, customer, self.clock.now)
                else:
                    assert answer.repeated_request
                    answer.repeated_request = False
                    assert answer == model.requests[request].answer

    @rule(size=st.integers(0, 3))
    def list_all(self, size: int) -> None:
        found, token = [], ""
        while True:
            request = pb.ListExperimentsRequest(page_size=size, page_token=token)
            page = self.peer.experiments.ListExperiments(request)
            found += [(e.spec.name, pb.State.Name(e.state), e.log_length) for e in page.experiments]
            token = page.next_page_token
            if not token:
                break
        assert found == [
            (name, f"STATE_{model.state.upper()}", model.length)
            for name, model in sorted(self.models.items())
        ]

    @rule(name=NAMES, which=st.integers(0, 15))
    def get(self, name: str, which: int) -> None:
        model = self.models.get(name)
        made = list(model.requests.values()) if model else []
        if which < len(made):
            self.check_decision(name, model, made[which])
        else:
            assert refusal(self.peer.get, name, NOBODY).code is grpc.StatusCode.NOT_FOUND

    def check_fresh(self, model: Model, answer: pb.Decision) -> None:
        assert not answer.repeated_request
        assert answer.sequence == model.length + 1
        if answer.group == pb.GROUP_NO_CONTACT:
            assert not answer.HasField("action")
        elif model.state == "paused":
            assert (answer.reason, answer.propensity) == (pb.REASON_PAUSED, 1.0)
        else:
            chosen = answer.propensities[answer.action.index].propensity
            assert answer.propensity == chosen > 0
            assert math.isclose(sum(p.propensity for p in answer.propensities), 1.0)

    @rule(
        name=NAMES,
        which=st.integers(0, 15),
        event=EVENTS,
        kind=st.sampled_from([*WEIGHTS, "unheard of"]),
        value=VALUES,
        offset=OFFSETS,
    )
    def reward(
        self, name: str, which: int, event: str, kind: str, value: float, offset: int
    ) -> None:
        model = self.models.get(name)
        made = list(model.requests.values()) if model else []
        one = made[which] if which < len(made) else None
        decision_id = one.answer.decision_id if one else NOBODY
        at = (one.at if one else self.clock.now) + offset * SECOND
        request = reward_request(name, event, decision_id, name=kind, value=value)
        request.occurred_at.FromMicroseconds(at)
        high = 100.0 if kind == "buy" else 1.0
        known = model.events.get(event) if model else None

        def tell() -> pb.RecordRewardResponse:
            return self.peer.decisions.RecordReward(request)

        if model is None:
            assert refusal(tell).code is grpc.StatusCode.NOT_FOUND
        elif kind not in WEIGHTS or not 0 <= value <= high:
            assert refusal(tell).code is grpc.StatusCode.INVALID_ARGUMENT
        elif one is None:
            assert refusal(tell).code is grpc.StatusCode.NOT_FOUND
        elif known is not None:
            if (known.decision_id, known.name, known.value) == (decision_id, kind, value):
                assert tell().disposition == pb.DISPOSITION_DUPLICATE
            else:
                assert refusal(tell).code is grpc.StatusCode.ALREADY_EXISTS
        else:
            late = one.closed or not -EARLY <= offset <= WINDOW
            expected = pb.DISPOSITION_LATE if late else pb.DISPOSITION_RECORDED
            answer = tell()
            assert (answer.disposition, answer.sequence) == (expected, model.length + 1)
            model.events[event] = Told(decision_id, kind, value, at, late)
            if kind == "buy" and not late:
                model.close(name, one)

    @rule(seconds=st.sampled_from([1, 30, 99, 100, 1_000]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(name=NAMES, flush=st.booleans())
    def learn(self, name: str, *, flush: bool) -> None:
        model = self.models.get(name)
        if model is None:
            return
        self.peer.learn(name, flush=flush)
        for made in model.requests.values():
            if not made.closed and made.at + WINDOW * SECOND <= self.clock.now:
                model.close(name, made)

    @rule()
    def restart(self) -> None:
        self.peer.restart()

    @invariant()
    def nothing_more_and_nothing_less_is_logged(self) -> None:
        for name, model in getattr(self, "models", {}).items():
            found = self.peer.experiment(name)
            assert found.log_length == model.length
            assert pb.State.Name(found.state) == f"STATE_{model.state.upper()}"

    def teardown(self) -> None:
        if not hasattr(self, "peer"):
            return
        try:
            for name, model in self.models.items():
                self.learn(name, flush=True)
                self.check_decisions(name, model)
                self.check_report(name, model)
                self.check_audit(name, model)
        finally:
            self.peer.stop()
            shutil.rmtree(self.folder)

    def check_decisions(self, name: str, model: Model) -> None:
        for made in model.requests.values():
            self.check_decision(name, model, made)

    def check_decision(self, name: str, model: Model, made: Made) -> None:
        one = made.answer.decision_id
        found = self.peer.get(name, one)
        outcome = found.outcome if found.HasField("outcome") else None
        told = {
            event: (e.name, e.value, e.late)
            for event, e in model.events.items()
            if e.decision_id == one
        }
        assert outcome == made.outcome
        assert {e.event_id: (e.name, e.value, e.late) for e in found.events} == told
        found.decision.ClearField("removed")
        assert found.decision == made.answer

    def check_report(self, name: str, model: Model) -> None:
        report = self.peer.report(name)
        assert sum(line.decisions for line in report.groups) == len(model.requests)
        assert report.reward_events == len(model.events)
        assert report.late_events == sum(e.late for e in model.events.values())
        assert report.open_decisions == sum(not m.closed for m in model.requests.values())
        learned = [
            m
            for m in model.requests.values()
            if m.outcome is not None
            and m.answer.reason in (pb.REASON_POLICY, pb.REASON_RANDOM_GROUP)
        ]
        assert report.experiment.snapshot.outcomes == len(learned)

    def check_audit(self, name: str, model: Model) -> None:
        with self.peer.server.database.reader.connect() as connection:
            found = audit(connection, self.peer.live(name))
        assert found.problems == []
        assert found.entries == model.length
        assert found.repeated == found.decisions == len(model.requests)


Campaigns.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=40,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking would take minutes
)
TestCampaigns = Campaigns.TestCase
