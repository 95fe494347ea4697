"""Pooled priors: what a publication costs, and what a new action saves.

Run with ``python -m benchmarks.pooling [costs] [thinning] [errors] [traffic]``: the numbers of
``docs/math/pooled-priors.md``.
"""

import sys
from unittest import mock

import numpy as np
from scipy import special

from bandit import logistic, rng
from bandit.actions import ActionSpace
from bandit.experiment import Experiment
from bandit.features import FeatureMap, Term
from bandit.kernels.compiling import Floats
from bandit.logistic import LogisticPosterior
from bandit.posterior import GaussianPosterior, Noise, Outcomes
from bandit.question import Question
from bandit.spec_file import from_data
from benchmarks.engine import measure
from benchmarks.shared_weights import levels

KINDS = ("beta_bernoulli", "gaussian", "logistic")
RATES = np.append(np.linspace(0.01, 0.03, 9), 0.02)


def model(arms: int, width: int) -> FeatureMap:
    """Give arms with weights of their own."""
    space = ActionSpace(variants=levels("v", arms), channels=levels("c", 1))
    return FeatureMap(space=space, terms=(Term(of="context:variant"),), width=width)


def world(arms: int, width: int, n: int, seed: int) -> tuple[Outcomes, Floats]:
    """Draw some 3 % of clicks on arms whose weights scatter by .3 around common ones."""
    random = np.random.default_rng([arms, width, seed])
    common = np.append(-3.5, 0.3 * random.standard_normal(width - 1))
    weights = common + 0.3 * random.standard_normal((arms, width))
    x = np.column_stack([np.ones(n), random.uniform(-1, 1, (n, width - 1))])
    actions = random.integers(0, arms, n)
    rates = special.expit((x * weights[actions]).sum(axis=1))
    return Outcomes(x, actions, (random.random(n) < rates).astype(float)), weights


def costs() -> None:
    """Print milliseconds of deriving moments, pooled and not."""
    print("moments, milliseconds: not pooled, pooled, ratio (best of 5)")
    for arms, width in ((10, 1), (10, 20), (100, 20), (1_000, 8), (1_000, 32)):
        outcomes, _ = world(arms, width, 10_000, 1)
        features = model(arms, width)
        for kind in ("gaussian", "logistic"):
            took = []
            for pooled in (False, True):
                posterior: GaussianPosterior | LogisticPosterior
                if kind == "gaussian":
                    posterior = GaussianPosterior(features, Noise(), pooled=pooled)
                else:
                    posterior = LogisticPosterior(features, 0.03, pooled=pooled)
                posterior.fold(outcomes, seq=1)
                took.append(measure(posterior.moments, number=1, repeats=5) / 1e3)
            plain, fitted = took
            print(
                f"  {arms} x {width}, {kind:9s} {plain:8.1f} {fitted:8.1f} {fitted / plain:6.1f}",
                flush=True,
            )


def thinning() -> None:
    """Print what thinning costs where it knows the pooled prior, and where it does not."""
    print("largest error of a mean, in sd, beside all 40,000 outcomes held")
    for arms, width in ((10, 6), (100, 4), (50, 20)):
        outcomes, _ = world(arms, width, 40_000, 1)
        features, found = model(arms, width), []
        for pooled in (True, False):
            posterior = LogisticPosterior(features, 0.03, pooled=pooled)
            posterior.fold(outcomes, seq=1)
            posterior.pooled = True  # thinned with the declared prior, or as it is
            found.append(posterior.moments().mean)
        with mock.patch.object(logistic, "capacity", lambda _: 40_001):
            everything = LogisticPosterior(features, 0.03, pooled=True)
        everything.fold(outcomes, seq=1)
        mean, lower, *_ = everything.moments()
        sd = np.sqrt([np.diag(np.linalg.inv(w @ w.T)) for w in lower])
        fitted, declared = (np.abs((each - mean) / sd).max() for each in found)
        print(f"  {arms} x {width}: declared prior {declared:.2f}, pooled {fitted:.2f}", flush=True)


def errors() -> None:
    """Print how far weights are from the true ones, pooled and not."""
    print("40,000 outcomes, about 3 % clicks: root mean square error of the weights (4 worlds)")
    for arms, width in ((3, 12), (10, 6), (100, 4), (50, 20)):
        features, found = model(arms, width), []
        for seed in range(4):
            outcomes, weights = world(arms, width, 40_000, seed)
            row = []
            for pooled in (False, True):
                posterior = LogisticPosterior(features, 0.03, pooled=pooled)
                posterior.fold(outcomes, seq=1)
                row.append(np.sqrt(np.mean((posterior.moments().mean - weights) ** 2)))
            found.append(row)
        plain, fitted = np.mean(found, axis=0)
        print(f"  {arms} x {width}: not pooled {plain:.2f}, pooled {fitted:.2f}", flush=True)


def burned(kind: str, *, pooled: bool, seed: int, decisions: int = 2_000) -> int:
    """Count decisions for a new, ordinary arm (2 %) among nine known ones (1 to 3 %)."""
    policy: dict[str, object] = {"posterior": kind, "exploration": 1.0, "pooled": pooled}
    if kind != "beta_bernoulli":
        policy["terms"] = [{"of": "context:variant", "prior_sd": 1.0}]
    if kind == "gaussian":
        policy["noise"] = {"sd": 0.14}
    spec = {
        "name": "burned",
        "actions": {"variants": [f"v{i}" for i in range(10)], "channels": ["x"]},
        "outcome": {"window": 60, "aggregation": "max", "rewards": [{"name": "r"}]},
        "groups": {"random": 0.0},
        "policy": policy,
    }
    of = Experiment(from_data(spec), secret=b"a secret for benchmarks")
    random, posterior, spent = np.random.default_rng(seed), of.prior(), 0
    for arm, rate in enumerate(RATES[:9]):
        clicks = (np.arange(2_000) < 2_000 * rate).astype(float)
        of.learn(posterior, np.zeros((2_000, 0)), [arm] * 2_000, clicks, seq=arm)
    for at in range(0, decisions, 200):
        snapshot = of.publish(posterior, version=at)
        ids = [rng.decision_id(of.secret, "burned", f"{seed} {at + i}", 0) for i in range(200)]
        questions = [Question(i, b"c", ()) for i in ids]
        chosen = [d.action for d in of.decide_batch(snapshot, questions, propensities=False)]
        clicks = (random.uniform(size=200) < RATES[chosen]).astype(float)
        of.learn(posterior, np.zeros((200, 0)), chosen, clicks, seq=at + 10)
        spent += chosen.count(9)
    return spent


def traffic() -> None:
    """Print what a new arm takes of the traffic."""
    print("decisions for a new arm of 2 % among nine of 1 to 3 %, of 2,000 (mean of 20 runs)")
    for kind in KINDS:
        means = []
        for pooled in (False, True):
            found = [burned(kind, pooled=pooled, seed=seed) for seed in range(20)]
            means.append(f"{np.mean(found):.0f} +- {2 * np.std(found, ddof=1) / 20**0.5:.0f}")
        print(f"  {kind:14s} not pooled {means[0]}, pooled {means[1]}", flush=True)


def main() -> None:
    """Print the tables that are named, or all."""
    tables = {"costs": costs, "thinning": thinning, "errors": errors, "traffic": traffic}
    for name in sys.argv[1:] or tables:
        tables[name]()


if __name__ == "__main__":
    main()
