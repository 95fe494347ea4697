"""A rollout through a real server: the same calls over a real socket, the same decisions.

The server is a whole one - transport, writer, log, learner - with a clock that shows the world's
time, so that a month of customers passes in seconds. The learner publishes by itself, by the
experiment's own settings; what a rollout waits for is that it has done so.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bandit.errors import DeadlineError, InvalidInputError
from bandit.outcome import YEAR, OutcomeRule, Reward
from bandit.spec import ExperimentSpec, Publishing
from server import settings
from server.app import Server
from server.client import Ask, BanditClient, Fact
from sims.rollouts import Plan, Published, Track
from sims.rollouts.published import (
    LEARNED,
    Decided,
    Embedded,
    Engine,
    Run,
    Told,
    customer_id,
    micros,
    request_id,
)
from sims.rollouts.stage import Cadenced, Played, Scenes, block_size
from sims.rollouts.tracks import Tracker, combined, joined_policies
from sims.worlds import Arrivals

EVENT = "outcome"
_CALL = 1_000
_PATIENCE = 60.0


class WorldClock:
    """Shows the world's time, which goes on when a rollout says so; microseconds since 1970."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        """Give the time."""
        return self.now

    def reach(self, now: int) -> None:
        """Go on to a time; never back."""
        self.now = max(self.now, now)


class Served:
    """A server that decides and learns; see ``sims.rollouts.published.Engine``.

    Parameters
    ----------
    server, clock
        Of this process, so that it can be told the time and asked what it has learned.
    spec
        The experiment, as in the plan; it is created and started.
    learning
        When the server's learner publishes.
    """

    def __init__(
        self, server: Server, clock: WorldClock, spec: ExperimentSpec, learning: Published
    ) -> None:
        self._server = server
        self._clock = clock
        self._spec = transported(spec, learning)
        self._client = BanditClient(f"127.0.0.1:{server.port}", timeout=_PATIENCE)
        self._client.create_experiment(self._spec, request_id=self._spec.name)
        self._client.start_experiment(self._spec.name, override="a rollout through the server")
        self._experiment_id = server.live.entries()[0].id
        self._ids: dict[int, tuple[str, bool]] = {}
        self._waiting = 0
        self._version = 0

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def decide(self, arrivals: Arrivals, first: int) -> Decided:
        """Ask with BatchDecide, at the time of the first customer."""
        self._clock.reach(int(micros(arrivals.times[:1])[0]))
        schema, asks = self._spec.schema, []
        for i, row in enumerate(arrivals.rows):
            ask = Ask(
                customer_id=customer_id(int(arrivals.customers[i])),
                context=schema.values(row),
                request_id=request_id(first + i),
                exclusions=arrivals.exclusions[i] if arrivals.exclusions else (),
            )
            asks.append(ask)
        answers = [
            answer
            for at in range(0, len(asks), _CALL)
            for answer in self._client.decide_batch(self._spec.name, asks[at : at + _CALL])
        ]
        for i, answer in enumerate(answers):
            is_learned = answer.reason in LEARNED and answer.action is not None
            self._ids[first + i] = answer.decision_id, is_learned
        return Decided(
            np.arange(first, first + len(answers)),
            np.array([-1 if a.action is None else a.action for a in answers], dtype=np.int64),
            np.array([a.propensity for a in answers]),
            np.array([int(a.group or 0) for a in answers]),
            np.array([int(a.reason or 0) for a in answers]),
            np.array([a.snapshot_version for a in answers]),
        )

    def tell(self, told: Told) -> None:
        """Report outcomes, and wait until the learner has folded them."""
        self._clock.reach(told.at_us)
        self._report(told)
        self._await_folded()

    def publish(self, told: Told) -> None:
        """Report outcomes; wait until the learner has published, by itself."""
        self._clock.reach(told.at_us - 1)  # not due by time before all of them are folded
        self._report(told)
        self._await(lambda: self._seen() == self._waiting or self._published() > self._version)
        self._clock.reach(told.at_us)
        self._version += 1
        self._await(lambda: self._published() >= self._version)
        self._waiting = 0

    def _report(self, told: Told) -> None:
        facts = []
        for number, reward in zip(told.numbers, told.rewards, strict=True):
            decision_id, is_learned = self._ids.pop(number)
            self._waiting += is_learned
            facts.append(
                Fact(decision_id=decision_id, name=EVENT, value=reward, event_id=str(number))
            )
        for at in range(0, len(facts), _CALL):
            self._client.record_rewards(self._spec.name, facts[at : at + _CALL])

    def _await_folded(self) -> None:
        self._await(lambda: self._seen() == self._waiting)

    def _seen(self) -> int:
        return self._server.learner.waiting(self._experiment_id) or 0

    def _published(self) -> int:
        return self._server.live.entries()[0].snapshot.version

    def _await(self, condition: Callable[[], bool]) -> None:
        """Wait for the learner."""
        end = time.monotonic() + _PATIENCE
        while not condition():
            self._server.learner.notify()
            if time.monotonic() > end:
                raise DeadlineError(f"the server has not learned what it was told in {_PATIENCE} s")
            time.sleep(0.0005)


