"""Regret of random Fourier features: the tables of ``docs/math/fourier-features.md``.

Run with ``python -m benchmarks.fourier [wheel] [lost] [bent]``; some 20 minutes for all three,
one core. Every outcome is learned at once. Regret is expected regret, uniform choice = 100.
"""

import sys
from typing import NamedTuple

import numpy as np

from bandit import rng
from bandit.actions import ActionSpace, Level
from bandit.context import ContextField, ContextSchema
from bandit.features import Encoder, FeatureMap, Term
from bandit.fourier import Fourier
from bandit.kernels.compiling import Floats
from bandit.online import begin
from bandit.posterior import GaussianPosterior, Noise

SEEDS = range(4)


class Problem(NamedTuple):
    """Contexts in [-1, 1], expected rewards, and what luck adds to them."""

    rows: Floats
    means: Floats
    luck: Floats


class Setting(NamedTuple):
    """What a specification may choose; no features: a linear score."""

    features: int = 0
    length: float = 0.5
    prior_sd: float = 1.0
    exploration: float = 1.0
    noise_scale: float = 0.1
    required: bool = True
    """Fields that may be missing have columns more, and so other frequencies of the same law."""


def wheel(seed: int, decisions: int = 50_000) -> Problem:
    """Give the wheel bandit of Riquelme et al., ICLR 2018: 50 beyond a radius of .95."""
    random = np.random.default_rng([4, seed])
    at = random.standard_normal((decisions, 2))
    at *= np.sqrt(random.random((decisions, 1))) / np.linalg.norm(at, axis=1, keepdims=True)
    means = np.full((decisions, 5), 1.0)
    means[:, 0] = 1.2
    far = np.linalg.norm(at, axis=1) > 0.95
    means[far, (1 + (at[:, 0] < 0) + 2 * (at[:, 1] < 0))[far]] = 50.0
    return Problem(at, means, 0.01 * random.standard_normal(decisions))


def bent(seed: int, fields: int, *, squares: bool, decisions: int = 10_000) -> Problem:
    """Give scores of ten actions that are linear, or have a square in every field; noise .5."""
    random = np.random.default_rng([5, fields, seed])
    rows = random.uniform(-1, 1, (decisions, fields))
    weights = random.standard_normal((10, fields + 1)) / (fields + 1) ** 0.5
    means = weights[:, 0] + rows @ weights[:, 1:].T
    if squares:
        means += (rows * rows - 1 / 3) @ (3 * random.standard_normal((10, fields)).T / fields**0.5)
    return Problem(rows, means, 0.5 * random.standard_normal(decisions))


def play(problem: Problem, setting: Setting, seed: int) -> tuple[float, float]:
    """Decide and learn; give regret over the uniform policy's, and the largest reward met."""
    rows, means, luck = problem
    fields = tuple(
        ContextField(name=f"x{i}", kind="number", bounds=(-1.0, 1.0), required=setting.required)
        for i in range(rows.shape[1])
    )
    count = setting.features
    waves = Fourier(features=count, length_scale=setting.length) if count else None
    encoder = Encoder(ContextSchema(fields=fields), waves)
    space = ActionSpace(
        variants=tuple(Level(name=f"v{i}") for i in range(means.shape[1])),
        channels=(Level(name="c"),),
    )
    terms = (Term(of="context:variant", prior_sd=setting.prior_sd),)
    belief = begin(
        GaussianPosterior(
            FeatureMap(space=space, terms=terms, width=encoder.width),
            Noise(scale=setting.noise_scale),
        ),
        exploration=setting.exploration,
        stream=rng.snapshot_stream(b"a secret for benchmarks", "fourier", seed),
    )
    everyone = np.ones(means.shape[1], dtype=np.bool_)
    got = np.empty(len(rows))
    for t, x in enumerate(encoder.encode(rows)):
        action = belief.draw(x, everyone, t + 1)
        got[t] = means[t, action]
        belief.learn(x, action, got[t] + luck[t])
    best = means.max(axis=1)
    regret = 100.0 * (best - got).sum() / (best - means.mean(axis=1)).sum()
    return float(regret), float(got.max())


def show(name: str, found: list[float]) -> None:
    """Print a mean and twice its standard error."""
    error = 2.0 * np.std(found, ddof=1) / len(found) ** 0.5
    print(f"  {name}: {np.mean(found):.1f} +- {error:.1f}", flush=True)


def wheel_table() -> None:
    """Print regret on the wheel by features, length scale, prior and exploration."""
    print("wheel, 50,000 decisions, noise.scale 250, regret (four seeds)")
    kinds = [(0, 0.5, 1.0), (64, 0.5, 1.0), (128, 0.25, 1.0), (128, 0.5, 1.0)]
    kinds += [(128, 1.0, 1.0), (128, 0.5, 2.0)]
    for features, length, prior_sd in kinds:
        for exploration in (1.0, 0.5, 0.25):
            setting = Setting(features, length, prior_sd, exploration, 250.0)
            found = [play(wheel(seed), setting, seed)[0] for seed in SEEDS]
            show(f"{features} features, length {length}, sd {prior_sd}, x {exploration}", found)
    print("the same with fields that may be missing: another draw of the frequencies")
    for length in (0.25, 0.5, 1.0):
        for exploration in (1.0, 0.5, 0.25):
            setting = Setting(128, length, 1.0, exploration, 250.0, required=False)
            found = [play(wheel(seed), setting, seed)[0] for seed in SEEDS]
            show(f"128 features, length {length}, sd 1.0, x {exploration}", found)


def lost_runs() -> None:
    """Print how many runs on the wheel have not met a 50."""
    print("wheel, runs without a 50")
    for scale, runs, decisions in ((0.1, 50, 3_000), (250.0, 50, 6_000)):
        for features in (0, 128):
            for exploration in (1.0, 0.5, 0.25, 0.1):
                setting = Setting(features, 0.5, 1.0, exploration, scale)
                best = [play(wheel(100 + i, decisions), setting, i)[1] for i in range(runs)]
                print(
                    f"  noise.scale {scale}, {features} features, x {exploration}: "
                    f"{sum(b < 50 for b in best)} of {runs} after {decisions:,}",
                    flush=True,
                )


def bent_table() -> None:
    """Print what features cost where scores are linear, and gain where they are not."""
    print("ten actions, 10,000 decisions, exploration 1, regret (four seeds)")
    for squares, fields in ((False, 2), (False, 5), (False, 10), (True, 2), (True, 5)):
        for features, length in ((0, 0.5), (128, 0.25), (128, 0.5), (128, 1.0), (32, 0.5)):
            found = [
                play(bent(seed, fields, squares=squares), Setting(features, length), seed)[0]
                for seed in SEEDS
            ]
            kind = "square" if squares else "linear"
            show(f"{kind}, {fields} fields: {features} features, length {length}", found)


def main() -> None:
    """Print the tables that are named, or all."""
    tables = {"wheel": wheel_table, "lost": lost_runs, "bent": bent_table}
    for name in sys.argv[1:] or tables:
        tables[name]()


if __name__ == "__main__":
    main()
