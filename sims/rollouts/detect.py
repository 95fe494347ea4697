"""How soon a lift is seen: by a test at a fixed size, and by one that may look at any time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from scipy import special

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Bools, Floats, Ints
from sims.rollouts.plan import BASELINE
from sims.rollouts.records import CONFIDENCE, Rollout

FEWEST = 50
"""Outcomes an arm needs before a test looks: both tests rest on a normal limit."""


class Seen(NamedTuple):
    """How often a lift is seen after some customers of each arm.

    Attributes
    ----------
    better, worse
        Share of replications whose interval at this size lies above, or below, zero.
    by_now
        Share of replications in which the confidence sequence has left zero out, now or before.
    """

    customers: int
    better: float
    worse: float
    by_now: float


@dataclass(frozen=True, kw_only=True)
class Detection:
    """When a policy is seen to differ from another, over the replications of a rollout.

    Parameters
    ----------
    policy, against
        Labels of the two arms.
    seen
        By checkpoint.
    times : (r,)
        Customers of each arm after which the confidence sequence first leaves zero out, at a
        checkpoint; NaN: it never does.
    """

    policy: str
    against: str
    seen: tuple[Seen, ...]
    times: Floats

    def customers_for(self, share: float = 0.8) -> int | None:
        """Give the first checkpoint from which on at least a share sees a better policy.

        Raises
        ------
        InvalidInputError
            If the share is not in (0, 1].
        """
        if not 0.0 < share <= 1.0:
            raise InvalidInputError(f"must be in (0, 1], got {share}", field="share")
        found = None
        for one in reversed(self.seen):
            if one.better < share:
                break
            found = one.customers
        return found

    @property
    def median(self) -> float | None:
        """The median of ``times``; None if half of the replications never see a difference."""
        ordered = np.sort(np.where(np.isnan(self.times), math.inf, self.times))
        middle = float(ordered[(len(ordered) - 1) // 2])
        return middle if math.isfinite(middle) else None

    def table(self) -> pa.Table:
        """Give a table: a row per checkpoint."""
        rows = [{"policy": self.policy, "against": self.against, **s._asdict()} for s in self.seen]
        return pa.Table.from_pylist(rows)


def detection(found: Rollout, policy: str, against: str = BASELINE) -> Detection:
    """Tell how soon a test of two arms sees that one policy is better than the other.

    Each replication is a test with as many customers in either arm. The other arm is that of the
    next replication: arms on common random numbers would resemble each other, as the customers of
    a real test do not. Where every replication has a truth of its own, only the noise of the other
    arm is the next replication's, and what it is expected to earn that of the same one.

    Raises
    ------
    InvalidInputError
        If a label is unknown, both are the same, or there is one replication only.

    Notes
    -----
    The interval at a fixed size is Welch's. The confidence sequence is asymptotic and valid at all
    checkpoints together (Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, Annals of Statistics
    52(6), 2024): with v the variance of the difference and n outcomes an arm,
    ``sqrt(v 2 (n r + 1) / (n r) log(sqrt(n r + 1) / alpha))``, where r makes it tightest at a
    quarter of the customers. See ``docs/math/detection.md``.
    """
    plan = found.plan
    if plan.replications < 2:
        raise InvalidInputError("needs 2 or more to compare them", field="replications")
    if policy == against:
        raise InvalidInputError("is the policy itself", field="against")
    mine, theirs = _arm(found, policy), _arm(found, against).rolled()
    difference = mine.mean - theirs.mean
    if plan.world.is_drawn_anew:
        value = found.each("value", against)
        difference -= value - np.roll(value, -1, axis=0)
    variance = mine.variance + theirs.variance
    looks = (mine.count >= FEWEST) & (theirs.count >= FEWEST) & (variance > 0.0)
    half = float(special.ndtri(0.5 + CONFIDENCE / 2)) * np.sqrt(variance)
    size = 0.5 * (mine.count + theirs.count).astype(np.float64)
    reach = np.sqrt(variance) * sequence_factor(size, plan.customers / 4.0)
    left = looks & (np.abs(difference) > reach)
    ever = np.logical_or.accumulate(left, axis=1)
    points = np.array(plan.checkpoints, dtype=np.float64)
    times = np.where(ever[:, -1], points[left.argmax(axis=1)], np.nan)
    columns = (looks & (difference > half), looks & (difference < -half), ever)
    seen = tuple(_seen(plan.checkpoints, columns))
    return Detection(policy=policy, against=against, seen=seen, times=times)


def sequence_factor(size: Floats, tightest: float) -> Floats:
    """Give the half-width of a confidence sequence in standard errors, after ``size`` outcomes."""
    alpha = 1.0 - CONFIDENCE
    rate = (-2.0 * math.log(alpha) + math.log(1.0 - 2.0 * math.log(alpha))) / max(tightest, 1.0)
    nr = np.maximum(size, 1.0) * rate
    return np.asarray(np.sqrt(2.0 * (nr + 1.0) / nr * np.log(np.sqrt(nr + 1.0) / alpha)))


@dataclass(frozen=True, slots=True)
class _Arm:
    """Outcomes of one arm so far: count, mean and variance of the mean, (r, c) each."""

    count: Ints
    mean: Floats
    variance: Floats

    def rolled(self) -> "_Arm":
        """Give every replication the outcomes of the next one."""
        return _Arm(
            np.roll(self.count, -1, axis=0),
            np.roll(self.mean, -1, axis=0),
            np.roll(self.variance, -1, axis=0),
        )


def _arm(found: Rollout, label: str) -> _Arm:
    t, p = found.track, found.plan.place(label)
    n = np.maximum(t.known[p], 2)
    mean = t.reward[p] / n
    squares = np.maximum(t.squares[p] - n * mean * mean, 0.0)
    return _Arm(t.known[p], mean, squares / (n - 1) / n)


def _seen(checkpoints: tuple[int, ...], columns: tuple[Bools, ...]) -> Iterator[Seen]:
    shares = [column.mean(axis=0).tolist() for column in columns]
    for customers, better, worse, by_now in zip(checkpoints, *shares, strict=True):
        yield Seen(customers, better, worse, by_now)
