"""A server against a plain model of what it promises, under any sequence of calls.

The model holds dicts and a few lines of arithmetic. It does not choose actions: it takes the
first answer to a request as given, and demands it ever after.
"""

import functools
import math
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from bandit import encoding
from bandit.warm_up import warm_up
from server import app, catalogue
from server.audit import audit
from server.pb import bandit_pb2 as pb
from tests.server.harness import (
    SECOND,
    Clock,
    Peer,
    Store,
    decide_request,
    refusal,
    reward_request,
)

WINDOW, EARLY, EXPOSURE, LATE = 100, 10, 150, 60
NOBODY = "00000000-0000-7000-8000-000000000000"
WEIGHTS = {"click": 1.0, "buy": 0.5, "unsubscribe": -3.0}
REWARDS = [
    {"name": "click"},
    {"name": "buy", "bounds": [-50, 100], "weight": 0.5, "terminal": True},
    {"name": "unsubscribe", "weight": -3.0},
]
SHOWN = {"exposure": "confirmed", "exposure_window": EXPOSURE}
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "one": {"aggregation": "sum", "silence": "default"},
    "two": {"aggregation": "last", "silence": "ignore", "late": "correct", "late_window": LATE},
    "three": {"aggregation": "max", "silence": "default", **SHOWN},
    "four": {"aggregation": "mean", "silence": "default", "late": "correct", **SHOWN},
}
POLICIES = {"two": {"half_life": 300}, "four": {"half_life": 3_600}}

PICKS = st.sampled_from(["main", "main", "main", "main", "main", "other"])
REQUESTS = st.integers(0, 12).map("r{}".format)
CUSTOMERS = st.integers(0, 2).map("c{}".format)
EVENTS = st.integers(0, 15).map("e{}".format)
KINDS = st.sampled_from([*["click", "buy", "unsubscribe"] * 4, "unheard of"])
VALUES = st.sampled_from([*[0.0, 0.25, 1.0] * 6, 40.0, -1.0, -50.0, 101.0, math.nan, math.inf])
WHICH = st.integers(0, 15)
OFFSETS = st.sampled_from([-21, -11, -10, *[0, 1, 20, 50] * 3, 100, 101, 160, 161, 240])
SINCE = st.sampled_from([None, 50, 150, 1_100])


@dataclass
class Told:
    """A recorded event."""

    decision_id: str
    name: str
    value: float
    at: int
    late: bool
    seq: int
    received: int

    @property
    def worth(self) -> float:
        return WEIGHTS[self.name] * self.value


@dataclass
class Made:
    """A decision and what became of it."""

    answer: pb.Decision
    customer: str
    at: int
    ranked: int = 0  # places asked for; 0: a decision alone
    closed: bool = False
    shown_at: int | None = None
    due_at: int | None = None
    outcomes: list[tuple[int, float, int]] = field(default_factory=list)

    @property
    def outcome(self) -> float | None:
        return self.outcomes[-1][1] if self.outcomes else None

    @property
    def is_learned(self) -> bool:
        reasons = (pb.REASON_POLICY, pb.REASON_RANDOM_GROUP)
        return self.answer.reason in reasons and self.answer.HasField("action")


@dataclass
class LeftOut:
    """What a rollback said."""

    seq: int
    after: int
    reporter: bool
    since: int

    def has(self, seq: int, at: int) -> bool:
        return self.after < seq < self.seq and at >= self.since


