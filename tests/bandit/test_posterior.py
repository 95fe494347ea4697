"""Posteriors against other people's packages, dense least squares, and their own history."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.actions import ActionSpace, Level
from bandit.errors import CorruptionError, InvalidInputError
from bandit.features import FeatureMap, Term
from bandit.kernels.compiling import Floats
from bandit.posterior import (
    BetaBernoulliPosterior,
    GaussianPosterior,
    Noise,
    Outcomes,
    Posterior,
)

SEEDS = st.integers(0, 2**32 - 1)
JOINT = (
    Term(of="context", prior_sd=0.5),
    Term(of="context:variant", prior_sd=2.0),
    Term(of="channel", prior_sd=1.0),
    Term(of="variant:channel", prior_sd=0.25),
)


def space(v: int, c: int) -> ActionSpace:
    return ActionSpace(
        variants=tuple(Level(name=f"v{i}") for i in range(v)),
        channels=tuple(Level(name=f"c{i}") for i in range(c)),
    )


def disjoint(*, arms: int, width: int, noise: Noise, prior_sd: float = 1.0) -> GaussianPosterior:
    term = Term(of="context:variant", prior_sd=prior_sd)
    return GaussianPosterior(FeatureMap(space=space(arms, 1), terms=(term,), width=width), noise)


def joint(*, width: int, noise: Noise) -> GaussianPosterior:
    return GaussianPosterior(FeatureMap(space=space(3, 2), terms=JOINT, width=width), noise)


def some(n: int, *, seed: int, width: int, actions: int) -> Outcomes:
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, width))
    return Outcomes(x, random.integers(0, actions, n), random.uniform(0, 1, n))


def posteriors() -> list[Posterior]:
    return [
        disjoint(arms=6, width=3, noise=Noise()),
        joint(width=3, noise=Noise()),
        BetaBernoulliPosterior(6, (1.0, 1.0)),
    ]


# --- golden numbers of other packages ---------------------------------------------------


class Oracle:
    """Rows of one arm, and what a package made of them."""

    def __init__(self, folder: Path) -> None:
        self.inputs = json.loads((folder / "oracles/posterior_inputs.json").read_text())
        self.bayesian = json.loads((folder / "oracles/posterior_bayesianbandits.json").read_text())
        self.mabwiser = json.loads((folder / "oracles/posterior_mabwiser.json").read_text())

    def outcomes(self, arm: int | None = None) -> Outcomes:
        x, r = np.array(self.inputs["X"]), np.array(self.inputs["reward_continuous"])
        action = np.array(self.inputs["action"])
        if arm is None:
            return Outcomes(x, action, r)
        mine = action == arm
        return Outcomes(x[mine], np.zeros(mine.sum(), dtype=np.int64), r[mine])


@pytest.fixture(scope="module")
def oracle(data_folder: Path) -> Oracle:
    return Oracle(data_folder)


def test_known_noise_agrees_with_bayesianbandits(oracle: Oracle):
    """Theirs: precision ``alpha I + beta X'X``; ours in units of the noise, so sd .5 and 2."""
    model = disjoint(arms=3, width=4, noise=Noise(sd=0.5), prior_sd=2.0)
    model.fold(oracle.outcomes(), seq=400)
    mean, lower, variance, _, _ = model.moments()
    for arm in oracle.bayesian["normal"]:
        assert (arm["alpha"], arm["beta"]) == (1.0, 4.0)
        i = arm["arm"]
        np.testing.assert_allclose(mean[i], arm["coef"], rtol=1e-9)
        np.testing.assert_allclose(lower[i] @ lower[i].T / variance, arm["cov_inv"], rtol=1e-9)


