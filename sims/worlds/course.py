"""A course: one replication of a world for one experiment, the same for every policy.

What a customer is like, when the visit is and what chance brings is a function of world,
experiment, seed, replication and the visit's number: policies are compared on common random
numbers, and any split of a course into blocks gives the same bits.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from bandit.actions import Exclusion
from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Bools, Floats, Ints
from bandit.spec import ExperimentSpec
from sims.kernels import worlds as kernels
from sims.worlds import contexts, draws, matching
from sims.worlds.clock import Clock
from sims.worlds.customers import Customers
from sims.worlds.feedback import Feedback
from sims.worlds.history import History
from sims.worlds.truth import Truth
from sims.worlds.wheel import wheel_means
from sims.worlds.world import World


class Arrivals(NamedTuple):
    """Some visits in a row, the same for every policy.

    Attributes
    ----------
    rows : (n, fields)
        Contexts in schema order, NaN where missing.
    times : (n,)
        Seconds since 1970, not decreasing.
    customers : (n,)
        Number of the customer; who comes again has the same.
    exclusions
        Levels that are not there yet or no longer, for every visit; empty: none ever.
    """

    rows: Floats
    times: Floats
    customers: Ints
    exclusions: Sequence[tuple[Exclusion, ...]]


class Responses(NamedTuple):
    """What came of some messages.

    Attributes
    ----------
    rewards : (n,)
        Outcomes, as ``learn`` takes them; NaN: nothing is ever heard.
    due : (n,)
        When the outcome is known, seconds since 1970.
    unsubscribed : (n,)
        Whether this message made the customer unsubscribe.
    """

    rewards: Floats
    due: Floats
    unsubscribed: Bools


class Events(NamedTuple):
    """The reward events that come of some messages.

    Attributes
    ----------
    values : (n,)
        Of the world's reward; NaN: there is no event.
    times : (n,)
        When it happens, or would, seconds since 1970.
    lost : (n,)
        Whether nothing is ever heard of this message.
    unsubscribed : (n,)
        Whether this message made the customer unsubscribe, at the time of the decision.
    """

    values: Floats
    times: Floats
    lost: Bools
    unsubscribed: Bools


class Course:
    """One replication of a world for one experiment.

    Parameters
    ----------
    world, spec
        Who comes, and what may be sent to them.
    seed, replication
        Draw everything that chance brings.

    Raises
    ------
    InvalidInputError
        If the world was not made for the experiment.
    """

    def __init__(
        self, world: World, spec: ExperimentSpec, *, seed: int = 0, replication: int = 0
    ) -> None:
        matching.check(world, spec)
        self.world = world
        self.spec = spec
        self._clock = Clock(world.traffic, seed, replication)
        rows = None if world.contexts is None else contexts.read(world.contexts, spec.schema)
        self._customers = Customers(
            world, spec, self._clock, rows=rows, seed=seed, replication=replication
        )
        self._truth = Truth(world, spec, self._clock, seed=seed, replication=replication)
        self._chance = draws.stream("response", seed, replication)
        self._changes = matching.changes(world)
        self._rules = [matching.exclusions(world, day) for day in (-np.inf, *self._changes)]
        self._feedback = Feedback(world, spec)
        self._sees_leaving = world.unsubscribes is not None and bool(world.unsubscribes.reward)

    @property
    def is_memoryless(self) -> bool:
        """Whether earlier messages change nothing, so that blocks can be played at once."""
        return self.world.is_memoryless

    @cached_property
    def without_message(self) -> float:
        """The expected outcome of a customer to whom nothing is sent."""
        return float(self._feedback.expected(np.array([self.world.without_message]))[0])

    def history(self) -> History:
        """Give the empty state of one policy's run."""
        return History(self.world)

    def arrivals(self, start: int, stop: int) -> Arrivals:
        """Give visits ``start`` to ``stop - 1``.

        Raises
        ------
        InvalidInputError
            If not 0 <= start <= stop.

        Notes
        -----
        O(n fields), and O(stop) once for the times of all before.
        """
        if not 0 <= start <= stop:
            raise InvalidInputError(f"need 0 <= start <= stop, got {start}, {stop}", field="start")
        visits = np.arange(start, stop)
        times = self._clock.times(start, stop)
        customers = self._customers.numbers(visits)
        rows = self._customers.rows(customers, visits, times)
        rules: Sequence[tuple[Exclusion, ...]] = ()
        if self._changes:
            rules = [self._rules[at] for at in self._epochs(times).tolist()]
        return Arrivals(rows, times, customers, rules)

    def runs(self, arrivals: Arrivals) -> list[slice]:
        """Split visits where a customer comes again.

        Within a run all customers differ, so that what is sent to one changes nothing for the
        others. A memoryless world gives one run.
        """
        if self.is_memoryless:
            return [slice(0, len(arrivals.times))]
        cuts, seen = [0], set[int]()
        for i, customer in enumerate(arrivals.customers.tolist()):
            if customer in seen:
                cuts.append(i)
                seen.clear()
            seen.add(customer)
        return [slice(a, b) for a, b in pairwise([*cuts, len(arrivals.times)])]

    def eligible(self, arrivals: Arrivals) -> Bools:
        """Mark the actions that every visit may get, shape (n, k)."""
        return np.asarray(self._masks[self._epochs(arrivals.times)])

    def expected(self, arrivals: Arrivals, start: int, history: History) -> Floats:
        """Give the expected outcome of every action, shape (n, k).

        Parameters
        ----------
        start
            Number of the first visit.
        history
            What one policy sent so far. Where the world is not memoryless, no customer may come
            twice in ``arrivals``: play ``runs``, and ``history.add`` each.
        """
        del start  # what is expected does not depend on chance
        means = self._means(arrivals)
        if self.world.fatigue is not None:
            load = history.load(arrivals.customers, arrivals.times)
            means -= self.world.fatigue.per_message * load[:, None]
        if self.world.response == "logistic":
            kernels.logistic_all(means)
        bots = self._customers.bots(arrivals.customers)
        means[bots] = self._feedback.most
        outcomes = self._feedback.expected(means)
        if self._sees_leaving:
            outcomes[~bots] += self._cost_of_leaving
        if self.world.unsubscribes is not None:
            outcomes[self._gone(outcomes)] = np.nextafter(self._feedback.failure, np.inf)
            outcomes[history.unsubscribed(arrivals.customers)] = self._feedback.failure
        return outcomes

    def means(self, expected: Floats) -> Floats:
        """Give the probabilities (logistic) or mean values that outcomes were expected of."""
        return self._feedback.means(expected)

    def optimum(self, arrivals: Arrivals, expected: Floats) -> Floats:
        """Give the best expected outcome among the actions that each visit may get, (n,)."""
        if not self._changes and self.spec.actions.mask.all():
            return np.asarray(expected.max(axis=1))
        return np.asarray(np.where(self.eligible(arrivals), expected, -np.inf).max(axis=1))

    def respond(self, arrivals: Arrivals, start: int, actions: Ints, expected: Floats) -> Responses:
        """Give what comes of the chosen actions: outcomes as the experiment's rule makes them.

        Parameters
        ----------
        start
            Number of the first visit: it names the chance of each.
        actions : (n,)
            -1: nothing is sent.
        expected : (n, k)
            From ``expected`` with the history of the same policy.
        """
        events = self.events(arrivals, start, actions, expected)
        waits = events.times - arrivals.times
        outcomes, due = self._feedback.hear(events.values, arrivals.times, waits)
        if self._sees_leaving:
            outcomes[events.unsubscribed] += self._worth_of_leaving
        outcomes[events.lost], due[events.lost] = np.nan, np.inf
        return Responses(outcomes, due, events.unsubscribed)

    def all_outcomes(
        self, arrivals: Arrivals, start: int, expected: Floats
    ) -> tuple[Floats, Floats]:
        """Give what each action would earn and when that is known, (n, k) each; see ``respond``.

        For memoryless worlds: bit for bit what ``respond`` gives action by action, in one pass.
        """
        n, k = expected.shape
        u = draws.uniforms(self._chance, np.arange(start, start + n), 4)
        means = self._feedback.means(expected)
        if self.world.response == "logistic":
            values = np.where(u[:, :1] < means, 1.0, np.nan)
        else:
            noise = self._spread(means) * draws.as_normals(u[:, 0])[:, None]
            bots = self._customers.bots(arrivals.customers)
            values = means + np.where(bots[:, None], 0.0, noise)
        waits = self._feedback.waits(u[:, 1])
        times = arrivals.times + waits
        waits = times - arrivals.times  # rounded as in ``respond``
        outcomes, due = self._feedback.hear(
            values.ravel(), np.repeat(arrivals.times, k), np.repeat(waits, k)
        )
        outcomes, due = outcomes.reshape(n, k), due.reshape(n, k)
        lost = u[:, 2] < self.world.missing
        outcomes[lost], due[lost] = np.nan, np.inf
        return outcomes, due

    def events(self, arrivals: Arrivals, start: int, actions: Ints, expected: Floats) -> Events:
        """Give the reward events that come of the chosen actions, before any rule; see ``respond``.

        This is what a client of a server would see and report.
        """
        n = len(actions)
        u = draws.uniforms(self._chance, np.arange(start, start + n), 4)
        sent = actions >= 0
        people = sent & ~self._customers.bots(arrivals.customers)
        gone = self._gone(expected)
        chosen = np.where(sent, expected[np.arange(n), actions], self.without_message)
        if self._sees_leaving:
            chosen[people] -= self._cost_of_leaving[actions[people]]
        means = self._feedback.means(chosen)
        if self.world.response == "logistic":
            values = np.where(u[:, 0] < means, 1.0, np.nan)
        else:
            noise = self._spread(means) * draws.as_normals(u[:, 0])
            values = means + np.where(people | ~sent, noise, 0.0)
        values[gone] = np.nan
        left = people & ~gone & (u[:, 3] < self._leaving[actions])
        times = arrivals.times + self._feedback.waits(u[:, 1])
        return Events(values, times, u[:, 2] < self.world.missing, left)

    def _means(self, arrivals: Arrivals) -> Floats:
        """Give log-odds or mean values of every action, without fatigue."""
        wheel = self.world.wheel
        if wheel is None:
            segments = self._customers.segments(arrivals.customers)
            return self._truth.scores(arrivals.rows, arrivals.times, segments)
        names = [field.name for field in self.spec.context]
        x, y = (arrivals.rows[:, names.index(name)] for name in wheel.fields)
        return wheel_means(wheel, x, y)

    def _spread(self, means: Floats) -> Floats | float:
        """Give the standard deviation of values around their means."""
        wheel = self.world.wheel
        if wheel is None:
            return self.world.noise or 0.0
        return np.where(np.isclose(means, wheel.high), wheel.high_sd, wheel.sd)

    def _gone(self, expected: Floats) -> Bools:
        """Mark who has unsubscribed: nothing pays, which ``expected`` says of nobody else."""
        if self.world.unsubscribes is None:
            return np.zeros(len(expected), dtype=np.bool_)
        return np.asarray((expected == self._feedback.failure).all(axis=1))

    def _epochs(self, times: Floats) -> Ints:
        """Give how many levels have appeared or retired before each time."""
        return np.searchsorted(self._changes, self._clock.days(times), side="right")

    @cached_property
    def _masks(self) -> Bools:
        """The actions left between any two changes, (changes + 1, k)."""
        return np.array([self.spec.actions.eligible(rules) for rules in self._rules])

    @cached_property
    def _leaving(self) -> Floats:
        """The probability that an action makes its customer unsubscribe, shape (k,)."""
        rule, space = self.world.unsubscribes, self.spec.actions
        if rule is None:
            return np.zeros(space.size)
        shares = [rule.channels.get(level.name, rule.share) for level in space.channels]
        return np.array(shares)[space.table[:, 1]]

    @cached_property
    def _worth_of_leaving(self) -> float:
        """What the event of unsubscribing adds to the outcome."""
        name = self.world.unsubscribes and self.world.unsubscribes.reward
        return self.spec.outcome.by_name[name].weight if name else 0.0

    @cached_property
    def _cost_of_leaving(self) -> Floats:
        return self._worth_of_leaving * self._leaving
