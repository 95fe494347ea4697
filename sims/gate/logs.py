"""What a log says of the policy: whether it can be judged by it, and what it would have earned."""

import math
from typing import NamedTuple

import numpy as np
from scipy import special

from bandit.experiment import Experiment
from bandit.kernels.compiling import Floats
from bandit.spec import ExperimentSpec
from bandit.verdict import Check
from sims.gate.leaks import check_leaks
from sims.gate.measures import base_of
from sims.log import Log
from sims.ope.targets import target_of


class Judged(NamedTuple):
    """The policy on the later half of a log, after it learned the earlier one.

    Attributes
    ----------
    weights : (n,)
        Probability of the logged action under the policy over its propensity.
    effective
        Rows of the policy's own log that would say as much.
    value, low, high
        Self-normalised estimate of its mean outcome with a 95 % interval.
    logged
        Mean outcome of the log itself in these rows.
    chance
        Of propensities this far from the frequencies of the log.
    """

    weights: Floats
    effective: float
    value: float
    low: float
    high: float
    logged: float
    chance: float


def judge(spec: ExperimentSpec, log: Log) -> Judged:
    """Let the policy learn the earlier half of a log, and weight the later half towards it.

    Raises
    ------
    InvalidInputError
        If the log has no contexts, or they do not fit the experiment.
    """
    experiment = Experiment(spec, secret=b"gate" * 8)
    posterior = experiment.prior()
    half = len(log) // 2
    rows = log.rows if log.rows is not None else np.empty((len(log), 0))
    if half:
        times = np.arange(half, dtype=np.float64) if log.times is None else log.times[:half]
        experiment.learn(
            posterior,
            rows[:half],
            log.actions[:half].tolist(),
            log.rewards[:half],
            seq=half,
            times=times,
        )
    snapshot = experiment.publish(posterior, version=1)
    later = Log(
        rows=rows[half:],
        actions=log.actions[half:],
        rewards=log.rewards[half:],
        propensities=log.propensities[half:],
        size=log.size,
    )
    target = target_of(experiment, snapshot)(later)
    weights = target[np.arange(len(later)), later.actions] / later.propensities
    total, squares = float(weights.sum()), float((weights**2).sum())
    value = float((weights * later.rewards).sum() / total) if total > 0 else math.nan
    error = (
        math.sqrt(float((weights**2 * (later.rewards - value) ** 2).sum())) / total
        if total
        else math.nan
    )
    return Judged(
        weights=weights,
        effective=total**2 / squares if squares > 0 else 0.0,
        value=value,
        low=value - 1.96 * error,
        high=value + 1.96 * error,
        logged=float(later.rewards.mean()) if len(later) else math.nan,
        chance=_chance(log),
    )


def _chance(log: Log) -> float:
    """Give the chance of the sums of 1 / propensity by action, if the propensities are right.

    Each action's sum has mean n where it is always eligible, less where it is not; so only sums
    above n count against the propensities.
    """
    n, least = len(log), 1.0
    inverse = 1.0 / log.propensities
    for action in range(log.size):
        mine = inverse[log.actions == action]
        if len(mine) < 10:
            continue
        variance = float((mine * (mine - 1.0)).sum())
        if variance > 0:
            excess = (float(mine.sum()) - n) / math.sqrt(variance)
            least = min(least, float(special.ndtr(-excess)))
    return min(least * log.size, 1.0)


def check_log(spec: ExperimentSpec, log: Log, judged: Judged, name: str) -> list[Check]:
    """Check what a log shows."""
    source = f"log {name}"
    rows = log.rows if log.rows is not None else np.empty((len(log), 0))
    reach = judged.effective >= spec.gate.effective_sample
    found = [
        check_leaks(spec, rows, log.rewards, source),
        Check(
            name="effective_sample",
            source=source,
            passed=reach,
            value=judged.effective,
            limit=spec.gate.effective_sample,
            bound="at least",
            found=f"{len(judged.weights):,} rows say as much of this policy as "
            f"{judged.effective:,.0f} rows of its own log",
            why="With few effective rows an estimate from the log is a guess.",
        ),
        Check(
            name="log_calibration",
            source=source,
            passed=judged.chance >= spec.gate.calibration,
            value=judged.chance,
            limit=spec.gate.calibration,
            bound="at least",
            found=f"chance of frequencies this far above the logged propensities: "
            f"{judged.chance:.3g}",
            why="Wrong propensities make every estimate from the log wrong.",
        ),
    ]
    if reach and math.isfinite(judged.value):
        found.append(_value(spec, judged, source))
    return found


def _value(spec: ExperimentSpec, judged: Judged, source: str) -> Check:
    lost = (judged.logged - judged.high) / base_of(judged.logged, spec)
    return Check(
        name="log_regret",
        source=source,
        passed=lost <= spec.gate.regret,
        value=lost,
        limit=spec.gate.regret,
        bound="at most",
        found=f"it would have earned {judged.value:.4g} [{judged.low:.4g}, {judged.high:.4g}] a "
        f"customer; what was logged earned {judged.logged:.4g}",
        why="A policy that the log shows to be worse than what is done today should not start.",
    )
