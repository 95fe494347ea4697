"""What a log says of the policy: whether it can be judged by it, and what it would have earned."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy import special

from bandit.experiment import Experiment
from bandit.kernels.compiling import Floats
from bandit.spec import ExperimentSpec
from bandit.verdict import MAX_TEXT, Check
from sims.gate.leaks import check_leaks
from sims.gate.measures import LEVEL, base_of
from sims.log import Log, taken
from sims.ope.candidates import learned, policy_of
from sims.ope.diagnostics import Counts, Limits, doubts, spread_doubts, weight_doubts
from sims.ope.estimators import Weighed
from sims.ope.evaluate import Evaluation, evaluate


class Judged(NamedTuple):
    """The policy on the later half of a log, after it learned the earlier one.

    Attributes
    ----------
    evaluation
        Of the later half; see ``sims.ope``.
    estimate
        Which of its estimates counts: ``snips``; ``ips`` where the policy that logged learned.
    chance
        Of propensities this far from the frequencies of the whole log.
    doubt
        Why no estimate of this log can be trusted; None if one can.
    """

    evaluation: Evaluation
    estimate: str
    chance: float
    doubt: str | None

    @property
    def weights(self) -> Floats:
        """Probability of the logged action under the policy over its propensity, (n,)."""
        return self._weighed.weights

    @property
    def _weighed(self) -> Weighed:
        return next(iter(self.evaluation.columns.weighed.values()))

    @property
    def effective(self) -> float:
        """Rows of the policy's own log that would say as much."""
        return self.evaluation.diagnostics.effective_rows

    @property
    def value(self) -> float:
        """Its mean outcome; NaN where that can not be told."""
        value = self.evaluation[self.estimate].value
        if value is not None:
            return value
        return math.nan if self._constant is None else self._constant

    @property
    def ends(self) -> tuple[float, float]:
        """A 95 % interval of the value, for one look; NaN where there is none.

        Notes
        -----
        Where all outcomes of the policy's actions are the same, as when nobody answered it, their
        spread is that of all logged outcomes: if the policy is no worse than what was logged, its
        outcomes are spread like those (a score test).
        """
        intervals = self.evaluation[self.estimate].intervals
        if intervals:
            return intervals[0].low, intervals[0].high
        if self._constant is None:
            return math.nan, math.nan
        rewards, middle = self._weighed.rewards, self._constant
        z = float(special.ndtri(0.5 + LEVEL / 2))
        half = z * float(rewards.std()) / math.sqrt(self.effective)
        return max(middle - half, float(rewards.min())), min(middle + half, float(rewards.max()))

    @property
    def logged(self) -> float:
        """Mean outcome of the log itself in these rows."""
        return float(self._weighed.rewards.mean())

    @property
    def reason(self) -> str:
        """Why its value can not be told; empty if it can."""
        if math.isfinite(self.ends[1]):
            return ""
        rewards = self._weighed.rewards
        if len(rewards) and _is_even(rewards):
            return f"every outcome of the log is {rewards[0]:.4g}"
        found = self.evaluation[self.estimate]
        return found.withheld or found.caution or "it has no interval"

    @property
    def _constant(self) -> float | None:
        """The one outcome of all actions that are the policy's, while others had other outcomes."""
        matched = self._weighed.rewards[self.weights > 0.0]
        told = self.doubt is None and len(matched) > 0 and _is_even(matched)
        return float(matched[0]) if told and not _is_even(self._weighed.rewards) else None


def _is_even(rewards: Floats) -> bool:
    return float(rewards.min()) == float(rewards.max())


def judge(spec: ExperimentSpec, log: Log) -> Judged:
    """Let the policy learn the earlier half of a log, and evaluate it on the later half.

    Raises
    ------
    InvalidInputError
        If the log has fewer than two rows, or does not fit the experiment.
    """
    experiment = Experiment(spec, secret=b"gate" * 8)
    if log.rows is None:
        log = replace(log, rows=np.empty((len(log), 0)))
    half = len(log) // 2
    posterior = learned(experiment, [taken(log, slice(0, half))])
    limits = Limits(
        effective_rows=spec.gate.effective_sample,
        calibration=spec.gate.calibration,
        all_eligible=False,  # exclusions of single requests are not in a log
    )
    evaluation = evaluate(
        taken(log, slice(half, None)),
        policy_of(experiment, posterior),
        estimators=["snips", "ips"],
        replicates=0,
        limits=limits,
    )
    is_adaptive = evaluation.columns.collection.is_adaptive
    counts = Counts(log.size)
    counts.add(log, np.zeros((len(log), log.size)))
    _, chance = counts.calibration(all_eligible=False)
    weights = next(iter(evaluation.columns.weighed.values())).weights
    found = evaluation.diagnostics
    doubt = doubts(found, limits) or weight_doubts(found, limits)
    return Judged(
        evaluation=evaluation,
        estimate="ips" if is_adaptive else "snips",
        chance=1.0 if math.isnan(chance) else chance,
        doubt=doubt or spread_doubts(weights, limits),
    )


def check_log(spec: ExperimentSpec, log: Log, judged: Judged, name: str) -> list[Check]:
    """Check what a log shows."""
    source = f"log {name}"
    rows = log.rows if log.rows is not None else np.empty((len(log), 0))
    return [
        check_leaks(spec, rows, log.rewards, source),
        Check.at_least(
            "effective_sample",
            source,
            judged.effective,
            spec.gate.effective_sample,
            found=f"{len(judged.weights):,} rows say as much of this policy as "
            f"{judged.effective:,.0f} rows of its own log",
            why="With few effective rows an estimate from the log is a guess.",
        ),
        Check.at_least(
            "log_calibration",
            source,
            judged.chance,
            spec.gate.calibration,
            found=f"chance of frequencies this far above the logged propensities: "
            f"{judged.chance:.3g}",
            why="Wrong propensities make every estimate from the log wrong.",
        ),
        _value(spec, judged, source),
    ]


def _value(spec: ExperimentSpec, judged: Judged, source: str) -> Check:
    low, high = judged.ends
    if judged.reason:
        lost = None
        told = f"what it would have earned can not be told: {judged.reason}"[:MAX_TEXT]
    else:
        lost = (judged.logged - high) / base_of(judged.logged, spec)
        told = (
            f"it would have earned {judged.value:.4g} [{low:.4g}, {high:.4g}] a customer; what was "
            f"logged earned {judged.logged:.4g}"
        )
    return Check.at_most(
        "log_regret",
        source,
        lost,
        spec.gate.regret,
        found=told,
        why="A policy that the log shows to be worse than what is done today should not start, and "
        "a log that can not tell is no proof.",
    )
