"""Policies that learn as the server does: snapshots decide, outcomes are published now and then.

A run is a sequence of calls in the order of time: decide for some customers, tell what became
known, publish. ``Embedded`` answers these calls with the engine that serves; a real server
answers the same calls through its socket (``server.commands.through_server``), and must give the
same decisions bit for bit. Ids, groups, draws and log positions are those of the server.
"""

import math
from bisect import bisect_right, insort
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from bandit import rng
from bandit.decision import Reason
from bandit.experiment import Experiment
from bandit.kernels.compiling import Floats, Ints
from bandit.question import Questions
from sims.rollouts.plan import TENANT, Published
from sims.worlds import Arrivals

LEARNED = (Reason.POLICY, Reason.RANDOM_GROUP)


class Decided(NamedTuple):
    """Decisions for some customers in a row.

    Attributes
    ----------
    numbers, actions : (n,)
        Customers by their place in the course, and what each gets; -1: nothing.
    propensities : (n,)
        Of the action.
    groups, reasons, versions : (n,)
        Numbers of ``Group`` and ``Reason``, and the snapshot that decided.
    """

    numbers: Ints
    actions: Ints
    propensities: Floats
    groups: Ints
    reasons: Ints
    versions: Ints


class Told(NamedTuple):
    """Outcomes that became known, in the order of the log.

    Attributes
    ----------
    numbers : (n,)
        Customers whose outcomes they are.
    rewards : (n,)
    at_us
        When, microseconds since 1970.
    """

    numbers: Sequence[int]
    rewards: Sequence[float]
    at_us: int


class Engine(Protocol):
    """What a run asks of whoever decides and learns."""

    def decide(self, arrivals: Arrivals, first: int) -> Decided:
        """Decide for customers ``first, first + 1, ...``."""
        ...

    def tell(self, told: Told) -> None:
        """Take outcomes in; none of them makes a publication due by itself."""
        ...

    def publish(self, told: Told) -> None:
        """Take outcomes in, all at one instant, after which a publication is due."""
        ...


