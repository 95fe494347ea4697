"""Hyper-parameters by evidence: prior scales and noise under which a log is most likely.

One pass over the outcomes gives the statistics; all that follows is work on them alone. Derivation:
``docs/math/evidence.md``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import linalg, optimize, special

from bandit.errors import InvalidInputError
from bandit.experiment import Experiment
from bandit.kernels import factors
from bandit.kernels.compiling import Floats, Ints
from bandit.pooling import pooled_beta
from bandit.posterior import BetaBernoulliPosterior, GaussianPosterior, Outcomes
from bandit.spec import ExperimentSpec

LEAST_REWARDS = 10
_SCALES = np.log([1e-3, 1e3])  # the ranges of Term.prior_sd and Noise.sd
_NOISE_SD = (1e-15, 1e15)
_NOISES = np.log(_NOISE_SD)
_LEAST_SIZE = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Hyper-parameters fitted to a log.

    Attributes
    ----------
    prior_sd
        Of every term of ``spec.features.terms``, in units of the noise; empty for Beta-Bernoulli.
    noise_sd
        In the reward's unit; None for Beta-Bernoulli.
    before, after
        Log evidence of the log under the given specification and under the fitted one, which is
        never less.
    at_limit
        Paths of fitted values at an end of their range, such as ``policy.terms[0].prior_sd``: the
        log asks for more, or for less, than can be declared.
    iterations
        Steps of the optimiser.
    spec
        The given specification with the fitted values, rounded to four digits.
    """

    prior_sd: tuple[float, ...]
    noise_sd: float | None
    before: float
    after: float
    at_limit: tuple[str, ...]
    iterations: int
    spec: ExperimentSpec


def fit(spec: ExperimentSpec, rows: Floats, actions: Ints, rewards: Floats) -> Fit:
    """Fit prior scales and noise (or the Beta prior) to a log.

    Parameters
    ----------
    rows : (n, fields)
        Contexts in schema order, as for ``Experiment.learn``.
    actions : (n,)
    rewards : (n,)

    Raises
    ------
    InvalidInputError
        If the posterior has no such fit, or the data are too few, too small, do not vary or do
        not fit.

    Notes
    -----
    O(n z**2) for the statistics, then O(b m**3) an iteration, some tens of them. The same log
    gives the same bits on the same machine, and the same values in any order and place as long
    as rounding to four digits hides the difference.
    """
    if spec.policy.half_life is not None:
        raise InvalidInputError(
            "is not part of a fit, which weighs all outcomes alike; leave it out",
            field="policy.half_life",
        )
    outcomes = Experiment(spec, secret=bytes(16)).outcomes(rows, actions, rewards)
    if spec.policy.posterior == "beta_bernoulli":
        return _fit_beta(spec, outcomes)
    if spec.policy.posterior != "gaussian":
        raise InvalidInputError(
            f"{spec.policy.posterior!r} has no fit; needs gaussian or beta_bernoulli",
            field="policy.posterior",
        )
    posterior = GaussianPosterior(
        spec.features, spec.policy.noise, outcome_range=spec.outcome.range
    )
    posterior.fold(outcomes, seq=0)
    _check_enough(len(outcomes.rewards), len(spec.features.terms) + 1)
    if np.ptp(outcomes.rewards) == 0.0:
        raise InvalidInputError("do not vary, so no noise can be fitted", field="rewards")
    size = math.sqrt(float(posterior.sums[:, 1].sum()) / len(outcomes.rewards))
    if size < _LEAST_SIZE:
        raise InvalidInputError(
            f"have a root mean square of {size:.3g}, at least {_LEAST_SIZE} is needed; use a "
            "smaller unit",
            field="rewards",
        )
    return _fit_gaussian(spec, posterior)


