"""Whether an estimate can be trusted: weights, support, propensities and groups.

How to read each: docs/how-to/read-diagnostics.md. Every check is about the log and the policy,
not about the rewards, so looking at it does not bias what is estimated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy import special

from bandit.decision import Group
from bandit.errors import InvalidInputError
from bandit.groups import Groups
from bandit.kernels.compiling import Floats, Ints
from bandit.measurement import sample_ratio_p_value
from sims.log import Log
from sims.ope.intervals import Interval
from sims.ope.tuning import standard_error

MAX_POSITIONS = 1_000
FEWEST = 50
"""Rows that chose an action, below which its propensities are not tested."""

EDGES = (
    *(0.0, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3),
    *(0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0),
)
"""Bins of propensities, where those of all actions are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When an estimate is withheld.

    Parameters
    ----------
    effective_rows
        Fewest rows that the weights are worth; below, intervals do not hold either.
    weight_share
        Largest share of all weight that one row may have.
    unsupported
        Largest share of the policy that may fall on actions the log never took.
    mean_weight
        Smallest p-value of the mean weight, which must be 1.
    calibration
        Smallest p-value of the propensities.
    sample_ratio
        Smallest p-value of the sizes of the groups.
    mismatches
        Largest share of rows whose propensity is not what the logging policy gives.
    excluded
        Largest share of rows that may have been left out as bad.
    all_eligible
        Whether every action could be taken in every row. If not, an action that is chosen less
        often than its propensities say is no sign of wrong ones.

    Raises
    ------
    InvalidInputError
        If a limit is out of range.
    """

    effective_rows: float = 100.0
    weight_share: float = 0.1
    unsupported: float = 0.01
    mean_weight: float = 1e-4
    calibration: float = 1e-5
    sample_ratio: float = 1e-3
    mismatches: float = 1e-3
    excluded: float = 0.1
    all_eligible: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.effective_rows < np.inf:
            raise InvalidInputError(
                f"must be at least 0, got {self.effective_rows}", field="limits.effective_rows"
            )
        shares = ("weight_share", "unsupported", "mean_weight", "calibration", "sample_ratio")
        for name in (*shares, "mismatches", "excluded"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InvalidInputError(
                    f"must be in [0, 1], got {getattr(self, name)}", field=f"limits.{name}"
                )


class Calibration(NamedTuple):
    """Propensities of one action or bin against how often it was chosen.

    Attributes
    ----------
    position, action
        -1 where the row is a bin.
    rows
        How often it could be chosen.
    chosen
        How often it was.
    propensity
        What the log says: the mean of a bin, the harmonic mean of an action.
    share
        ``chosen / rows``.
    low, high
        95 % interval of the share (Wilson 1927).
    z
        How many standard errors too often; NaN if chosen too seldom to say.
    """

    position: int
    action: int
    rows: int
    chosen: int
    propensity: float
    share: float
    low: float
    high: float
    z: float


class Support(NamedTuple):
    """An action that the policy takes and the log never took."""

    position: int
    action: int
    mass: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostics:
    """What is known about a log and a policy, before any reward is looked at.

    Parameters
    ----------
    rows
        Rows that estimates use.
    excluded
        Rows left out, by why.
    bad
        How many of these were bad rows.
    effective_rows
        ``(sum w)**2 / sum w**2`` of the plain weights.
    largest_weight, largest_share
        The largest weight, and its share of the sum.
    mean_weight
        Must be 1.
    mean_weight_interval
        Of the mean, by the central limit theorem.
    mean_weight_p
        Chance of a mean at least as far from 1.
    unsupported
        Share of the policy that falls on actions the log never took.
    gaps
        Those actions, the most taken first; at most 20.
    calibration, calibration_p
        Propensities against shares, and the chance of a worst row at least as far off; NaN if
        no action was chosen often enough.
    mismatches
        Rows whose propensity is not what the logging policy gives; None if that is not known.
    sample_ratio_p
        Chance of group sizes at least as far from the declared shares; None if not declared.
    """

    rows: int
    excluded: Mapping[str, int] = field(default_factory=dict)
    bad: int = 0
    effective_rows: float
    largest_weight: float
    largest_share: float
    mean_weight: float
    mean_weight_interval: Interval
    mean_weight_p: float
    unsupported: float
    gaps: tuple[Support, ...] = ()
    calibration: tuple[Calibration, ...] = ()
    calibration_p: float = float("nan")
    mismatches: int | None = None
    sample_ratio_p: float | None = None


def effective_rows(weights: Floats) -> float:
    """Give ``(sum w)**2 / sum w**2``; 0 without weight.

    Notes
    -----
    Kish, Survey Sampling, 1965, section 11.2.
    """
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares > 0.0 else 0.0


class Counts:
    """Gathers from batches what diagnostics need of every action.

    Parameters
    ----------
    size
        Number of actions.
    """

    def __init__(self, size: int) -> None:
        self.rows, self.size = 0, size
        self._tables = np.zeros((4, 0, size))
        """By position and action: chosen, sum of 1 / p, sum of (1 - p) / p**2, target mass."""
        self._seen = np.zeros(0)
        self._least = 1.0
        """Smallest propensity that an action of the log can have had, as far as rows tell."""
        self._bins: Floats | None = None
        self.mismatches: int | None = None
        self._customers: dict[int, list[Ints]] = {}

    def add(self, log: Log, target: Floats, logging: Floats | None = None) -> None:
        """Count a batch.

        Parameters
        ----------
        target : (n, k)
        logging : (n, k) or None
            Probabilities of every action under the policy that logged.

        Raises
        ------
        InvalidInputError
            For a position out of range.
        """
        self.rows += len(log)
        if not len(log):
            return
        positions = np.zeros(len(log), dtype=np.int64) if log.positions is None else log.positions
        if not 0 <= positions.min() <= positions.max() < MAX_POSITIONS:
            raise InvalidInputError(
                f"must be in [0, {MAX_POSITIONS - 1}], got {positions.min()} to {positions.max()}",
                field="log.positions",
            )
        k, more = log.size, int(positions.max()) + 1 - len(self._seen)
        if more > 0:
            self._tables = np.concatenate([self._tables, np.zeros((4, more, k))], axis=1)
            self._seen = np.concatenate([self._seen, np.zeros(more)])
        p, cells, many = log.propensities, positions * k + log.actions, len(self._seen)
        self._seen += np.bincount(positions, minlength=many)
        least, others = float(p.min()), float((1.0 - p).min()) / max(k - 1, 1)
        self._least = min(self._least, least, others if k > 1 else least)
        for table, each in zip(self._tables, (None, 1 / p, (1 - p) / p**2), strict=False):
            table += np.bincount(cells, each, minlength=many * k).reshape(many, k)
        for position in range(many):
            here = positions == position
            self._tables[3, position] += target.sum(axis=0) if here.all() else target[here].sum(0)
        if logging is not None:
            self._add_bins(log, logging)

    def _add_bins(self, log: Log, logging: Floats) -> None:
        if self._bins is None:
            self._bins, self.mismatches = np.zeros((4, len(EDGES) - 1)), 0
        own = logging[np.arange(len(log)), log.actions]
        self.mismatches = (self.mismatches or 0) + int(
            (np.abs(own - log.propensities) > 1e-6 + 1e-3 * log.propensities).sum()
        )
        inside = logging[logging > 0.0]
        which = _bin(inside)
        for row, each in enumerate((None, inside, inside * (1.0 - inside))):
            self._bins[row] += np.bincount(which, each, minlength=len(EDGES) - 1)
        self._bins[3] += np.bincount(_bin(own), minlength=len(EDGES) - 1)

    def add_customers(self, groups: Ints, customers: Ints) -> None:
        """Count the customers of every group, also of groups that are not evaluated."""
        for group in np.unique(groups).tolist():
            found = np.unique(customers[groups == group])
            parts = self._customers.setdefault(group, [])
            parts.append(found)
            if len(parts) > 16:
                self._customers[group] = [np.unique(np.concatenate(parts))]

    def sample_ratio(self, groups: Groups) -> float:
        """Give the p-value of the groups' sizes; those without contact are no part of a log."""
        met = max(1.0 - groups.no_contact, 1e-12)
        declared = Groups(random=groups.random / met, baseline=min(groups.baseline / met, 1.0))
        sizes = {
            Group(group): len(np.unique(np.concatenate(parts)))
            for group, parts in self._customers.items()
            if group != Group.NO_CONTACT
        }
        return sample_ratio_p_value(sizes, declared)

    def gaps(self) -> tuple[float, tuple[Support, ...]]:
        """Give the share of the policy that the log never took, and where."""
        chosen, mass = self._tables[0], self._tables[3]
        missing = np.where(chosen == 0, mass, 0.0) / max(self.rows, 1)
        order = np.argsort(-missing, axis=None, kind="stable")[:20]
        places = [(int(i) // missing.shape[1], int(i) % missing.shape[1]) for i in order]
        worst = [Support(p, a, float(missing[p, a])) for p, a in places if missing[p, a] > 0.0]
        return float(missing.sum()), tuple(worst)

    def calibration(self, *, all_eligible: bool = True) -> tuple[tuple[Calibration, ...], float]:
        """Give the table of propensities, and its p-value.

        Notes
        -----
        Where the propensities of all actions are known: bins. Else every action at every
        position: the sum of 1 / p over the rows that chose it has the number of rows as its
        expectation, and the sum of (1 - p) / p**2 estimates its variance. Rows in which it had
        next to no chance and was not chosen are missing in both. So a sum that is short by d
        has a variance of d / least more, where no propensity is below least. The p-value is that
        of the worst row times their number (Bonferroni).
        """
        found = self._binned() if self._bins is not None else self._by_action()
        tested = np.array([row.z for row in found if not np.isnan(row.z)])
        if not len(tested):
            return tuple(found), float("nan")
        one_sided = self._bins is None and not all_eligible
        worst = float(tested.max()) if one_sided else float(np.abs(tested).max())
        tail = float(special.ndtr(-worst)) * (1 if one_sided else 2)
        return tuple(found), min(tail * len(tested), 1.0)

    def _by_action(self) -> list[Calibration]:
        found = []
        for position, seen in enumerate(self._seen.tolist()):
            for action in np.flatnonzero(self._tables[0, position]).tolist():
                chosen, inverse, spread = self._tables[:3, position, action].tolist()
                z = float("nan")
                if chosen >= FEWEST:
                    # z of the excess of rows: chosen too often means propensities too small
                    distance = inverse - seen
                    if distance < -1e-6 * seen:
                        spread += -distance / max(self._least, 1e-300)
                    z = distance / spread**0.5 if spread > 0.0 else _far(distance, seen)
                found.append(
                    Calibration(
                        position,
                        action,
                        int(seen),
                        int(chosen),
                        chosen / inverse,
                        chosen / seen,
                        *_wilson(chosen, seen),
                        z,
                    )
                )
        return found

    def _binned(self) -> list[Calibration]:
        found = []
        assert self._bins is not None  # noqa: S101  checked by the caller
        for rows, expected, spread, chosen in self._bins.T.tolist():
            if rows == 0:
                continue
            z = float("nan")
            if expected >= FEWEST or chosen >= FEWEST:
                distance = chosen - expected
                z = distance / spread**0.5 if spread > 0.0 else _far(distance, rows)
            share = chosen / rows
            found.append(
                Calibration(
                    -1,
                    -1,
                    int(rows),
                    int(chosen),
                    expected / rows,
                    share,
                    *_wilson(chosen, rows),
                    z,
                )
            )
        return found


def _bin(p: Floats) -> Ints:
    found: Ints = np.minimum(np.searchsorted(EDGES, p, side="right") - 1, len(EDGES) - 2)
    return found


def _far(distance: float, rows: float) -> float:
    """Give z where nothing varies: 0 if nothing is off."""
    return 0.0 if abs(distance) <= 1e-6 * rows else float(np.copysign(99.0, distance))


def _wilson(chosen: float, rows: float) -> tuple[float, float]:
    z, share = 1.959963984540054, chosen / rows
    middle = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * (share * (1 - share) / rows + z**2 / (4 * rows**2)) ** 0.5
    return max(middle - half, 0.0), min(middle + half, 1.0)


class Left(NamedTuple):
    """Rows that were left out, by why, and how many of them were bad."""

    counts: Mapping[str, int]
    bad: int


NOTHING_LEFT = Left({}, 0)


def diagnose(  # noqa: PLR0913  the parts of a diagnosis, named
    counts: Counts,
    weights: Floats,
    customers: Ints | None = None,
    *,
    left: Left = NOTHING_LEFT,
    groups: Groups | None = None,
    limits: Limits | None = None,
    level: float = 0.95,
) -> Diagnostics:
    """Put together what is known.

    Parameters
    ----------
    counts
        Gathered from all rows.
    weights : (n,)
        Plain weights of those rows.
    customers : (n,) or None
        Rows of one resemble each other.
    groups
        The declared shares; None: not compared.
    """
    limits = limits or Limits()
    places = None if customers is None else np.unique(customers, return_inverse=True)[1]
    mean, error = float(weights.mean()), standard_error(weights, places)
    half = float(special.ndtri(0.5 + level / 2)) * error
    off = abs(mean - 1.0)
    certain = 1.0 if off < 1e-9 else 0.0
    p = 2.0 * float(special.ndtr(-off / error)) if error > 1e-12 else certain
    unsupported, gaps = counts.gaps()
    table, calibration_p = counts.calibration(all_eligible=limits.all_eligible)
    total = float(weights.sum())
    return Diagnostics(
        rows=len(weights),
        excluded=dict(left.counts),
        bad=left.bad,
        effective_rows=effective_rows(weights),
        largest_weight=float(weights.max()),
        largest_share=float(weights.max()) / total if total > 0.0 else 0.0,
        mean_weight=mean,
        mean_weight_interval=Interval(mean - half, mean + half, "normal", level),
        mean_weight_p=p,
        unsupported=unsupported,
        gaps=gaps,
        calibration=table,
        calibration_p=calibration_p,
        mismatches=counts.mismatches,
        sample_ratio_p=None if groups is None else counts.sample_ratio(groups),
    )


def doubts(found: Diagnostics, limits: Limits) -> str | None:
    """Say why no estimate of this log can be trusted, and what would help; None if one can."""
    if found.bad > limits.excluded * (found.rows + found.bad):
        return (
            f"{found.bad} of {found.rows + found.bad} rows were left out as bad, and those left "
            "may differ from them; mend the log"
        )
    if found.sample_ratio_p is not None and found.sample_ratio_p < limits.sample_ratio:
        return (
            f"the sizes of the groups are not as declared (p = {found.sample_ratio_p:.1g}): rows "
            "were lost for one group more than for another; find out where"
        )
    if found.unsupported > limits.unsupported:
        worst = ", ".join(str(gap.action) for gap in found.gaps[:5])
        return (
            f"{found.unsupported:.1%} of the policy falls on actions the log never took "
            f"({worst}); log some rows of them, or take them out of the policy"
        )
    return None


def weight_doubts(found: Diagnostics, limits: Limits) -> str | None:
    """Say why no estimate that divides by propensities can be trusted."""
    if (found.mismatches or 0) > limits.mismatches * found.rows:
        return (
            f"{found.mismatches} rows have another propensity than the policy that is said to "
            "have logged them; check which policy that was"
        )
    if found.calibration_p < limits.calibration:
        return (
            f"actions were not chosen as often as their propensities say (p = "
            f"{found.calibration_p:.1g}); see the calibration table for which, and mend how "
            "propensities are logged"
        )
    if found.mean_weight_p < limits.mean_weight:
        return (
            f"the mean weight is {found.mean_weight:.3f} and must be 1 (p = "
            f"{found.mean_weight_p:.1g}): propensities are wrong, or the policy takes actions "
            "where the log never does"
        )
    return None


def spread_doubts(weights: Floats, limits: Limits) -> str | None:
    """Say why an estimate with these weights rests on too few rows."""
    effective, total = effective_rows(weights), float(weights.sum())
    better = (
        "log more rows, explore more (a larger random group or floor), evaluate a policy nearer "
        "to the one that logged, or use an estimator that shrinks weights"
    )
    if effective < limits.effective_rows:
        return (
            f"the weights are worth {effective:.0f} rows, at least {limits.effective_rows:.0f} "
            f"are needed; {better}"
        )
    if total > 0.0 and float(weights.max()) > limits.weight_share * total:
        return (
            f"one row has {float(weights.max()) / total:.0%} of all weight, at most "
            f"{limits.weight_share:.0%} is trusted; {better}"
        )
    return None