@dataclass
class Model:
    """An experiment: its log as dicts, and its rule in plain words."""

    name: str
    state: str = "draft"
    length: int = 0
    passed: int = 0
    requests: dict[str, Made] = field(default_factory=dict)
    events: dict[str, Told] = field(default_factory=dict)
    exposures: dict[str, tuple[str, bool]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rule = EXPERIMENTS[self.name]
        self.needs_exposure = "exposure" in self.rule
        self.may_correct = "late" in self.rule

    @property
    def by_id(self) -> dict[str, Made]:
        return {made.answer.decision_id: made for made in self.requests.values()}

    def pick(self, which: int) -> Made | None:
        """Give one of the decisions, or, rarely, none."""
        made = list(self.requests.values())
        return made[which % len(made)] if made and which < 15 else None

    def append(self) -> int:
        self.length += 1
        return self.length

    def start(self, made: Made) -> int | None:
        is_shown = not self.needs_exposure or not made.answer.HasField("action")
        return made.at if is_shown else made.shown_at

    def is_late(self, made: Made, at: int) -> bool:
        start = self.start(made)
        if made.closed:
            return True
        if start is None:  # it may be shown yet
            return not -2 * EARLY <= (at - made.at) / SECOND <= EXPOSURE + WINDOW
        return not -EARLY <= (at - start) / SECOND <= WINDOW

    def is_correction(self, made: Made, at: int) -> bool:
        start = self.start(made)
        if not self.may_correct or start is None:
            return False
        most = WINDOW + self.rule.get("late_window", math.inf)
        return -EARLY <= (at - start) / SECOND <= most

    def counted(self, made: Made, before: float = math.inf) -> list[Told]:
        """Give the events of an outcome at a place of the log, by the time they happened."""
        start = self.start(made)
        assert start is not None
        most = WINDOW
        if self.may_correct:
            most += self.rule.get("late_window", math.inf)
        mine = [
            e
            for e in self.events.values()
            if e.decision_id == made.answer.decision_id
            and e.seq < before
            and (self.may_correct or not e.late)
            and -EARLY <= (e.at - start) / SECOND <= most
        ]
        return sorted(mine, key=lambda e: (e.at, e.seq))

    def value(self, counted: list[Told]) -> float | None:
        worth = [e.worth for e in counted]
        if not worth:
            return 0.0 if self.rule["silence"] == "default" else None
        how = {"sum": math.fsum, "last": lambda w: w[-1], "max": max}
        how["mean"] = lambda w: math.fsum(w) / len(w)
        return how[self.rule["aggregation"]](worth)

    def settle(self, made: Made, now: int) -> None:
        """Close a decision, or compute its outcome again."""
        made.closed, made.due_at = True, None
        value = self.value(self.counted(made))
        if value is not None and value != made.outcome:
            made.outcomes.append((self.append(), value, now))

    def show(self, made: Made, at: int, now: int) -> None:
        made.shown_at = at
        if not self.needs_exposure:
            return
        ends = [e for e in self.counted(made) if e.name == "buy" and e.at <= at + WINDOW * SECOND]
        if ends:
            self.settle(made, now)
        else:
            made.due_at = at + WINDOW * SECOND

    def let_pass(self, now: int) -> None:
        """Settle what is due."""
        due = [m for m in self.requests.values() if m.due_at is not None and m.due_at <= now]
        for made in sorted(due, key=lambda m: (m.due_at, m.answer.sequence)):
            self.settle(made, now)
        period = (EXPOSURE if self.needs_exposure else WINDOW) * SECOND
        rows = [m for m in self.requests.values() if m.answer.sequence > self.passed]
        rows.sort(key=lambda m: m.answer.sequence)
        if not rows or (rows[0].at + period > now and rows[0].at <= now):
            return
        last = max((i for i, made in enumerate(rows) if made.at + period <= now), default=-1)
        for made in rows[: last + 1]:
            self.passed = made.answer.sequence
            if made.closed or made.due_at is not None:
                continue
            if self.start(made) is None:
                made.closed = True  # never shown
            elif self.needs_exposure and made.at + WINDOW * SECOND > now:
                made.due_at = made.at + WINDOW * SECOND
            else:
                self.settle(made, now)

    def lessons(self) -> list[tuple[int, float, float, Made]]:
        """Give what is to be learned: place, value, what it replaces or NaN, decision."""
        found = []
        for made in self.requests.values():
            before = math.nan
            for seq, logged, at in made.outcomes if made.is_learned else []:
                if any(o.has(seq, at) for o in self.left_out if not o.reporter):
                    break
                counted = self.counted(made, seq)
                gone = [
                    any(o.has(e.seq, e.received) for o in self.left_out if o.reporter)
                    for e in counted
                ]
                kept = [e for e, is_gone in zip(counted, gone, strict=True) if not is_gone]
                value = self.value(kept) if any(gone) else logged
                if value is not None and value != before and (kept or not any(gone)):
                    found.append((seq, value, before, made))
                    before = value
        return sorted(found, key=lambda lesson: lesson[0])


_compiled_once = functools.cache(warm_up)


class Campaigns(RuleBasedStateMachine):
    """Calls in any order, and now and then a restart."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store

    @initialize(names=st.permutations(sorted(EXPERIMENTS)), started=st.booleans())
    def begin(self, names: list[str], *, started: bool) -> None:
        self.names = dict(zip(["main", "other"], names, strict=False))
        self.folder = Path(tempfile.mkdtemp())
        (self.folder / "bandit.db.secret").write_text("the same in every run, so that it repeats")
        self.clock = Clock()
        app.warm_up = _compiled_once  # type: ignore[assignment]  starts are frequent here
        self.peer = Peer(self.folder, clock=self.clock, database=self.store(self.folder))
        self.models: dict[str, Model] = {}
        if started:  # else it takes a while until something can happen
            self._create(self.names["main"])
            self._move(self.names["main"], "running")

    @rule(pick=PICKS)
    def create(self, pick: str) -> None:
        self._create(self.names[pick])

    def _create(self, name: str) -> None:
        outcome = {"window": WINDOW, "early": EARLY, "rewards": REWARDS, **EXPERIMENTS[name]}
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
            policy=POLICIES.get(name, {}),
        )
        self.models.setdefault(name, Model(name))

    @rule(pick=PICKS, to=st.sampled_from(["running", "running", "paused"]))
    def move(self, pick: str, to: str) -> None:
        self._move(self.names[pick], to)

    def _move(self, name: str, to: str) -> None:
        model = self.models.get(name)
        kind, method = {
            "running": (pb.StartExperimentRequest, self.peer.experiments.StartExperiment),
            "paused": (pb.PauseExperimentRequest, self.peer.experiments.PauseExperiment),
        }[to]
        if model is None:
            assert refusal(method, kind(name=name)).code is grpc.StatusCode.NOT_FOUND
        elif (model.state, to) == ("draft", "paused"):
            found = refusal(method, kind(name=name))
            assert found.code is grpc.StatusCode.FAILED_PRECONDITION
        else:
            method(kind(name=name))
            model.state = to

    @rule(pick=PICKS, request=REQUESTS, customer=CUSTOMERS, batch=st.booleans())
    def decide(self, pick: str, request: str, customer: str, *, batch: bool) -> None:
        name = self.names[pick]
        model = self.models.get(name)
        asked = decide_request(name, request, customer_id=customer, include_propensities=True)

        def ask() -> pb.Decision:
            if not batch:
                return self.peer.decisions.Decide(asked).decision
            message = pb.BatchDecideRequest(requests=[asked])
            return self.peer.decisions.BatchDecide(message).decisions[0]

        if model is None:
            assert refusal(ask).code is grpc.StatusCode.NOT_FOUND
        elif model.state == "draft":
            assert refusal(ask).code is grpc.StatusCode.FAILED_PRECONDITION
        elif request not in model.requests:
            answer = ask()
            self.check_fresh(model, answer)
            model.requests[request] = Made(answer, customer, self.clock.now)
            model.append()
        elif (model.requests[request].customer, model.requests[request].ranked) != (customer, 0):
            assert refusal(ask).code is grpc.StatusCode.ALREADY_EXISTS
        else:
            answer = ask()
            assert answer.repeated_request
            answer.repeated_request = False
            assert answer == model.requests[request].answer

    @rule(pick=PICKS, request=REQUESTS, customer=CUSTOMERS, count=st.sampled_from([1, 2, 3, 5]))
    def rank(self, pick: str, request: str, customer: str, count: int) -> None:
        name = self.names[pick]
        model = self.models.get(name)
        asked = decide_request(name, request, customer_id=customer, include_propensities=True)
        message = pb.RankRequest.FromString(asked.SerializeToString())
        message.count = count

        def ask() -> list[pb.Decision]:
            return list(self.peer.decisions.Rank(message).decisions)

        known = model.requests.get(request) if model else None
        if model is None:
            assert refusal(ask).code is grpc.StatusCode.NOT_FOUND
        elif model.state == "draft" or (count > 1 and not model.needs_exposure):
            assert refusal(ask).code is grpc.StatusCode.FAILED_PRECONDITION
        elif known is None:
            for place, answer in enumerate(ask(), 1):
                self.check_fresh(model, answer)
                assert answer.request_id == (request if place == 1 else f"{request}#{place}")
                model.requests[answer.request_id] = Made(answer, customer, self.clock.now, count)
                model.append()
        elif (known.customer, known.ranked) != (customer, count):
            assert refusal(ask).code is grpc.StatusCode.ALREADY_EXISTS
        else:
            answers = ask()
            for answer in answers:
                assert answer.repeated_request
                answer.repeated_request = False
            stored = [
                made.answer
                for one, made in model.requests.items()
                if one == request or one.startswith(f"{request}#")
            ]
            assert answers == stored

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
        pick=PICKS,
        which=WHICH,
        event=EVENTS,
        kind=KINDS,
        value=VALUES,
        offset=OFFSETS,
    )
    def reward(
        self, pick: str, which: int, event: str, kind: str, value: float, offset: int
    ) -> None:
        name = self.names[pick]
        model = self.models.get(name)
        one = model.pick(which) if model else None
        decision_id = one.answer.decision_id if one else NOBODY
        at = (one.at if one else self.clock.now) + offset * SECOND
        request = reward_request(name, event, decision_id, name=kind, value=value)
        request.occurred_at.FromMicroseconds(at)
        low, high = (-50.0, 100.0) if kind == "buy" else (0.0, 1.0)
        known = model.events.get(event) if model else None

        def tell() -> pb.RecordRewardResponse:
            return self.peer.decisions.RecordReward(request)

        if model is None:
            assert refusal(tell).code is grpc.StatusCode.NOT_FOUND
        elif kind not in WEIGHTS or not low <= value <= high:
            assert refusal(tell).code is grpc.StatusCode.INVALID_ARGUMENT
        elif one is None:
            assert refusal(tell).code is grpc.StatusCode.NOT_FOUND
        elif known is not None:
            if (known.decision_id, known.name, known.value) == (decision_id, kind, value):
                assert tell().disposition == pb.DISPOSITION_DUPLICATE
            else:
                assert refusal(tell).code is grpc.StatusCode.ALREADY_EXISTS
        else:
            late = model.is_late(one, at)
            corrects = late and model.is_correction(one, at)
            expected = pb.DISPOSITION_LATE if late else pb.DISPOSITION_RECORDED
            if corrects:
                expected = pb.DISPOSITION_CORRECTION
            answer = tell()
            seq = model.append()
            assert (answer.disposition, answer.sequence) == (expected, seq)
            told = Told(decision_id, kind, value, at, late, seq, self.clock.now)
            model.events[event] = told
            ends = kind == "buy" and not late and model.start(one) is not None
            if ends or (corrects and one.closed):
                model.settle(one, self.clock.now)

    @rule(pick=PICKS, which=WHICH, event=EVENTS, offset=OFFSETS)
    def expose(self, pick: str, which: int, event: str, offset: int) -> None:
        name = self.names[pick]
        model = self.models.get(name)
        one = model.pick(which) if model else None
        decision_id = one.answer.decision_id if one else NOBODY
        at = (one.at if one else self.clock.now) + offset * SECOND
        request = pb.ConfirmExposureRequest(
            experiment=name, decision_id=decision_id, event_id=event
        )
        request.exposed_at.FromMicroseconds(at)
        known = model.exposures.get(event) if model else None

        def tell() -> pb.ConfirmExposureResponse:
            return self.peer.decisions.ConfirmExposure(request)

        if model is None or one is None:
            assert refusal(tell).code is grpc.StatusCode.NOT_FOUND
        elif known is not None and known[0] != decision_id:
            assert refusal(tell).code is grpc.StatusCode.ALREADY_EXISTS
        elif known is not None:
            assert tell().disposition == pb.DISPOSITION_DUPLICATE
        else:
            is_pointless = one.closed or not one.answer.HasField("action")
            late = (
                one.shown_at is not None
                or (model.needs_exposure and is_pointless)
                or not -EARLY <= offset <= (EXPOSURE if model.needs_exposure else WINDOW)
            )
            expected = pb.DISPOSITION_LATE if late else pb.DISPOSITION_RECORDED
            answer = tell()
            assert (answer.disposition, answer.sequence) == (expected, model.append())
            model.exposures[event] = (decision_id, late)
            if not late:
                model.show(one, at, self.clock.now)

    @rule(
        pick=PICKS,
        to=st.sampled_from([None, 0, 1, 2]),
        reporter=st.booleans(),
        since=SINCE,
    )
    def roll_back(self, pick: str, to: int | None, since: int | None, *, reporter: bool) -> None:
        name = self.names[pick]
        model = self.models.get(name)
        request = pb.RollbackRequest(name=name, to_snapshot=to, reason="why not")
        request.request_id = f"roll back {model.length if model else 0}"
        request.without_reporter = "anonymous" if reporter else ""
        begin = 0 if since is None else self.clock.now - since * SECOND
        if since is not None:
            request.since.FromMicroseconds(begin)

        def leave_out() -> pb.RollbackResponse:
            return self.peer.experiments.Rollback(request)

        if model is None:
            assert refusal(leave_out).code is grpc.StatusCode.NOT_FOUND
            return
        with self.peer.server.database.reader.connect() as connection:
            stored = catalogue.list_snapshots(connection, self.peer.live(name).id)
        places = {0: 0, **{row.version: row.seq for row in stored}}
        is_empty = to is None and since is None and not reporter
        if is_empty or (to is not None and to not in places):
            assert refusal(leave_out).code is grpc.StatusCode.INVALID_ARGUMENT
        else:
            answer = leave_out()
            assert answer.sequence == model.append()
            after = 0 if to is None else places[to]
            model.left_out.append(LeftOut(answer.sequence, after, reporter, begin))

    @rule(seconds=st.sampled_from([1, 30, 99, 100, 150, 1_000, -5, -200]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(pick=PICKS, flush=st.booleans())
    def learn(self, pick: str, *, flush: bool) -> None:
        self._learn(self.names[pick], flush=flush)

    def _learn(self, name: str, *, flush: bool) -> None:
        model = self.models.get(name)
        if model is None:
            return
        for student in self.peer.server.learner._students.values():
            student.due_at = 0  # when it looks again is not the model's concern
        self.peer.learn(name, flush=flush)
        model.let_pass(self.clock.now)

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
                self._learn(name, flush=True)
                self.check_decisions(name, model)
                self.check_report(name, model)
                self.check_audit(name, model)
                self.check_belief(name, model)
        finally:
            self.peer.stop()
            app.warm_up = warm_up
            shutil.rmtree(self.folder)

    def check_decisions(self, name: str, model: Model) -> None:
        for one, made in model.by_id.items():
            found = self.peer.get(name, one)
            outcome = found.outcome if found.HasField("outcome") else None
            told = {
                event: (e.name, e.value, e.late)
                for event, e in model.events.items()
                if e.decision_id == one
            }
            assert outcome == made.outcome
            assert [(o.sequence, o.value) for o in found.outcomes] == [o[:2] for o in made.outcomes]
            assert {e.event_id: (e.name, e.value, e.late) for e in found.events} == told
            found.decision.ClearField("removed")
            assert found.decision == made.answer

    def check_report(self, name: str, model: Model) -> None:
        report = self.peer.report(name)
        assert sum(line.decisions for line in report.groups) == len(model.requests)
        assert report.reward_events == len(model.events)
        assert report.late_events == sum(e.late for e in model.events.values())
        assert report.open_decisions == sum(not m.closed for m in model.requests.values())
        assert report.exposures == len(model.exposures)
        corrections = [len(m.outcomes) - 1 for m in model.requests.values() if m.outcomes]
        assert report.corrections == sum(corrections)
        fresh = [lesson for lesson in model.lessons() if math.isnan(lesson[2])]
        assert report.experiment.snapshot.outcomes == len(fresh)

    def check_audit(self, name: str, model: Model) -> None:
        with self.peer.server.database.reader.connect() as connection:
            found = audit(connection, self.peer.live(name))
        assert found.problems == []
        assert found.entries == model.length
        assert found.repeated == found.decisions == len(model.requests)

    def check_belief(self, name: str, model: Model) -> None:
        """Fold the model's lessons one by one, with the engine alone: the same bits."""
        experiment = self.peer.live(name).experiment
        posterior = experiment.prior()
        row = np.array([experiment.spec.schema.row({"age": 41})])
        for seq, value, before, made in model.lessons():
            experiment.learn(
                *(posterior, row, [made.answer.action.index], np.array([value])),
                times=np.array([made.at]) / 1e6,
                replaced=np.array([before]),
                seq=seq,
            )
        posterior.seq = max([posterior.seq, *(o.seq for o in model.left_out)])
        with self.peer.server.database.reader.connect() as connection:
            stored = catalogue.latest_snapshot(connection, self.peer.live(name).id)
        if posterior.seq > 0:
            assert stored is not None
            assert stored.posterior == encoding.to_bytes(posterior)


def test_any_calls_in_any_order(store: Store, request: pytest.FixtureRequest):
    examples = 12 if "sqlite" in request.node.name else 3
    run_state_machine_as_test(
        lambda: Campaigns(store),
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking would take minutes
        ),
    )