def _fit_gaussian(spec: ExperimentSpec, posterior: GaussianPosterior) -> Fit:
    """Climb from the declared scales; keep them if nothing that can be declared is better."""
    evidence, terms = Evidence(posterior), spec.features.terms
    declared = [term.prior_sd for term in terms]
    noise = float(np.sqrt(posterior.moments().noise_variance))
    start = np.log([*declared, noise])
    start[-1] = evidence.best_noise(start[:-1])
    found, iterations = evidence.climb(start)
    before = evidence.value(np.log([*declared, noise]))
    least, most = np.exp(evidence.bounds).T
    choices = [
        [_rounded(float(value)) for value in np.exp(found)],
        [*declared, _rounded(math.exp(start[-1]))],
        [*declared, float(np.clip(noise, *_NOISE_SD))],
    ]
    best = max(choices, key=lambda one: evidence.value(np.log(one)))  # the first among equals
    *scales, sd = best
    paths = [*(f"policy.terms[{i}].prior_sd" for i in range(len(terms))), "policy.noise.sd"]
    fitted = replace(
        spec.policy,
        terms=tuple(replace(t, prior_sd=s) for t, s in zip(terms, scales, strict=True)),
        noise=replace(spec.policy.noise, sd=sd, scale=None),
    )
    return Fit(
        prior_sd=tuple(scales),
        noise_sd=sd,
        before=before,
        after=evidence.value(np.log(best)),
        at_limit=_at_limit(paths, best, least, most),
        iterations=iterations,
        spec=replace(spec, policy=fitted),
    )


def _at_limit(
    paths: Sequence[str], values: Sequence[float], least: Sequence[float], most: Sequence[float]
) -> tuple[str, ...]:
    """Give the paths of the values that lie, to three digits, at an end of their range."""
    return tuple(
        path
        for path, value, low, high in zip(paths, values, least, most, strict=True)
        if value <= low * 1.001 or value >= high * 0.999
    )


_OPTIONS = {"maxiter": 200, "ftol": 1e-12, "gtol": 1e-7}


