"""What a policy would have earned: one plain function per estimator, on columns of a log.

``weigh`` reduces every row of a log to four numbers: the reward, the weight, what a reward model
expected of the logged action, and what it expects of the policy. Every estimator is a function of
these, and gives ``Terms``: columns whose sums give the value, so that rows may be gathered from
batches and drawn anew for a bootstrap. Derivations: docs/math/ope.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats
from sims.kernels import weighing
from sims.log import Log
from sims.ope.targets import check_predictions, check_probabilities


class Terms(NamedTuple):
    """What every row adds to an estimate.

    The value is ``mean(offsets) + sum(numerators) / sum(denominators)``.

    Attributes
    ----------
    numerators, denominators : (n,)
        Denominators are all 1 where the estimate is a mean.
    offsets : (n,) or None
        What is averaged beside the ratio; None: nothing. Only a self-normalised estimator with
        a reward model needs it.
    """

    numerators: Floats
    denominators: Floats
    offsets: Floats | None = None

    @property
    def value(self) -> float:
        """The estimate; NaN without rows or weight."""
        total = float(self.denominators.sum())
        if not len(self.numerators) or total <= 0.0:
            return float("nan")
        ratio = float(self.numerators.sum()) / total
        return ratio if self.offsets is None else ratio + float(self.offsets.mean())

    @property
    def influence(self) -> Floats:
        """First-order effect of every row on the value, (n,), with mean zero.

        Notes
        -----
        The delta method: for a ratio R of means, ``(numerator - R denominator) / mean
        denominator``; for a plain mean what a row differs from it. The variance of the value is
        about that of the influence over n.
        """
        mean = float(self.denominators.mean())
        ratio = float(self.numerators.mean()) / mean
        found: Floats = (self.numerators - ratio * self.denominators) / mean
        return found if self.offsets is None else found + (self.offsets - self.offsets.mean())

    def part(self, start: int, stop: int) -> "Terms":
        """Give the terms of some rows."""
        offsets = None if self.offsets is None else self.offsets[start:stop]
        return Terms(self.numerators[start:stop], self.denominators[start:stop], offsets)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weighed:
    """Rows of a log as estimators see them.

    Parameters
    ----------
    rewards : (n,)
    weights : (n,)
        Probability of the logged action under the policy over that under which it was logged.
    fitted : (n,) or None
        What a reward model that did not see the row expects of the logged action.
    direct : (n,) or None
        What that model expects of the policy: the mean over its actions.
    balanced : (n,) or None
        Weights of the balanced estimator.
    is_normalised
        Whether the balanced estimator divides by the sum of its weights, not by n.
    """

    rewards: Floats
    weights: Floats
    fitted: Floats | None = None
    direct: Floats | None = None
    balanced: Floats | None = None
    is_normalised: bool = False

    def __len__(self) -> int:
        return len(self.rewards)


Function = Callable[[Weighed, float], Terms]


class Estimator(NamedTuple):
    """One way to estimate.

    Attributes
    ----------
    function
        From rows and the setting to terms.
    setting
        What is set: ``largest`` (weights above count as that), ``switch`` (weights above leave
        the row to the model) or ``shrinkage``; empty: nothing. Infinity: weights as they are.
    shrink
        The weights that the function uses, from weights and setting.
    needs_model
        Whether it needs the predictions of a reward model.
    """

    function: Function
    setting: str = ""
    shrink: Callable[[Floats, float], Floats] = lambda weights, _: weights
    needs_model: bool = False


def weigh(log: Log, target: Floats, predicted: Floats | None = None, *, start: int = 0) -> Weighed:
    """Reduce rows of a log to what estimators look at.

    Parameters
    ----------
    target : (n, k)
        Probability of every action under the policy that is evaluated.
    predicted : (n, k) or None
        Expected reward of every action, from a model that did not see the row.
    start
        Number of rows before these, for messages.

    Raises
    ------
    InvalidInputError
        If a row of ``target`` is no distribution, or a prediction is not finite: naming row and
        column.

    Notes
    -----
    One pass: O(n k).
    """
    check_probabilities(target, log, start=start)
    at = np.ascontiguousarray(target, dtype=np.float64)
    if predicted is None:
        here = at[np.arange(len(log)), log.actions]
        return Weighed(rewards=log.rewards, weights=here / log.propensities)
    check_predictions(predicted, log, start=start)
    model = np.ascontiguousarray(predicted, dtype=np.float64)
    weights, fitted, direct = weighing.reduce_rows(log.actions, log.propensities, at, model)
    return Weighed(rewards=log.rewards, weights=weights, fitted=fitted, direct=direct)


def terms(
    name: str,
    log: Log,
    target: Floats,
    predicted: Floats | None = None,
    *,
    setting: float = float("inf"),
) -> Terms:
    """Give the terms of one estimator on rows of a log; see ``weigh`` and ``terms_of``."""
    return terms_of(name, weigh(log, target, predicted), setting)


def terms_of(name: str, weighed: Weighed, setting: float = float("inf")) -> Terms:
    """Give the terms of one estimator.

    Parameters
    ----------
    name
        One of ``ESTIMATORS``.
    setting
        What the estimator declares; infinity leaves the weights as they are.

    Raises
    ------
    InvalidInputError
        For an unknown name, a setting below zero or NaN, or a model that is missing.
    """
    if name not in ESTIMATORS:
        raise InvalidInputError(
            f"{name!r} is not known; there are {', '.join(ESTIMATORS)}", field="estimators"
        )
    if not setting >= 0.0:
        raise InvalidInputError(f"must be at least 0, got {setting}", field=f"settings.{name}")
    if ESTIMATORS[name].needs_model and weighed.fitted is None:
        raise InvalidInputError(f"{name!r} needs a reward model", field="model")
    return ESTIMATORS[name].function(weighed, setting)


# --- weights ----------------------------------------------------------------------------


def clip(weights: Floats, largest: float) -> Floats:
    """Count weights above ``largest`` as that."""
    return np.minimum(weights, largest)


def switch(weights: Floats, threshold: float) -> Floats:
    """Drop weights above ``threshold``: those rows are left to the model."""
    return np.where(weights <= threshold, weights, 0.0)


def shrink(weights: Floats, strength: float) -> Floats:
    """Shrink optimistically: ``strength w / (w**2 + strength)``."""
    if np.isinf(strength):
        return weights
    if strength == 0.0:
        return np.zeros_like(weights)
    return weights / (1.0 + weights * (weights / strength))


# --- estimators -------------------------------------------------------------------------


def mean_of(numerators: Floats) -> Terms:
    """Give the terms of a plain mean; the denominators take no memory."""
    return Terms(numerators, np.broadcast_to(np.ones(1), numerators.shape))


def _model(weighed: Weighed) -> tuple[Floats, Floats]:
    """Give the residuals of the model, and what it expects of the policy."""
    assert weighed.fitted is not None and weighed.direct is not None  # noqa: S101
    return weighed.rewards - weighed.fitted, weighed.direct


def ips(weighed: Weighed, _: float) -> Terms:
    """Inverse propensity scoring (Horvitz & Thompson 1952)."""
    return mean_of(weighed.weights * weighed.rewards)


def clipped_ips(weighed: Weighed, largest: float) -> Terms:
    """IPS with weights clipped from above (Ionides 2008; Bottou et al. 2013)."""
    return mean_of(clip(weighed.weights, largest) * weighed.rewards)


def snips(weighed: Weighed, _: float) -> Terms:
    """Self-normalised IPS (Hajek 1971; Swaminathan & Joachims 2015)."""
    return Terms(weighed.weights * weighed.rewards, weighed.weights)


def dm(weighed: Weighed, _: float) -> Terms:
    """Direct method: what the model expects of the policy."""
    return mean_of(_model(weighed)[1])


def dr(weighed: Weighed, _: float) -> Terms:
    """Doubly robust (Dudik, Langford & Li 2011)."""
    residuals, direct = _model(weighed)
    return mean_of(direct + weighed.weights * residuals)


def clipped_dr(weighed: Weighed, largest: float) -> Terms:
    """Doubly robust with weights clipped from above (Su et al. 2020, pessimistic shrinkage)."""
    residuals, direct = _model(weighed)
    return mean_of(direct + clip(weighed.weights, largest) * residuals)


def sndr(weighed: Weighed, _: float) -> Terms:
    """Doubly robust with the correction self-normalised (Thomas & Brunskill 2016)."""
    residuals, direct = _model(weighed)
    return Terms(weighed.weights * residuals, weighed.weights, direct)


def switch_dr(weighed: Weighed, threshold: float) -> Terms:
    """Doubly robust up to a weight, the model alone above (Wang, Agarwal & Dudik 2017)."""
    residuals, direct = _model(weighed)
    return mean_of(direct + switch(weighed.weights, threshold) * residuals)


def dros(weighed: Weighed, strength: float) -> Terms:
    """Doubly robust with optimistic shrinkage (Su, Dimakopoulou, Krishnamurthy & Dudik 2020)."""
    residuals, direct = _model(weighed)
    return mean_of(direct + shrink(weighed.weights, strength) * residuals)


def balanced(weighed: Weighed, _: float) -> Terms:
    """IPS with balanced weights: of the mixture of loggers, or those a classifier finds.

    Raises
    ------
    InvalidInputError
        If the rows have no balanced weights.
    """
    if weighed.balanced is None:
        raise InvalidInputError(
            "'balanced' needs weights: the policies of the log's versions, or a balancer",
            field="balancing",
        )
    numerators = weighed.balanced * weighed.rewards
    return Terms(numerators, weighed.balanced) if weighed.is_normalised else mean_of(numerators)


ESTIMATORS: Mapping[str, Estimator] = {
    "ips": Estimator(ips),
    "clipped_ips": Estimator(clipped_ips, "largest", clip),
    "snips": Estimator(snips),
    "dm": Estimator(dm, needs_model=True),
    "dr": Estimator(dr, needs_model=True),
    "clipped_dr": Estimator(clipped_dr, "largest", clip, needs_model=True),
    "sndr": Estimator(sndr, needs_model=True),
    "switch_dr": Estimator(switch_dr, "switch", switch, needs_model=True),
    "dros": Estimator(dros, "shrinkage", shrink, needs_model=True),
    "balanced": Estimator(balanced),
}
"""Every estimator by name."""
