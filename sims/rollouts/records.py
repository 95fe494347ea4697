"""What a rollout found: plain records, and tables of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from scipy import special

from bandit.actions import FACTORS
from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats
from sims.rollouts.plan import BASELINE, UNIFORM, Plan
from sims.rollouts.tracks import Track

CONFIDENCE = 0.95
MEASURES = ("regret", "reward", "value", "best_share", "heard_share", "nothing_share")


class Estimate(NamedTuple):
    """A mean over replications, and its interval.

    Attributes
    ----------
    mean
        NaN where there is nothing to take it of.
    low, high
        Ends of the Student interval over replications; NaN with fewer than two.
    """

    mean: float
    low: float
    high: float


class Line(NamedTuple):
    """One policy after some customers, as means over replications with their intervals.

    Attributes
    ----------
    regret
        Sum of what the best eligible action was expected to earn more than the chosen one.
    reward
        Mean outcome of a customer of whom something was heard.
    value
        Mean expected outcome of what was chosen: the reward without its noise.
    best_share
        Share of the customers who got a best action.
    lift_baseline, lift_uniform
        Mean expected outcome, relative to that of the reference on the same customers, less one.
    """

    policy: str
    customers: int
    regret: Estimate
    reward: Estimate
    value: Estimate
    best_share: Estimate
    lift_baseline: Estimate
    lift_uniform: Estimate


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What a rollout found.

    Parameters
    ----------
    plan
        What was asked.
    track
        All replications.
    """

    plan: Plan
    track: Track

    @property
    def labels(self) -> tuple[str, ...]:
        """The policies, the references last."""
        return self.plan.labels

    @cached_property
    def _customers(self) -> Floats:
        return np.array(self.plan.checkpoints, dtype=np.float64)

    def each(self, measure: str, label: str) -> Floats:
        """Give a measure of every replication at every checkpoint, shape (r, c).

        Parameters
        ----------
        measure
            ``regret`` (a sum), or per customer so far: ``reward`` (of those heard of), ``value``,
            ``best_share``, ``heard_share``, ``nothing_share``.

        Raises
        ------
        InvalidInputError
            If there is no such measure or label.
        """
        t, p, n = self.track, self.plan.place(label), self._customers
        match measure:
            case "regret":
                return np.asarray(t.optimum[p] - t.value[p])
            case "reward":
                with np.errstate(invalid="ignore"):
                    return np.asarray(t.reward[p] / t.known[p])
            case "value":
                return np.asarray(t.value[p] / n)
            case "best_share":
                return np.asarray(t.best[p] / n)
            case "heard_share":
                return np.asarray(t.known[p] / n)
            case "nothing_share":
                return np.asarray(t.nothing[p] / n)
        raise InvalidInputError(f"{measure!r} is none of {', '.join(MEASURES)}", field="measure")

    def lifts(self, label: str, against: str, *, is_relative: bool = True) -> Floats:
        """Give the lift of expected outcomes on the same customers, shape (r, c).

        Parameters
        ----------
        is_relative
            Around the ratio of means less one, NaN unless the reference's is positive; else the
            difference per customer.

        Raises
        ------
        InvalidInputError
            If there is no such label.

        Notes
        -----
        Relative lifts are those of the ratio to first order, so that their mean is the ratio's and
        their spread has both errors in it (Cochran, Sampling Techniques, 1977, section 6.3).
        """
        mine, theirs = self.each("value", label), self.each("value", against)
        if not is_relative:
            return mine - theirs
        base = theirs.mean(axis=0)
        base = np.where(base > 0.0, base, np.nan)
        ratio = mine.mean(axis=0) / base
        return np.asarray((mine - ratio * theirs) / base + (ratio - 1.0))

    def estimate(self, measure: str, label: str) -> list[Estimate]:
        """Give a measure's mean and interval at every checkpoint; see ``each``."""
        return _estimates(self.each(measure, label))

    def lift(self, label: str, against: str) -> list[Estimate]:
        """Give the relative lift's mean and interval at every checkpoint; see ``lifts``."""
        return _estimates(self.lifts(label, against))

    def lines(self, *, only_last: bool = False) -> Iterator[Line]:
        """Give every policy at every checkpoint, or at the last one."""
        nothing = [Estimate(np.nan, np.nan, np.nan)] * len(self.plan.checkpoints)
        for label in self.labels:
            columns = [self.estimate(m, label) for m in ("regret", "reward", "value", "best_share")]
            columns += [
                self.lift(label, reference) if reference in self.labels else nothing
                for reference in (BASELINE, UNIFORM)
            ]
            lines = list(zip(self.plan.checkpoints, *columns, strict=True))
            for customers, *figures in lines[-1:] if only_last else lines:
                yield Line(label, customers, *figures)

    def table(self) -> pa.Table:
        """Give a table: a row per policy and checkpoint, three columns a figure."""
        rows = []
        for line in self.lines():
            row: dict[str, object] = {"policy": line.policy, "customers": line.customers}
            for name, figure in zip(Line._fields[2:], line[2:], strict=True):
                row |= {name: figure.mean, f"{name}_low": figure.low, f"{name}_high": figure.high}
            rows.append(row)
        return pa.Table.from_pylist(rows)

    def replications(self) -> pa.Table:
        """Give a table of the raw figures: a row per policy, replication and checkpoint."""
        t, (r, c) = self.track, self.track.value.shape[1:]
        columns: dict[str, object] = {
            "policy": np.repeat(np.array(self.labels), r * c),
            "replication": np.tile(np.repeat(t.replications, c), len(self.labels)),
            "customers": np.tile(np.array(self.plan.checkpoints), len(self.labels) * r),
            "regret": (t.optimum - t.value).ravel(),
        }
        for name in ("value", "reward", "squares", "known", "best", "nothing"):
            columns[name] = getattr(t, name).ravel()
        return pa.table(columns)

    def allocation(self) -> pa.Table:
        """Give who got what: a row per policy, checkpoint and action.

        ``share`` is of the customers since the checkpoint before, as the mean over replications
        with its interval.
        """
        points, space = np.array(self.plan.checkpoints), self.plan.spec.actions
        k, c = space.size, len(points)
        share, low, high = self._shares()
        levels = [[level.name for level in space.levels(action)] for action in range(k)]
        columns: dict[str, object] = {
            "policy": np.repeat(np.array(self.labels), c * k),
            "customers": np.tile(np.repeat(points, k), len(self.labels)),
            "action": np.tile(np.arange(k), c * len(self.labels)),
        }
        for at, factor in enumerate(FACTORS):
            names = np.array([names[at] for names in levels])
            columns[factor] = np.tile(names, c * len(self.labels))
        figures = {"share": share, "share_low": low, "share_high": high}
        return pa.table(columns | {name: values.ravel() for name, values in figures.items()})

    def levels(self, factor: str) -> pa.Table:
        """Give who got which level of one factor: a row per policy, checkpoint and level.

        Raises
        ------
        InvalidInputError
            If the factor is none of variant, channel, slot.
        """
        if factor not in FACTORS:
            raise InvalidInputError(f"{factor!r} is none of {', '.join(FACTORS)}", field="factor")
        space, at = self.plan.spec.actions, FACTORS.index(factor)
        names = [level.name for level in space.factors[at]]
        share = self._shares()[0]
        place = space.table[:, at]
        sums = np.stack([share[..., place == i].sum(axis=-1) for i in range(len(names))], axis=-1)
        p, c, n = sums.shape
        return pa.table(
            {
                "policy": np.repeat(np.array(self.labels), c * n),
                "customers": np.tile(np.repeat(np.array(self.plan.checkpoints), n), p),
                factor: np.tile(np.array(names), p * c),
                "share": sums.ravel(),
            }
        )

    def _shares(self) -> tuple[Floats, Floats, Floats]:
        """Give the share of every action between checkpoints, and its interval, (p, c, k)."""
        r = len(self.track.replications)
        size = np.diff(self.plan.checkpoints, prepend=0).astype(np.float64)[:, None]
        mean = self.track.counts / r
        if r < 2:
            unknown = np.full(mean.shape, np.nan)
            return mean / size, unknown, unknown
        spread = np.maximum(self.track.count_squares - r * mean * mean, 0.0) / (r - 1)
        half = _quantile(r) * np.sqrt(spread / r)
        return mean / size, (mean - half) / size, (mean + half) / size


def _estimates(values: Floats) -> list[Estimate]:
    """Give mean and Student interval of ``values : (r, c)`` over r replications."""
    r = len(values)
    mean = values.mean(axis=0)
    half = np.full(len(mean), np.nan)
    if r > 1:
        half = _quantile(r) * values.std(axis=0, ddof=1) / np.sqrt(r)
    columns = zip(mean.tolist(), (mean - half).tolist(), (mean + half).tolist(), strict=True)
    return [Estimate(*one) for one in columns]


def _quantile(replications: int) -> float:
    return float(special.stdtrit(replications - 1, 0.5 + CONFIDENCE / 2))