class Evidence:
    """Log density of the rewards seen, by prior scales and noise.

    Parameters
    ----------
    posterior
        Whose statistics are used; its own prior is not.

    Attributes
    ----------
    bounds : (t + 1, 2)
        Of the logarithms of every term's scale and of the noise.

    Notes
    -----
    Works in a unit of its own, the power of two next to the rewards' root mean square, so that
    rewards of any size take the same steps.
    """

    def __init__(self, posterior: GaussianPosterior) -> None:
        features = posterior.features
        if features.is_disjoint:
            self._term = np.zeros(features.weights, dtype=np.int64)
        else:
            sizes = np.diff(np.append(features.offsets, features.weights))
            self._term = np.repeat(np.arange(len(sizes)), sizes)
        seen = posterior.sums[:, 0] > 0.0
        lower = np.tril(posterior.precision[seen])
        self._precision = lower + np.tril(lower, -1).transpose(0, 2, 1)
        self._shift = posterior.shift[seen]
        self._count, squares = (float(total) for total in posterior.sums.sum(axis=0))
        unit = 2.0 ** round(0.5 * math.log2(squares / self._count))
        self._squares = squares / unit / unit
        self._shift /= unit
        self._log_unit = math.log(unit)
        self._least = factors.EPSILON * (self._count + features.weights) * self._squares
        self.bounds = np.array([_SCALES] * len(features.terms) + [_NOISES])

    def value(self, at: Floats) -> float:
        """Give the log evidence at the logarithms ``at : (t + 1,)``."""
        return -self.loss(at)[0]

    def best_noise(self, scales: Floats) -> float:
        """Give the logarithm of the noise that is best for given scales, (t,)."""
        rest, _, _ = self._explain(scales)
        best = 0.5 * math.log(rest / self._count) + self._log_unit
        return float(np.clip(best, *_NOISES))

    def climb(self, start: Floats) -> tuple[Floats, int]:
        """Give the logarithms of the best values near ``start : (t + 1,)``, and the steps taken."""
        origin = np.append(np.zeros(len(start) - 1), self._log_unit)
        found = optimize.minimize(
            self._standard_loss,
            np.clip(start, *self.bounds.T) - origin,
            jac=True,
            method="L-BFGS-B",
            bounds=self.bounds - origin[:, None],
            options=_OPTIONS,
        )
        return np.clip(found.x + origin, *self.bounds.T), int(found.nit)

    def loss(self, at: Floats) -> tuple[float, Floats]:
        """Give minus the log evidence, and its gradient, shape (t + 1,).

        Notes
        -----
        O(b m**3): a factor and its inverse per block.
        """
        value, gradient = self._standard_loss(np.append(at[:-1], at[-1] - self._log_unit))
        return value + self._count * self._log_unit, gradient

    def _standard_loss(self, at: Floats) -> tuple[float, Floats]:
        """``loss`` of the rewards in the unit that is worked in."""
        rest, determinant, slopes = self._explain(at[:-1])
        variance = np.exp(2.0 * at[-1])
        value = 0.5 * (self._count * np.log(2.0 * np.pi * variance) + determinant + rest / variance)
        known, squares = slopes
        gradient = np.append(
            -np.bincount(self._term, known + squares / variance, len(at) - 1),
            self._count - rest / variance,
        )
        return float(value), gradient

    def _explain(self, scales: Floats) -> tuple[float, float, tuple[Floats, Floats]]:
        """Give the unexplained squares, the log determinant, and what the gradient needs.

        The squares are a difference of sums, known to about ``eps (n + m)`` of their size.
        """
        prior = np.exp(-2.0 * scales)[self._term]
        rest, determinant = self._squares, 0.0
        known, squares = np.zeros(len(prior)), np.zeros(len(prior))
        identity = np.eye(len(prior))
        for precision, shift in zip(self._precision, self._shift, strict=True):
            lower = linalg.cholesky(precision + np.diag(prior), lower=True)
            inverse = linalg.solve_triangular(lower, identity, lower=True)
            half = inverse @ shift
            mean = inverse.T @ half
            rest -= float(half @ half)
            determinant += float(2.0 * np.log(np.diag(lower)).sum() - np.log(prior).sum())
            known += prior * (inverse**2).sum(axis=0) - 1.0
            squares += prior * mean * mean
        if rest < self._least:
            rest, squares = self._least, np.zeros(len(prior))
        return rest, determinant, (known, squares)


def _fit_beta(spec: ExperimentSpec, outcomes: Outcomes) -> Fit:
    """Fit the prior that pooling would fit; see ``pooling.pooled_beta``."""
    declared = spec.policy.successes, spec.policy.failures
    posterior = BetaBernoulliPosterior(spec.actions.size, declared)
    posterior.fold(outcomes, seq=0)
    _check_enough(len(outcomes.rewards), 2)
    pooled = [_rounded(v) for v in pooled_beta(posterior.counts, declared)]
    before = _beta_evidence(posterior.counts, *declared)
    if _beta_evidence(posterior.counts, *pooled) < before:  # pooling has a weak prior of its own
        pooled = [*declared]
    successes, failures = pooled
    fitted = replace(spec.policy, successes=successes, failures=failures)
    return Fit(
        prior_sd=(),
        noise_sd=None,
        before=before,
        after=_beta_evidence(posterior.counts, successes, failures),
        at_limit=_at_limit(("policy.successes", "policy.failures"), pooled, [0.5, 0.5], [1e9, 1e9]),
        iterations=0,
        spec=replace(spec, policy=fitted),
    )


def _beta_evidence(counts: Floats, a: float, b: float) -> float:
    terms = special.betaln(a + counts[:, 0], b + counts[:, 1]) - special.betaln(a, b)
    return float(terms.sum())


def _check_enough(rewards: int, parameters: int) -> None:
    least = max(LEAST_REWARDS, 2 * parameters)
    if rewards < least:
        raise InvalidInputError(
            f"at least {least} are needed to fit {parameters} values, got {rewards}",
            field="rewards",
        )


def _rounded(value: float) -> float:
    """Round to four digits: rounding errors of sums do not reach the specification."""
    return float(f"{value:.4g}")
