"""From a trial to numbers with intervals, and from these to checks."""

import math
from typing import NamedTuple

import numpy as np
from scipy import special

from bandit.kernels.compiling import Floats
from bandit.policy import WITHOUT_MODEL
from bandit.spec import ExperimentSpec
from bandit.verdict import Check
from sims.gate.leaks import check_leaks
from sims.gate.static import LEAST_EXPLORATION, UNEXPLORED
from sims.gate.trial import Look, Replication, Trial

LEVEL = 0.95
NOTHING = 1e-12
"""Share of the range of outcomes that is no more than rounding."""
ROUNDING = 1e-9
"""Share of a floor by which a propensity may fall short of it."""
EDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 0.999)
"""Between bins of propensities: finer where they are extreme."""


class Spread(NamedTuple):
    """A mean over replications with its interval."""

    mean: float
    low: float
    high: float


def spread(values: Floats) -> Spread:
    """Give mean and t interval of independent replications."""
    n, mean = len(values), float(values.mean())
    half = float(special.stdtrit(n - 1, 0.5 + LEVEL / 2) * values.std(ddof=1) / math.sqrt(n))
    return Spread(mean, mean - half, mean + half)


def base_of(mean: float, spec: ExperimentSpec) -> float:
    """Give what a loss is a share of: what is earned, or the range of outcomes if that is nothing.

    Little is not nothing: bounds may be far above what a customer earns in the mean.
    """
    return abs(mean) if abs(mean) > NOTHING * spec.outcome.range else spec.outcome.range


def scale(trial: Trial, spec: ExperimentSpec) -> float:
    """Give what a loss is a share of: what the reference earns a customer; see ``base_of``."""
    at = 1 if trial.has_baseline else 2
    mean = float(np.mean([run.earned[at, -1] for run in trial.runs])) / spec.gate.customers
    return base_of(mean, spec)


def regret(trial: Trial, spec: ExperimentSpec) -> Spread:
    """Give what the policy earns less than the reference over the whole run, as a share."""
    at = 1 if trial.has_baseline else 2
    lost = np.array([run.earned[at, -1] - run.earned[0, -1] for run in trial.runs])
    return spread(lost / spec.gate.customers / scale(trial, spec))


def gain(trial: Trial, spec: ExperimentSpec, against: int) -> Spread:
    """Give how much more the policy earns in the last quarter, as a share of the reference."""
    start = int(np.searchsorted(trial.points, 0.75 * spec.gate.customers))
    gains = []
    for run in trial.runs:
        late = run.earned[:, -1] - run.earned[:, start]
        gains.append((late[0] - late[against]) / max(abs(late[against]), 1e-9))
    return spread(np.array(gains))


