"""How many customers a test needs to see a given lift: power, by simulation of the world."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from scipy import special

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Bools, Floats
from bandit.spec import ExperimentSpec
from sims.rollouts.detect import FEWEST
from sims.rollouts.plan import MAX_CUSTOMERS
from sims.rollouts.records import CONFIDENCE
from sims.worlds import Course, World

_STEP = 1.15
_SURE = 1.0 - 1e-9
_MARGIN = 0.07
_BOOTSTRAPS = 1_000
_AHEAD = 2_048
"""Customers of a test who are drawn together: even, since arms take turns."""


class Power(NamedTuple):
    """Share of simulated tests that see the lift, with so many customers in each arm.

    Attributes
    ----------
    low, high
        Wilson's 95 % interval of the share.
    """

    customers: int
    power: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class SampleSize:
    """How many customers a test needs.

    Parameters
    ----------
    lift, power
        What was asked: the relative lift, and how surely it is to be seen.
    customers, low, high
        Of each arm, and the 95 % interval (bootstrap over the simulated tests).
    curve
        The power at every size that was looked at.
    """

    lift: float
    power: float
    customers: int
    low: int
    high: int
    curve: tuple[Power, ...]

    def table(self) -> pa.Table:
        """Give the curve as a table."""
        return pa.Table.from_pylist([point._asdict() for point in self.curve])


def sample_size(  # noqa: PLR0913  what a test is made of
    spec: ExperimentSpec,
    world: World,
    *,
    lift: float,
    power: float = 0.8,
    seed: int = 1,
    tests: int = 400,
    most: int = 1_000_000,
    progress: Callable[[int, float], None] | None = None,
) -> SampleSize:
    """Find how many customers of each arm let a test see that one is better by a lift.

    Both arms get the baseline; in one of them every expected outcome is raised by the lift, but for
    those who respond to everything already. So the noise is the world's: its rates, its mix of
    customers, what is never heard of.

    Parameters
    ----------
    lift
        Relative, such as 0.05 for 5 % more.
    power
        Share of tests that are to see it: whose 95 % interval of the difference lies above 0.
    tests
        Simulated tests; the uncertainty falls with their square root.
    most
        Customers of each arm to look at.
    progress
        Told the size that was looked at, and its power.

    Raises
    ------
    InvalidInputError
        If a number is out of range, there is no baseline, the world is not memoryless, the lift
        makes outcomes larger than they can be, or ``most`` does not reach the power.

    Notes
    -----
    All tests grow together, 15 % at a time, until the power is passed by a margin. The curve is
    made to rise (isotonic regression) and read between its points on a logarithmic scale.
    """
    _check(lift, power, tests, most)
    if spec.baseline is None:
        raise InvalidInputError("is needed: it is what both arms get", field="baseline")
    b = spec.baseline
    action = spec.actions.index(b.variant, b.channel, b.slot)
    trials = [
        _Trial(Course(world, spec, seed=seed, replication=r), action, lift) for r in range(tests)
    ]
    sizes: list[int] = []
    seen: list[Bools] = []
    size, wanted = FEWEST, min(power + _MARGIN, 1.0 - 1.0 / tests)
    while True:
        for trial in trials:
            trial.grow(size)
        sizes.append(size)
        seen.append(np.array([trial.sees() for trial in trials]))
        share = float(seen[-1].mean())
        if progress is not None:
            progress(size, share)
        if share >= wanted or (size == most and share >= power):
            break
        if size == most:
            raise InvalidInputError(
                f"{most:,} customers of each arm see a lift of {lift:.3g} with a power of "
                f"{share:.3f} only; look at more, or ask for a larger lift",
                field="most",
            )
        size = min(math.ceil(size * _STEP), most)
    return _found(lift, power, sizes, np.array(seen), seed)


class _Trial:
    """One simulated test: customers in turn get the one arm and the other."""

    def __init__(self, course: Course, action: int, lift: float) -> None:
        if not course.is_memoryless:
            raise InvalidInputError(
                "is not memoryless: arms would share customers who get tired; leave fatigue and "
                "unsubscribes out to find a sample size",
                field="world",
            )
        self._course = course
        self._history = course.history()
        self._action = action
        self._factor = 1.0 + lift
        self._is_rate = course.world.response == "logistic"
        self._used = 0
        self._ahead = np.empty(0)
        self._sums = np.zeros((3, 2))

    def grow(self, size: int) -> None:
        """Let customers come until each arm has had so many."""
        while self._used < 2 * size:
            if not len(self._ahead):
                self._ahead = self._drawn(self._used, self._used + _AHEAD)
            taken, self._ahead = np.split(self._ahead, [2 * size - self._used])
            for arm in (0, 1):  # customers in turn, and stretches of even length
                values = taken[arm::2]
                values = values[~np.isnan(values)]
                self._sums[:, arm] += len(values), values.sum(), (values * values).sum()
            self._used += len(taken)

    def _drawn(self, start: int, stop: int) -> Floats:
        """Give what the next customers earn, in their arms in turn."""
        arrivals = self._course.arrivals(start, stop)
        expected = self._course.expected(arrivals, start, self._history)
        arm = expected[1::2, self._action]
        raised = arm * self._factor
        if self._is_rate:
            raised = np.where(self._course.means(arm) < _SURE, raised, arm)  # bots do all they can
            highest = self._course.means(raised).max()
            if highest > 1.0 + 1e-9:
                raise InvalidInputError(
                    f"raises some customer's rate above 1, to {highest:.3f}", field="lift"
                )
        expected[1::2, self._action] = raised
        actions = np.full(stop - start, self._action)
        return self._course.respond(arrivals, start, actions, expected).rewards

    def sees(self) -> bool:
        """Whether the 95 % interval of the difference lies above zero."""
        n, total, squares = self._sums
        if n.min() < 2:
            return False
        mean = total / n
        variance = np.maximum(squares / n - mean * mean, 0.0) / (n - 1.0)
        half = float(special.ndtri(0.5 + CONFIDENCE / 2)) * math.sqrt(float(variance.sum()))
        return bool(mean[1] - mean[0] > half)


def _found(lift: float, power: float, sizes: list[int], seen: Bools, seed: int) -> SampleSize:
    """Read the size off the curve, and off curves of resampled tests; ``seen : (c, r)``."""
    tests = seen.shape[1]
    logs = np.log(np.array(sizes, dtype=np.float64))
    random = np.random.default_rng([seed, tests])
    drawn = random.integers(0, tests, (_BOOTSTRAPS, tests))
    found = [_crossing(logs, seen[:, one].mean(axis=1), power) for one in drawn]
    low, high = np.quantile(found, [0.025, 0.975])
    curve = [
        Power(size, float(one.mean()), *wilson(int(one.sum()), tests))
        for size, one in zip(sizes, seen, strict=True)
    ]
    return SampleSize(
        lift=lift,
        power=power,
        customers=math.ceil(math.exp(_crossing(logs, seen.mean(axis=1), power))),
        low=math.floor(math.exp(low)),
        high=math.ceil(math.exp(high)),
        curve=tuple(curve),
    )


def _crossing(logs: Floats, shares: Floats, power: float) -> float:
    """Give where a curve, made to rise, reaches a power; its last point if it does not."""
    rising = isotonic(shares)
    at = int(np.argmax(rising >= power))
    if rising[at] < power:
        return float(logs[-1])
    if at == 0:
        return float(logs[0])
    part = (power - rising[at - 1]) / (rising[at] - rising[at - 1])
    return float(logs[at - 1] + part * (logs[at] - logs[at - 1]))


def isotonic(values: Floats) -> Floats:
    """Give the rising sequence nearest to ``values : (c,)`` in squares (pool adjacent violators).

    Examples
    --------
    >>> isotonic(np.array([1.0, 3.0, 2.0, 4.0])).tolist()
    [1.0, 2.5, 2.5, 4.0]
    """
    blocks: list[tuple[float, int]] = []
    for value in values.tolist():
        mean, count = value, 1
        while blocks and blocks[-1][0] >= mean:
            before, n = blocks.pop()
            mean, count = (before * n + mean * count) / (n + count), n + count
        blocks.append((mean, count))
    return np.repeat([mean for mean, _ in blocks], [count for _, count in blocks])


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Give the 95 % interval of a share (Wilson, JASA 22, 1927).

    Examples
    --------
    >>> [round(end, 3) for end in wilson(8, 10)]
    [0.49, 0.943]
    """
    z = float(special.ndtri(0.5 + CONFIDENCE / 2))
    share, shift = successes / n, z * z / (2.0 * n)
    half = z * math.sqrt(share * (1.0 - share) / n + shift * shift / (z * z))
    scale = 1.0 + z * z / n
    return (share + shift - half) / scale, (share + shift + half) / scale


def _check(lift: float, power: float, tests: int, most: int) -> None:
    if not 0.0 < lift <= 100.0:
        raise InvalidInputError(f"must be in (0, 100], got {lift}", field="lift")
    if not 0.05 <= power <= 0.99:
        raise InvalidInputError(f"must be in [0.05, 0.99], got {power}", field="power")
    if not 20 <= tests <= 100_000:
        raise InvalidInputError(f"must be in [20, 100000], got {tests}", field="tests")
    if not FEWEST <= most <= MAX_CUSTOMERS:
        raise InvalidInputError(f"must be in [{FEWEST}, {MAX_CUSTOMERS}], got {most}", field="most")
