"""What a log says of the policy: whether it can be judged by it, and what it would have earned."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from bandit.experiment import Experiment
from bandit.kernels.compiling import Floats
from bandit.spec import ExperimentSpec
from bandit.verdict import Check
from sims.gate.leaks import check_leaks
from sims.gate.measures import base_of
from sims.log import Log, taken
from sims.ope.candidates import learned, policy_of
from sims.ope.diagnostics import Counts, Limits
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
    """

    evaluation: Evaluation
    estimate: str
    chance: float

    @property
    def weights(self) -> Floats:
        """Probability of the logged action under the policy over its propensity, (n,)."""
        return next(iter(self.evaluation.columns.weighed.values())).weights

    @property
    def effective(self) -> float:
        """Rows of the policy's own log that would say as much."""
        return self.evaluation.diagnostics.effective_rows

    @property
    def value(self) -> float:
        """Its mean outcome; NaN where that is withheld."""
        value = self.evaluation[self.estimate].value
        return math.nan if value is None else value

    @property
    def ends(self) -> tuple[float, float]:
        """A 95 % interval of the value, for one look; NaN where there is none."""
        intervals = self.evaluation[self.estimate].intervals
        return (intervals[0].low, intervals[0].high) if intervals else (math.nan, math.nan)

    @property
    def logged(self) -> float:
        """Mean outcome of the log itself in these rows."""
        return float(next(iter(self.evaluation.columns.weighed.values())).rewards.mean())


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
    evaluation = evaluate(
        taken(log, slice(half, None)),
        policy_of(experiment, posterior),
        estimators=["snips", "ips"],
        replicates=0,
        limits=Limits(
            effective_rows=spec.gate.effective_sample,
            calibration=spec.gate.calibration,
            all_eligible=False,  # exclusions of single requests are not in a log
        ),
    )
    is_adaptive = evaluation.columns.collection.is_adaptive
    counts = Counts(log.size)
    counts.add(log, np.zeros((len(log), log.size)))
    _, chance = counts.calibration(all_eligible=False)
    return Judged(
        evaluation, "ips" if is_adaptive else "snips", 1.0 if math.isnan(chance) else chance
    )


def check_log(spec: ExperimentSpec, log: Log, judged: Judged, name: str) -> list[Check]:
    """Check what a log shows."""
    source = f"log {name}"
    rows = log.rows if log.rows is not None else np.empty((len(log), 0))
    found = [
        check_leaks(spec, rows, log.rewards, source),
        Check(
            name="effective_sample",
            source=source,
            passed=judged.effective >= spec.gate.effective_sample,
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
    if math.isfinite(judged.ends[1]):
        found.append(_value(spec, judged, source))
    return found


def _value(spec: ExperimentSpec, judged: Judged, source: str) -> Check:
    low, high = judged.ends
    lost = (judged.logged - high) / base_of(judged.logged, spec)
    return Check(
        name="log_regret",
        source=source,
        passed=lost <= spec.gate.regret,
        value=lost,
        limit=spec.gate.regret,
        bound="at most",
        found=f"it would have earned {judged.value:.4g} [{low:.4g}, {high:.4g}] a "
        f"customer; what was logged earned {judged.logged:.4g}",
        why="A policy that the log shows to be worse than what is done today should not start.",
    )
