"""Rejection replay: what a policy would have earned on a uniformly randomised log.

Where the policy's choice equals what was logged, the logged outcome is what it would have
earned, and it may learn from it; all other rows are passed over (Li, Chu, Langford & Wang, WSDM
2011). That is unbiased only where every action was equally likely, whoever the customer was: so
``rejection`` tests the log for it, and gives no estimate where the test fails.

``rejection`` plays any log past an experiment in this process; ``replay`` plays the Hillstrom
campaign past a policy that is elsewhere, such as on a server.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from scipy import special

from bandit import rng
from bandit.errors import InvalidInputError
from bandit.experiment import Experiment
from bandit.groups import Groups
from bandit.kernels.compiling import Floats, Ints
from bandit.measurement import Sample
from bandit.question import Questions
from sims.datasets.hillstrom import Row
from sims.log import Log

LEVEL = 0.001
"""A log that is uniform is called so with a probability of 1 less this."""

BATCH = 256
"""Rows decided between two publications."""

_APART = 0.01
"""Relative difference from 1 / actions from which on a propensity is another one."""


class Uniformity(NamedTuple):
    """Whether every action was equally likely in every row.

    Attributes
    ----------
    counts : (k,)
        Rows by action.
    p_value
        Of counts at least this uneven, by Pearson's chi-square over the actions that the
        experiment's own rules leave.
    lowest, highest
        Propensities.
    problem
        What is not as in a uniform log, for people; empty if nothing is.
    """

    counts: Ints
    p_value: float
    lowest: float
    highest: float
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rejection:
    """What a replay has found so far.

    Attributes
    ----------
    rows
        Decided for.
    matched
        Outcomes of the rows where decision and log agree.
    chosen : (k,)
        Decisions by action.
    logged
        All outcomes of the log: what drawing uniformly earned.
    arms
        Outcomes of every action in the log: what sending it always would have earned.
    publications
        Of the belief, beside the prior.
    uniformity
        Whether the log was uniform.
    """

    rows: int
    matched: Sample
    chosen: Ints
    logged: Sample
    arms: tuple[Sample, ...]
    publications: int
    uniformity: Uniformity

    @property
    def share(self) -> float:
        """Share of the rows that matched; 1 / k is expected."""
        return self.matched.n / self.rows if self.rows else math.nan

    @property
    def withheld(self) -> str | None:
        """Why there is no estimate, or None if there is one."""
        if self.uniformity.problem:
            return self.uniformity.problem
        if self.matched.n < 2:
            return f"{self.matched.n} of {self.rows} rows matched: too few for an estimate"
        return None

    @property
    def value(self) -> float | None:
        """Mean outcome of the policy, per decision; None if it is withheld."""
        return None if self.withheld else self.matched.mean

    @property
    def interval(self) -> tuple[float, float] | None:
        """Ends of its 95 % interval, by the central limit theorem of martingales."""
        return None if self.withheld else self.matched.interval


class _Sums:
    """Count, mean and sum of squared distances of a stream, by action.

    Notes
    -----
    Chan, Golub & LeVeque, The American Statistician 37, 1983.
    """

    def __init__(self, k: int) -> None:
        self._n = np.zeros(k)
        self._mean = np.zeros(k)
        self._squares = np.zeros(k)

    def add(self, actions: Ints, rewards: Floats) -> None:
        k = len(self._n)
        n = np.bincount(actions, minlength=k).astype(np.float64)
        used = np.maximum(n, 1.0)
        mean = np.bincount(actions, rewards, k) / used
        squares = np.bincount(actions, (rewards - mean[actions]) ** 2, k)
        total = np.maximum(self._n + n, 1.0)
        apart = np.where(n > 0, mean - self._mean, 0.0)
        self._squares += squares + apart**2 * self._n * n / total
        self._mean += apart * n / total
        self._n += n

    def sample(self, action: int) -> Sample:
        n = int(self._n[action])
        return Sample(n, n * float(self._mean[action]), n, float(self._squares[action]))

    @property
    def counts(self) -> Ints:
        return self._n.astype(np.int64)


def rejection(
    logs: Iterable[Log], experiment: Experiment, *, every: int = BATCH
) -> Iterator[Rejection]:
    """Play a uniform log past an experiment's policy; yield after every batch of the log.

    Parameters
    ----------
    logs
        Batches with contexts, in the order in which customers came.
    experiment
        Decides and learns as the server does; its traffic groups are left out, so that
        everybody is the bandit's.
    every
        Rows decided between two publications: what matched among them is learned then.

    Yields
    ------
    Rejection
        What was found so far; the last is the verdict.

    Raises
    ------
    InvalidInputError
        If a batch has no contexts or another number of actions.

    Notes
    -----
    One pass; memory is that of a batch, however long the log.
    """
    if every < 1:
        raise InvalidInputError(f"must be 1 or more, got {every}", field="every")
    spec = replace(experiment.spec, groups=Groups(random=0.0))
    player = _Player(Experiment(spec, secret=experiment.secret), every)
    for log in logs:
        if log.size != spec.actions.size:
            raise InvalidInputError(
                f"the log has {log.size} actions, the experiment {spec.actions.size}", field="logs"
            )
        if log.rows is None:
            raise InvalidInputError("needs contexts", field="logs")
        yield player.play(log)


class _Player:
    """A replay under way."""

    def __init__(self, experiment: Experiment, every: int) -> None:
        self._experiment = experiment
        self._every = every
        self._posterior = experiment.prior()
        self._snapshot = experiment.publish(self._posterior, version=0)
        self._is_learning = experiment.spec.policy.kind not in ("uniform", "fixed")
        k = experiment.spec.actions.size
        self._rows = 0
        self._matched = _Sums(1)
        self._logged = _Sums(1)
        self._arms = _Sums(k)
        self._chosen = np.zeros(k, dtype=np.int64)
        self._bounds = (math.inf, -math.inf)
        self._waiting: list[tuple[Floats, Ints, Floats, Floats]] = []
        self._until = every

    def play(self, log: Log) -> Rejection:
        """Play a batch."""
        zeros = np.zeros(len(log), dtype=np.int64)
        self._logged.add(zeros, log.rewards)
        self._arms.add(log.actions, log.rewards)
        low, high = self._bounds
        if len(log):
            p = log.propensities
            self._bounds = (min(low, float(p.min())), max(high, float(p.max())))
        at = 0
        while at < len(log):
            stop = min(at + self._until, len(log))
            self._step(log, slice(at, stop))
            self._until -= stop - at
            if not self._until:
                self._publish()
            at = stop
        return Rejection(
            rows=self._rows,
            matched=self._matched.sample(0),
            chosen=self._chosen.copy(),
            logged=self._logged.sample(0),
            arms=tuple(self._arms.sample(a) for a in range(log.size)),
            publications=self._snapshot.version,
            uniformity=self._uniformity(),
        )

    def _step(self, log: Log, part: slice) -> None:
        """Decide for some rows, and keep what matched until the next publication."""
        n = part.stop - part.start
        spec, secret = self._experiment.spec, self._experiment.secret
        requests = [f"replay-{i}" for i in range(self._rows, self._rows + n)]
        ids = rng.decision_ids(secret, spec.name, requests, 0)
        rows = np.zeros((n, 0)) if log.rows is None else log.rows[part]
        asked = Questions(ids, np.zeros((n, 16), dtype=np.uint8), rows)
        chosen = self._experiment.decide_columns(self._snapshot, asked).actions
        sent = chosen[chosen >= 0]
        self._chosen += np.bincount(sent, minlength=len(self._chosen))
        match = chosen == log.actions[part]
        rewards = log.rewards[part][match]
        self._matched.add(np.zeros(len(rewards), dtype=np.int64), rewards)
        times = np.zeros(n) if log.times is None else log.times[part]
        self._waiting.append((rows[match], chosen[match], rewards, times[match]))
        self._rows += n

    def _publish(self) -> None:
        self._until = self._every
        parts, self._waiting = self._waiting, []
        if not self._is_learning:
            return
        rows, actions, rewards, times = (np.concatenate(c) for c in zip(*parts, strict=True))
        if not len(actions):
            return
        self._experiment.learn(
            self._posterior, rows, actions.tolist(), rewards, seq=self._rows, times=times
        )
        self._snapshot = self._experiment.publish(
            self._posterior, version=self._snapshot.version + 1
        )

    def _uniformity(self) -> Uniformity:
        counts, (low, high) = self._arms.counts, self._bounds
        mask = self._experiment.spec.actions.mask
        m, total = int(mask.sum()), int(counts.sum())
        expected = total / m
        distance = float(((counts[mask] - expected) ** 2 / max(expected, 1e-300)).sum())
        p_value = float(special.chdtrc(m - 1, distance)) if m > 1 else 1.0
        problem = ""
        if counts[~mask].any():
            a = int(np.flatnonzero((counts > 0) & ~mask)[0])
            problem = f"action {a}, which the experiment's rules exclude, was logged"
        elif low < (1 - _APART) / m or high > (1 + _APART) / m:
            problem = f"its propensities are {low:.4g} to {high:.4g}, and 1 / {m} is uniform"
        elif p_value < LEVEL:
            problem = (
                f"counts by action, {int(counts[mask].min())} to {int(counts[mask].max())}, "
                f"differ as only a share of {p_value:.2g} of uniform logs do, less than {LEVEL:g}"
            )
        if problem:
            problem = f"the log is not uniform: {problem}"
        return Uniformity(counts, p_value, low, high, problem)


# --- a policy that is elsewhere ------------------------------------------------------------

Decide = Callable[[Sequence[tuple[str, Row]]], Sequence[tuple[str, str | None]]]
"""From (request id, row) to (decision id, variant)."""

Tell = Callable[[Sequence[tuple[str, float]]], None]
"""Report (decision id, outcome) of the rows that matched."""


@dataclass(slots=True)
class Replayed:
    """What a replay has found so far.

    Attributes
    ----------
    rows
        Customers decided for.
    matched
        Outcomes of those where the decision equals the log.
    chosen
        Decisions by variant.
    """

    rows: int = 0
    matched: list[float] = field(default_factory=list)
    chosen: dict[str, int] = field(default_factory=dict)

    @property
    def sample(self) -> Sample:
        """The matched outcomes as a sample."""
        return Sample.of(self.matched)


def replay(
    rows: Sequence[Row], reward: str, seed: int, decide: Decide, tell: Tell
) -> Iterator[Replayed]:
    """Play a log past a policy, in an order given by ``seed``; yield after every batch.

    Parameters
    ----------
    rows
        A uniformly randomised log.
    reward
        Which outcome the policy is told.
    decide, tell
        The policy; ``tell`` returns when what was told is learned.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    found = Replayed()
    for start in range(0, len(rows), BATCH):
        asked = [(f"hillstrom-{seed}-{i}", rows[i]) for i in order[start : start + BATCH]]
        told: list[tuple[str, float]] = []
        for (_, row), (decision_id, variant) in zip(asked, decide(asked), strict=True):
            found.chosen[str(variant)] = found.chosen.get(str(variant), 0) + 1
            if variant == row.variant:
                told.append((decision_id, row.outcomes[reward]))
        if told:
            tell(told)
        found.rows += len(asked)
        found.matched += [value for _, value in told]
        yield found


def constants(rows: Sequence[Row], reward: str) -> dict[str, Sample]:
    """Give what every constant arm earned, and ``uniform``: all rows."""
    arms = {
        variant: Sample.of([r.outcomes[reward] for r in rows if r.variant == variant])
        for variant in sorted({row.variant for row in rows})
    }
    return {"uniform": Sample.of([row.outcomes[reward] for row in rows]), **arms}