class Embedded:
    """The engine that serves, in this process.

    Parameters
    ----------
    experiment
        With the secret of the replication.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._posterior = experiment.prior()
        self._snapshot = experiment.publish(self._posterior, version=0)
        self._seq = 0
        self._decided: dict[int, tuple[int, Floats, float, bool]] = {}

    def decide(self, arrivals: Arrivals, first: int) -> Decided:
        """Decide as the server does for these request and customer ids."""
        of, n = self._experiment, len(arrivals.times)
        numbers = np.arange(first, first + n)
        ids = rng.decision_ids(of.secret, of.spec.name, map(request_id, numbers.tolist()), 0)
        keys = rng.customer_keys(of.secret, TENANT, map(customer_id, arrivals.customers.tolist()))
        questions = Questions(ids, keys, arrivals.rows, arrivals.exclusions)
        chosen = of.decide_columns(self._snapshot, questions)
        self._seq += n
        learned = np.isin(chosen.reasons, LEARNED) & (chosen.actions >= 0)
        at = micros(arrivals.times) / 1e6
        columns = zip(
            *(numbers.tolist(), chosen.actions.tolist(), arrivals.rows, at.tolist()),
            learned.tolist(),
            strict=True,
        )
        for number, action, row, time, is_learned in columns:
            self._decided[number] = action, row, time, is_learned
        versions = np.full(n, self._snapshot.version)
        return Decided(
            *(numbers, chosen.actions, chosen.propensity, chosen.groups, chosen.reasons, versions)
        )

    def tell(self, told: Told) -> None:
        """Fold them in order; every one adds an event and an outcome to the log."""
        rows, actions, times, rewards, seq = [], [], [], [], 0
        for number, reward in zip(told.numbers, told.rewards, strict=True):
            action, row, time, is_learned = self._decided.pop(number)
            self._seq += 2
            if is_learned:
                rows.append(row)
                actions.append(action)
                times.append(time)
                rewards.append(reward)
                seq = self._seq
        if rows:
            self._experiment.learn(
                self._posterior,
                np.array(rows).reshape(len(rows), -1),
                actions,
                np.array(rewards),
                seq=seq,
                times=np.array(times),
            )

    def publish(self, told: Told) -> None:
        """Fold them, and let the belief decide from now on."""
        self.tell(told)
        version = self._snapshot.version + 1
        self._snapshot = self._experiment.publish(self._posterior, version=version)


class Run:
    """One policy's way through a course, at a server's cadence.

    Parameters
    ----------
    engine
        Decides and learns.
    learning
        When the belief is published.
    is_timed
        Whether the time of each decision counts (a half-life), so that none may share a call.

    Notes
    -----
    The learner is taken to look after every instant at which an outcome became known, and when
    the time since the first unpublished one is up. Outcomes known at the instant at which a
    customer comes count before it. Customers share a call as long as nothing can be published
    between them: each may add one outcome at most. Who shares a call does not change what is
    learned when, only the order of decisions and outcomes in the log between publications; a
    bank of joint draws is named by a place in that log.
    """

    def __init__(self, engine: Engine, learning: Published, *, is_timed: bool = False) -> None:
        self._engine = engine
        self._most = learning.outcomes
        self._seconds = math.ceil(learning.seconds * 1e6)  # instants are whole microseconds
        self._is_timed = is_timed
        self._pending: list[tuple[int, int, float, bool]] = []
        self._told: list[tuple[int, float]] = []  # due, not handed over yet
        self._told_at = 0
        self._new = 0
        self._first_at: int | None = None

    def reach(self, now: int) -> None:
        """Let happen what happens up to an instant, microseconds since 1970."""
        while True:
            due = self._pending[0][0] if self._pending else None
            full = None if self._first_at is None else self._first_at + self._seconds
            if full is not None and full <= now and (due is None or full < due):
                self._publish([], full)
            elif due is not None and due <= now:
                self._take(due)
            else:
                break

    def _take(self, instant: int) -> None:
        """Take in what became known at an instant, and publish if that is due."""
        n = bisect_right(self._pending, (instant, math.inf))
        last = [(number, reward) for _, number, reward, _ in self._pending[:n]]
        learned = sum(is_learned for *_, is_learned in self._pending[:n])
        del self._pending[:n]
        self._new += learned
        waited = 0 if self._first_at is None else instant - self._first_at
        if self._new and (self._new >= self._most or waited >= self._seconds):
            self._publish(last, instant)
        elif learned and self._first_at is None:
            self._first_at = instant
            self._hand_over()
            self._engine.tell(_told(last, instant))
        else:
            self._told += last
            self._told_at = instant

    def _hand_over(self) -> None:
        if self._told:
            self._engine.tell(_told(self._told, self._told_at))
            self._told = []

    def _publish(self, last: list[tuple[int, float]], instant: int) -> None:
        self._hand_over()
        self._engine.publish(_told(last, instant))
        self._new, self._first_at = 0, None

    def together(self, times: Ints) -> int:
        """Give how many of the next customers, at these instants, nothing is published between."""
        if self._is_timed:
            return 1
        left = self._most - self._new  # outcomes until a publication; each customer adds one
        times = times[: max(left, 1)]
        due = [entry[0] for entry in self._pending[:left]]
        began = self._first_at
        if began is None:
            began = min([*due[:1], int(times[0])])
        known = np.searchsorted(np.array(due, dtype=np.int64), times, side="right")
        safe = known + np.arange(len(times)) < left
        safe &= times < began + self._seconds
        safe[0] = True
        return len(times) if safe.all() else int(np.argmin(safe))

    def decide(self, arrivals: Arrivals, first: int) -> Decided:
        """Decide for customers in one call; ``together`` says how many may share it."""
        return self._engine.decide(arrivals, first)

    def expect(self, decided: Decided, rewards: Floats, due: Floats, times: Ints) -> None:
        """Note what will become known of decisions; NaN never does."""
        is_learned = np.isin(decided.reasons, LEARNED) & (decided.actions >= 0)
        instants = np.maximum(micros(due), times)
        columns = zip(
            *(instants.tolist(), decided.numbers.tolist(), rewards.tolist()),
            *(is_learned.tolist(), (decided.actions >= 0).tolist()),
            strict=True,
        )
        for at, number, reward, learned, is_sent in columns:
            if reward == reward and is_sent:
                insort(self._pending, (at, number, reward, learned))


def _told(pairs: Sequence[tuple[int, float]], at_us: int) -> Told:
    return Told([number for number, _ in pairs], [reward for _, reward in pairs], at_us)


def micros(seconds: Floats) -> Ints:
    """Give seconds since 1970 as whole microseconds; what never comes lies a long time off."""
    bounded = np.where(np.isfinite(seconds), seconds, 0.0)
    return np.rint(bounded * 1e6).astype(np.int64)


def request_id(number: int) -> str:
    """Give the idempotency key of a customer's decision."""
    return f"rollout-{number}"


def customer_id(number: int) -> str:
    """Give the id under which a customer is asked for."""
    return f"customer-{number}"