@pytest.mark.parametrize("arm", range(3))
def test_learned_noise_agrees_with_bayesianbandits(oracle: Oracle, arm: int):
    """Their noise is per arm, so one model per arm; ``a, b`` are shape and scale."""
    expected = oracle.bayesian["nig"][arm]
    model = disjoint(arms=1, width=4, noise=Noise(shape=expected["a0"], scale=expected["b0"]))
    model.fold(oracle.outcomes(arm), seq=1)
    mean, lower, variance, shape, scale = model.moments()
    np.testing.assert_allclose(mean[0], expected["coef"], rtol=1e-9)
    np.testing.assert_allclose(lower[0] @ lower[0].T, expected["cov_inv"], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose([shape, scale], [expected["a"], expected["b"]], rtol=1e-9)
    assert variance == scale / shape


@pytest.mark.parametrize("policy", ["LinUCB", "LinTS", "LinGreedy"])
def test_precision_and_mean_agree_with_mabwiser(oracle: Oracle, policy: str):
    model = disjoint(arms=3, width=4, noise=Noise())
    model.fold(oracle.outcomes(), seq=400)
    mean, lower, *_ = model.moments()
    for arm in oracle.mabwiser[policy]["arms"]:
        i = arm["arm"]
        covariance = np.linalg.inv(lower[i] @ lower[i].T)
        np.testing.assert_allclose(lower[i] @ lower[i].T, arm["A"], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(covariance, arm["A_inv"], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(model.shift[i], arm["Xty"], rtol=1e-9)
        np.testing.assert_allclose(mean[i], arm["beta"], rtol=1e-9)


# --- dense least squares ----------------------------------------------------------------


def joint_design(outcomes: Outcomes) -> Floats:
    rows = []
    for x, action in zip(outcomes.x, outcomes.actions, strict=True):
        v, c = np.eye(3)[action // 2], np.eye(2)[action % 2]
        rows.append(np.concatenate([x, np.kron(v, x), c, np.kron(v, c)]))
    return np.array(rows)


@given(n=st.integers(1, 60), width=st.integers(1, 4), seed=SEEDS)
def test_the_joint_posterior_is_ridge_regression(n: int, width: int, seed: int):
    outcomes = some(n, seed=seed, width=width, actions=6)
    model = joint(width=width, noise=Noise(shape=2.0, scale=3.0))
    model.fold(outcomes, seq=n)
    mean, lower, variance, shape, scale = model.moments()
    phi, r = joint_design(outcomes), outcomes.rewards
    prior = np.repeat([4.0, 0.25, 1.0, 16.0], [width, 3 * width, 2, 6])
    precision = phi.T @ phi + np.diag(prior)
    expected = np.linalg.solve(precision, phi.T @ r)
    np.testing.assert_allclose(mean[0], expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(lower[0] @ lower[0].T, precision, rtol=1e-9, atol=1e-9)
    residual = ((r - phi @ expected) ** 2).sum() + (prior * expected**2).sum()
    np.testing.assert_allclose([shape, scale], [2.0 + n / 2, 3.0 + residual / 2], rtol=1e-9)
    assert variance == scale / shape


def test_without_outcomes_the_prior_is_left():
    mean, lower, variance, shape, scale = joint(width=2, noise=Noise()).moments()
    np.testing.assert_array_equal(mean, 0.0)
    np.testing.assert_allclose(np.diag(lower[0]), np.repeat([2.0, 0.5, 1.0, 4.0], [2, 6, 2, 6]))
    assert (variance, shape, scale) == (0.1, 1.0, 0.1)


def test_known_noise_is_not_learned():
    model = joint(width=2, noise=Noise(sd=0.5))
    model.fold(some(50, seed=1, width=2, actions=6), seq=50)
    assert model.moments().noise_variance == 0.25


def test_arms_of_a_disjoint_model_share_their_noise():
    model = disjoint(arms=2, width=1, noise=Noise(shape=1.0, scale=1.0), prior_sd=1e3)
    x, r = np.ones((4, 1)), np.array([1.0, 3.0, 10.0, 10.0])
    model.fold(Outcomes(x, np.array([0, 0, 1, 1]), r), seq=4)
    _, _, _, shape, scale = model.moments()
    assert shape == 3.0
    assert scale == pytest.approx(2.0, rel=1e-4)  # 1 + half of the two squared residuals of 1


# --- folding ----------------------------------------------------------------------------


def batches(outcomes: Outcomes, cuts: list[int]) -> list[Outcomes]:
    edges = [0, *sorted(cuts), len(outcomes.rewards)]
    return [Outcomes(*(part[a:b] for part in outcomes)) for a, b in pairwise(edges)]


@pytest.mark.parametrize("kind", range(3), ids=["disjoint", "joint", "beta"])
@given(seed=SEEDS, cuts=st.lists(st.integers(0, 30), max_size=6))
def test_any_batching_gives_the_same_bits(kind: int, seed: int, cuts: list[int]):
    whole, parts = posteriors()[kind], posteriors()[kind]
    outcomes = some(30, seed=seed, width=3, actions=6)
    whole.fold(outcomes, seq=30)
    for i, batch in enumerate(batches(outcomes, cuts)):
        parts.fold(batch, seq=i)
    for name, array in whole.arrays().items():
        np.testing.assert_array_equal(array, parts.arrays()[name])
    assert whole.count == parts.count == 30


BAD = [np.nan, np.inf, -np.inf, 1.1e15, -1e300]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("kind", range(3), ids=["disjoint", "joint", "beta"])
def test_a_bad_outcome_changes_nothing(kind: int, value: float):
    model = posteriors()[kind]
    model.fold(some(10, seed=1, width=3, actions=6), seq=10)
    before = {name: array.copy() for name, array in model.arrays().items()}
    outcomes = some(5, seed=2, width=3, actions=6)
    outcomes.rewards[3] = value
    with pytest.raises(InvalidInputError, match="outcomes"):
        model.fold(outcomes, seq=15)
    assert (model.seq, model.count) == (10, 10)
    for name, array in model.arrays().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_feature_is_refused(value: float):
    outcomes = some(5, seed=2, width=3, actions=6)
    outcomes.x[3, 1] = value
    for model in posteriors():
        with pytest.raises(InvalidInputError, match="outcomes"):
            model.fold(outcomes, seq=5)
        assert model.count == 0


def test_the_largest_outcome_is_still_finite_in_every_statistic():
    model = joint(width=3, noise=Noise())
    outcomes = some(5, seed=2, width=3, actions=6)
    outcomes.rewards[:] = 1e15
    model.fold(outcomes, seq=5)
    assert np.isfinite(model.moments().mean).all()


def test_the_log_position_never_falls():
    for model in posteriors():
        model.fold(some(0, seed=1, width=3, actions=6), seq=7)
        assert (model.seq, model.count) == (7, 0)
        with pytest.raises(InvalidInputError, match="seq"):
            model.fold(some(1, seed=1, width=3, actions=6), seq=6)
        assert (model.seq, model.count) == (7, 0)


@pytest.mark.parametrize("value", [-0.01, 1.01])
def test_beta_takes_outcomes_from_0_to_1_only(value: float):
    model = BetaBernoulliPosterior(2, (1.0, 1.0))
    with pytest.raises(InvalidInputError, match=r"\[0, 1\]"):
        model.fold(Outcomes(np.ones((1, 1)), np.array([0]), np.array([value])), seq=1)
    assert model.count == 0


@pytest.mark.parametrize("action", [-1, 6, 10_000])
def test_an_action_out_of_range_is_refused(action: int):
    for model in posteriors():
        with pytest.raises(InvalidInputError):
            model.fold(Outcomes(np.ones((1, 3)), np.array([action]), np.ones(1)), seq=1)


def test_beta_counts_successes_and_failures():
    model = BetaBernoulliPosterior(3, (2.0, 5.0))
    rewards = np.array([1.0, 0.0, 1.0, 0.25])
    model.fold(Outcomes(np.ones((4, 1)), np.array([0, 0, 0, 2]), rewards), seq=4)
    successes, failures = model.parameters()
    np.testing.assert_array_equal(successes, [4.0, 2.0, 2.25])
    np.testing.assert_array_equal(failures, [6.0, 5.0, 5.75])


# --- shape and storage ------------------------------------------------------------------


def test_memory_does_not_grow_with_the_log():
    for model in posteriors():
        shapes = {name: array.shape for name, array in model.arrays().items()}
        for n in (1, 50, 500):
            model.fold(some(n, seed=n, width=3, actions=6), seq=n)
        assert {name: array.shape for name, array in model.arrays().items()} == shapes


def test_statistics_have_the_declared_shapes():
    block = {"precision": (6, 3, 3), "shift": (6, 3), "sums": (6, 2)}
    shared = {"precision": (1, 20, 20), "shift": (1, 20), "sums": (1, 2)}
    for model, shapes in zip(posteriors(), (block, shared, {"counts": (6, 2)}), strict=True):
        assert {name: array.shape for name, array in model.arrays().items()} == shapes


@pytest.mark.parametrize("kind", range(3), ids=["disjoint", "joint", "beta"])
def test_loaded_statistics_go_on_as_if_never_stored(kind: int):
    model, copy = posteriors()[kind], posteriors()[kind]
    model.fold(some(20, seed=1, width=3, actions=6), seq=20)
    copy.load(model.arrays(), seq=model.seq, count=model.count)
    for each in (model, copy):
        each.fold(some(20, seed=2, width=3, actions=6), seq=40)
    assert (copy.seq, copy.count) == (model.seq, model.count) == (40, 40)
    for name, array in model.arrays().items():
        np.testing.assert_array_equal(array, copy.arrays()[name])


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"counts": np.zeros((5, 2))},
        {"count": np.zeros((6, 2))},
        {"counts": np.zeros((6, 2)), "more": np.zeros(1)},
        {"counts": np.full((6, 2), np.nan)},
        {"counts": np.full((6, 2), np.inf)},
    ],
)
def test_statistics_that_do_not_fit_are_not_loaded(arrays: dict[str, Floats]):
    model = BetaBernoulliPosterior(6, (1.0, 1.0))
    with pytest.raises(CorruptionError):
        model.load(arrays, seq=3, count=3)
    assert (model.seq, model.count, model.counts.sum()) == (0, 0, 0.0)


@pytest.mark.parametrize("name", ["sd", "shape", "scale"])
@pytest.mark.parametrize("value", [0.0, -1.0, 1e41, float("nan")])
def test_noise_must_be_positive_and_finite(name: str, value: float):
    with pytest.raises(InvalidInputError) as caught:
        Noise(**{name: value})
    assert caught.value.field == name