def transported(spec: ExperimentSpec, learning: Published) -> ExperimentSpec:
    """Give the experiment as the server is told it: outcomes come as they are, and at once.

    A world gives outcomes, not the events behind them, so one terminal event carries each. What
    the outcome's rule implied for the model is written out, so that the prior is the same.
    """
    is_rate = spec.policy.posterior in ("beta_bernoulli", "logistic")
    reward = Reward(name=EVENT, bounds=(0.0, 1.0) if is_rate else (-1e12, 1e12), terminal=True)
    rule = OutcomeRule(rewards=(reward,), window=YEAR, silence="ignore", aggregation="last")
    publishing = Publishing(outcomes=learning.outcomes, seconds=learning.seconds)
    return replace(spec, policy=spec.full_policy, outcome=rule, publishing=publishing)


@contextmanager
def served(plan: Plan, policy: int, replication: int) -> Iterator[Served]:
    """Run a server of its own for one policy in one replication.

    Raises
    ------
    InvalidInputError
        If the plan learns at once, which no server does.
    """
    if not isinstance(plan.learning, Published):
        raise InvalidInputError(
            "a server publishes now and then; give --publish-every", field="through_server"
        )
    clock = WorldClock()
    with tempfile.TemporaryDirectory(prefix="bandit-rollout-") as name:
        folder = Path(name)
        (folder / "bandit.db.secret").write_bytes(plan.secret(replication))
        server = Server(
            settings.read(
                database=f"sqlite:///{folder / 'bandit.db'}",
                host="127.0.0.1",
                port=0,
                workers=1,
                auth="none",
                grace=5.0,
            ),
            clock=clock,
        )
        clock.reach(int(micros(plan.course(replication).arrivals(0, 1).times)[0]))
        server.start()
        try:
            engine = Served(server, clock, plan.experiments[policy], plan.learning)
            try:
                yield engine
            finally:
                engine.close()
        finally:
            server.stop()


class Difference(NamedTuple):
    """The first decision that a server made otherwise than the engine in this process."""

    policy: str
    replication: int
    customer: int
    column: str
    here: float
    there: float


class Compared(NamedTuple):
    """A rollout made twice.

    Attributes
    ----------
    track
        What the server did.
    decisions
        How many were compared.
    difference
        The first one; None: all are the same, bit for bit.
    """

    track: Track
    decisions: int
    difference: Difference | None


def compare(plan: Plan, passed: Callable[[int], None]) -> Compared:
    """Play every policy and replication in process and through a server, side by side.

    Parameters
    ----------
    passed
        Told how many decisions were made since it was told last.

    Raises
    ------
    InvalidInputError
        If the plan learns at once.
    """
    tracks, decisions, difference = [], 0, None
    for replication in range(plan.replications):
        trackers = []
        for policy, label in enumerate(plan.labels):
            tracker = Tracker(np.array(plan.checkpoints), plan.spec.actions.size)
            here = Embedded(plan.experiment(policy, replication))
            with served(plan, policy, replication) as there:
                for mine, theirs in _side_by_side(plan, policy, replication, (here, there)):
                    tracker.add(theirs)
                    decisions += len(theirs.actions)
                    passed(len(theirs.actions))
                    if difference is None:
                        found = first_difference(mine, theirs)
                        difference = found and Difference(label, replication, *found)
            trackers.append(tracker)
        tracks.append(joined_policies(replication, trackers))
    return Compared(combined(tracks), decisions, difference)


def _side_by_side(
    plan: Plan, policy: int, replication: int, engines: tuple[Engine, Engine]
) -> Iterator[tuple[Played, Played]]:
    """Give block by block what two engines do with the same customers."""
    learning = plan.learning
    assert isinstance(learning, Published)  # noqa: S101  ``served`` has refused all else
    course = plan.course(replication)
    is_timed = plan.experiments[policy].policy.half_life is not None
    mine, theirs = (Cadenced(Run(e, learning, is_timed=is_timed), course) for e in engines)
    scenes = Scenes(plan, course, all_outcomes=False)
    size = block_size(plan.spec.actions.size)
    for start in range(0, plan.customers, size):
        scene = scenes.read(start, min(start + size, plan.customers))
        yield mine.perform(scene), theirs.perform(scene)


def first_difference(here: Played, there: Played) -> tuple[int, str, float, float] | None:
    """Give customer, column and both values of the first decision that is not the same."""
    for name in ("actions", "propensities", "versions", "groups", "reasons"):
        mine, theirs = (
            np.concatenate([getattr(part, name) for part in played.decided])
            for played in (here, there)
        )
        if mine.shape != theirs.shape:
            return int(here.decided[0].numbers[0]), "decisions", len(mine), len(theirs)
        other = mine != theirs
        if other.any():
            at = int(other.argmax())
            numbers = np.concatenate([part.numbers for part in here.decided])
            return int(numbers[at]), name, float(mine[at]), float(theirs[at])
    return None