def worst_segment(trial: Trial, spec: ExperimentSpec) -> tuple[float, str]:
    """Give the largest loss of a segment in the second half, as a share of its baseline."""
    late = np.sum([run.late for run in trial.runs], axis=0)
    sizes = np.sum([run.sizes for run in trial.runs], axis=0)
    half = (spec.gate.customers - spec.gate.customers // 2) * len(trial.runs)
    worst, name = 0.0, ""
    for i, segment in enumerate(trial.segments):
        if sizes[i] < max(spec.gate.smallest_segment * half, 1):
            continue
        base = base_of(float(late[1, i]) / float(sizes[i]), spec)
        lost = float((late[1, i] - late[0, i]) / sizes[i] / base)
        if lost > worst:
            worst, name = lost, segment
    return worst, name


def shares(trial: Trial) -> Floats:
    """Give what every action got, in parts of an even share, shape (k,); NaN: never eligible."""
    got = np.sum([run.got.sum(axis=0) for run in trial.runs], axis=0)
    even = np.sum([run.even.sum(axis=0) for run in trial.runs], axis=0)
    with np.errstate(invalid="ignore"):
        return np.where(even > 0, got / np.maximum(even, 1e-300), np.nan)


class Bin(NamedTuple):
    """Actions whose propensities lie close together: how often they were to be chosen, and were."""

    mean: float
    frequency: float
    low: float
    high: float
    n: int


def calibration(looks: list[Look]) -> tuple[float, list[Bin]]:
    """Compare propensities with frequencies; give the chance of such distance, and the bins.

    Notes
    -----
    Hits of a bin have mean ``sum p`` and at most the variance ``sum p (1 - p)``, since a customer
    gets one action. The least of the normal p-values is multiplied by their number (Bonferroni).
    """
    p = np.concatenate([look.propensities.ravel() for look in looks])
    hit = np.concatenate([_hits(look).ravel() for look in looks])
    used = np.concatenate([look.eligible.ravel() for look in looks])
    p, hit = p[used], hit[used]
    places = np.searchsorted(EDGES, p, side="right")
    bins, least = [], 1.0
    for place in np.unique(places):
        mine = places == place
        mean, variance = float(p[mine].sum()), float((p[mine] * (1 - p[mine])).sum())
        hits, n = float(hit[mine].sum()), int(mine.sum())
        half = 1.96 * math.sqrt(variance) / n
        bins.append(Bin(mean / n, hits / n, mean / n - half, mean / n + half, n))
        if variance > 5.0:  # else the normal law says nothing
            least = min(least, 2.0 * float(special.ndtr(-abs(hits - mean) / math.sqrt(variance))))
        elif abs(hits - mean) > 10.0 + 5.0 * variance:
            least = 0.0
    return min(least * len(bins), 1.0), bins


def _hits(look: Look) -> Floats:
    hits = np.zeros_like(look.propensities)
    sent = look.chosen >= 0
    hits[np.flatnonzero(sent), look.chosen[sent]] = 1.0
    return hits


def sample_size(runs: tuple[Replication, ...], power: float = 0.8) -> int | None:
    """Give how many customers of the experiment show the lift of bandit over random group.

    Notes
    -----
    Two-sided z test at 5 % with the means and variances of the second half of the runs; None
    where one of the groups is empty, or there is nothing to show. Source: Cohen, Statistical
    Power Analysis, 2nd ed. 1988, chapter 2.
    """
    total = np.sum([run.moments for run in runs], axis=0)
    n = total[:, 0]
    if n.min() < 2:
        return None
    means, variances = total[:, 1] / n, total[:, 2] / n - (total[:, 1] / n) ** 2
    difference = float(means[0] - means[1])
    if difference <= 0:
        return None
    z = float(special.ndtri(0.975) + special.ndtri(power))
    each = n / n.sum()
    return math.ceil(z * z * float((np.maximum(variances, 0) / each).sum()) / difference**2)


def check_trial(spec: ExperimentSpec, trial: Trial) -> list[Check]:
    """Check what a trial shows."""
    source = f"world {trial.world}"
    usual = "baseline" if trial.has_baseline else "a uniform draw"
    lost = regret(trial, spec)
    against = gain(trial, spec, 2)
    worst, segment = worst_segment(trial, spec)
    chance, _ = calibration([run.look for run in trial.runs])
    drawn = np.concatenate([run.rewards for run in trial.runs])
    pays = bool(len(drawn) and drawn.min() < drawn.max())
    found = [
        Check.at_most(
            "regret",
            source,
            lost.high,
            spec.gate.regret,
            found=f"over {spec.gate.customers:,} customers it earns {-lost.mean:+.1%} against "
            f"{usual} [{-lost.high:+.1%}, {-lost.low:+.1%}]",
            why="What learning costs while it goes on, exploration and random group included.",
        ),
        Check.at_least(
            "learning",
            source,
            against.high,
            0.0,
            holds=pays,
            found=f"in the last quarter it earns {against.mean:+.1%} against a uniform draw "
            f"[{against.low:+.1%}, {against.high:+.1%}]"
            if pays
            else "no outcome of a uniform draw differs from another: there is nothing to learn",
            why="A policy that ends below chance has learned something that is wrong, and where "
            "outcomes never differ nothing is shown.",
        ),
        Check.at_most(
            "worst_segment",
            source,
            worst,
            spec.gate.segment_regret,
            found=f"worst where {segment}: {-worst:+.1%} against {usual} in the second half"
            if segment
            else "no segment loses",
            why="A mean can hide customers who are served worse for good.",
        ),
        check_leaks(
            spec,
            np.concatenate([run.rows for run in trial.runs[:5]]),
            np.concatenate([run.rewards for run in trial.runs[:5]]),
            source,
        ),
    ]
    if spec.policy.kind == "softmax":
        found.append(_temperature(spec, float(drawn.std()) if pays else 0.0, source))
    return found + _of_propensities(spec, trial, chance, source)


def _temperature(spec: ExperimentSpec, usual: float, source: str) -> Check:
    """Check that softmax explores: its temperature has the unit of the outcomes, and their scale.

    Notes
    -----
    A difference of means by one temperature is answered with e-fold odds. Means of actions differ
    less than outcomes do, but what is believed of them differs as much after one outcome of each:
    what answers a hundredth of that e-fold keeps what looked best by accident.
    """
    temperature = spec.policy.temperature
    spread_of = f"outcomes have a standard deviation of {usual:.3g}"
    return Check.at_least(
        "exploration",
        source,
        temperature / usual if usual > 0.0 else None,
        LEAST_EXPLORATION,
        found=f"policy.temperature is {temperature:.3g}, "
        + (spread_of if usual > 0.0 else "and no outcome differs from another"),
        why=UNEXPLORED,
    )


def _of_propensities(spec: ExperimentSpec, trial: Trial, chance: float, source: str) -> list[Check]:
    share = shares(trial)
    least = int(np.nanargmin(share))
    levels = "/".join(level.name for level in spec.actions.levels(least))
    is_learning = spec.policy.kind not in WITHOUT_MODEL
    looks = [run.look for run in trial.runs]
    lowest = min(float(look.propensities[look.eligible].min()) for look in looks)
    floor = (spec.full_policy.floor or 0.0) if is_learning else 0.0
    return [
        Check.at_least(
            "floor",
            source,
            lowest,
            floor * (1.0 - ROUNDING),
            found=f"the smallest propensity of an eligible action is {lowest:.3g}",
            why="The floor is a promise: every eligible action keeps this chance.",
        ),
        Check.at_least(
            "calibration",
            source,
            chance,
            spec.gate.calibration,
            found=f"chance of frequencies this far from the propensities: {chance:.3g}",
            why="Everything that is measured from the log rests on true propensities.",
        ),
        Check.at_least(
            "starvation",
            source,
            float(share[least]),
            spec.gate.starvation if is_learning else 0.0,
            found=f"{levels} gets {share[least]:.2%} of an even share, the least of all",
            why="An action that is hardly ever tried can not show that it has become good, and "
            "no log can tell what it would have earned.",
        ),
    ]
