"""Off-policy evaluation: the Open Bandit sample, and a synthetic log whose truth is known."""

from pathlib import Path

import numpy as np

from bandit.context import ContextSchema
from bandit.features import Encoder
from bandit.kernels.compiling import Floats
from sims.datasets import open_bandit as sample
from sims.log import Log
from sims.ope.evaluate import evaluate
from sims.ope.models import RewardModel
from sims.ope.targets import constant
from sims.published.result import Result, mean_of, reproduced

_OBD = "Saito et al. 2021, run by obp 0.5.4"
_OBP = "obp 0.5.4, synthetic bandit"
RELATIVE = {"ips": 0.001533, "dr": 0.002189, "dm": 0.054871}
"""Published relative errors; which one is larger is what carries over to another world."""

BTS = {
    "ips": (0.00455288, 1e-8),
    "snips": (0.00477583, 1e-8),
    "dm": (0.003545, 8e-4),
    "dr": (0.004727, 4e-4),
}
"""Estimates from the random log, and how near ours must be: those with a model have another one."""


def open_bandit(data: Path) -> list[Result]:
    """Estimate what the production policy of the Open Bandit data earns, from the random log."""
    path = data / "obd" / "random_all.csv.gz"
    log = sample.load(path)
    shares = np.load(data / "oracles" / "obd_bts_action_dist_all.npz")["action_dist"]
    encoder = Encoder(ContextSchema(fields=sample.fields(path)))
    model = RewardModel(kind="logistic", features="additive", encode=encoder.encode)
    found = evaluate(
        log, constant(shares), estimators=list(BTS), models={"model": model}, replicates=0
    )
    results = []
    for name, (published, within) in BTS.items():
        value = float(found.terms(name).value)
        what = f"Open Bandit sample, Bernoulli TS from the random log, {name.upper()}"
        results.append(reproduced(what, _OBD, published, [value], within=within))
    return results


def synthetic_log(seed: int, n: int = 100_000, size: int = 10) -> tuple[Log, Floats]:
    """Give a log of a softmax policy, and the true expected rewards (n, k).

    Five context numbers; the log-odds of a reward are linear in them and bent by their products,
    which a linear reward model without interactions can not see.
    """
    random = np.random.default_rng((seed, 12_345))
    x = random.standard_normal((n, 5))
    effects = random.standard_normal((5, size))
    bends = random.standard_normal((5, 5, size)) / 5.0
    odds = x @ effects + np.einsum("ni,nj,ijk->nk", x, x, bends, optimize=True)
    truth = 1.0 / (1.0 + np.exp(-odds))
    likes = 0.5 * x @ random.standard_normal((5, size))
    probabilities = np.exp(likes - likes.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    drawn = (probabilities.cumsum(axis=1) < random.random((n, 1))).sum(axis=1)
    actions = np.minimum(drawn, size - 1).astype(np.int64)
    rows = np.arange(n)
    log = Log(
        actions=actions,
        rewards=(random.random(n) < truth[rows, actions]).astype(np.float64),
        propensities=probabilities[rows, actions],
        size=size,
        rows=x,
    )
    return log, truth


def synthetic(runs: int) -> list[Result]:
    """Estimate the value of the uniform policy; give mean relative errors and their order."""
    errors: dict[str, list[float]] = {name: [] for name in RELATIVE}
    for seed in range(runs):
        log, truth = synthetic_log(seed)
        model = RewardModel(kind="ridge", features="additive")
        target = np.full((len(log), log.size), 1.0 / log.size)
        found = evaluate(log, target, estimators=list(RELATIVE), models={"": model}, replicates=0)
        value = float(truth.mean())
        for name, each in errors.items():
            each.append(abs(float(found[name].value or np.nan) / value - 1.0))
    means = {name: mean_of(each) for name, each in errors.items()}
    limits = {"ips": (0.0, 0.02), "dr": (0.0, 0.02), "dm": (2.0 * means["dr"][0], 0.5)}
    return [
        Result(
            what=f"synthetic log, uniform policy, relative error of {name.upper()}",
            published=RELATIVE[name], source=_OBP, ours=mean, half_width=half,
            low=limits[name][0], high=limits[name][1],
        )
        for name, (mean, half) in means.items()
    ]  # fmt: skip