def live_through(store: Store, main: str, seed: int, steps: int) -> Campaigns:
    """Make calls by weights, so that much happens: what Hypothesis draws is short and wide."""
    random = Random(seed)  # noqa: S311
    campaigns = Campaigns(store)
    others = [name for name in EXPERIMENTS if name != main]
    campaigns.begin(names=[main, *random.sample(others, 3)], started=True)
    kinds, values = [*WEIGHTS] * 5 + ["unheard of"], [0.0, 0.25, 1.0, 1.0] * 3 + [40.0, -50.0, 101]
    offsets = [0, 1, 20, 50, 50, 100, -10, -11, 101, 160, 161]

    def pick() -> str:
        return random.choice(["main"] * 9 + ["other"])

    calls = {
        "decide": (8, lambda: {"request": f"r{random.randrange(60)}", "customer": "c0"}),
        "reward": (
            9,
            lambda: {
                "which": random.randrange(16),
                "event": f"e{random.randrange(300)}",
                "kind": random.choice(kinds),
                "value": random.choice(values),
                "offset": random.choice(offsets),
            },
        ),
        "expose": (
            5,
            lambda: {
                "which": random.randrange(16),
                "event": f"x{random.randrange(100)}",
                "offset": random.choice(offsets),
            },
        ),
        "roll_back": (
            random.choice([0.0, 0.2]),
            lambda: {
                "to": random.choice([None, 0, 1, 2]),
                "reporter": random.random() < 0.6,
                "since": random.choice([None, 50, 150, 1_100]),
            },
        ),
        "learn": (2, lambda: {"flush": random.random() < 0.7}),
        "move": (0.3, lambda: {"to": random.choice(["running", "running", "paused"])}),
    }
    weights = [weight for weight, _ in calls.values()]
    for _ in range(steps):
        name = random.choices(list(calls), weights)[0]
        fields = calls[name][1]()
        if name == "decide":
            fields["batch"] = random.random() < 0.3
        getattr(campaigns, name)(pick=pick(), **fields)
        if random.random() < 0.1:
            campaigns.wait(seconds=random.choice([1, 30, 60, 99, 150, -5, -200]))
        if random.random() < 0.01:
            campaigns.restart()
        campaigns.nothing_more_and_nothing_less_is_logged()
    return campaigns


@pytest.mark.parametrize("main", EXPERIMENTS)
def test_long_histories(store: Store, main: str, request: pytest.FixtureRequest):
    seeds = 2 if "sqlite" in request.node.name else 1
    for seed in range(seeds):
        live_through(store, main, seed, steps=150).teardown()
