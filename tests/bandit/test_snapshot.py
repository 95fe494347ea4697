"""What is published decides exactly what the posterior believes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from bandit import rng
from bandit.actions import FACTORS, ActionSpace, Level
from bandit.errors import BanditError
from bandit.features import FeatureMap, Term, default_terms
from bandit.kernels import streams
from bandit.kernels.compiling import Floats
from bandit.posterior import (
    BetaBernoulliPosterior,
    GaussianPosterior,
    Noise,
    Outcomes,
    Posterior,
)
from bandit.snapshot import Asked, IndependentScores, SampleBank, Snapshot, TabulatedScores, publish
from tests.bandit.dense import design

STREAM = rng.snapshot_stream(b"secret", "e", 1)
WIDTH = 3


def some(n: int, *, actions: int, seed: int) -> Outcomes:
    random = np.random.default_rng(seed)
    x = np.column_stack([np.ones(n), random.standard_normal((n, WIDTH - 1))])
    return Outcomes(x, random.integers(0, actions, n), random.uniform(0, 1, n))


def gaussian(*, variants: int, channels: int, seed: int = 1, n: int = 40) -> GaussianPosterior:
    space = ActionSpace(
        variants=tuple(Level(name=f"v{i}") for i in range(variants)),
        channels=tuple(Level(name=f"c{i}") for i in range(channels)),
    )
    posterior = GaussianPosterior(
        FeatureMap(space=space, terms=default_terms(space), width=WIDTH), Noise()
    )
    posterior.fold(some(n, actions=space.size, seed=seed), seq=n)
    return posterior


def beta(k: int, n: int = 40) -> BetaBernoulliPosterior:
    posterior = BetaBernoulliPosterior(k, (1.0, 1.0))
    posterior.fold(some(n, actions=k, seed=1), seq=n)
    return posterior


def posteriors() -> dict[str, Posterior]:
    return {
        "disjoint": gaussian(variants=4, channels=1),
        "joint": gaussian(variants=2, channels=2),
        "beta": beta(4),
    }


def published(posterior: Posterior, *, exploration: float = 1.0, draws: int = 64) -> Snapshot:
    return publish(posterior, version=3, exploration=exploration, draws=draws, stream=STREAM)


def asked(x: Floats, k: int) -> Asked:
    names = b"".join(rng.keyed(b"secret", "draw", "e", bytes([i]))[:16] for i in range(len(x)))
    everything = np.ones((1, k), dtype=np.bool_)
    which = np.zeros(len(x), dtype=np.int64)
    return Asked(x, which, everything, rng.words(names).reshape(-1, 4))


@given(seed=st.integers(0, 10**9), exploration=st.floats(0.1, 3))
def test_two_independent_arms_follow_the_dense_posterior(seed: int, exploration: float):
    posterior = gaussian(variants=2, channels=1, seed=seed)
    mean, lower, variance, _, _ = posterior.moments()
    covariance = [variance * np.linalg.inv(factor @ factor.T) for factor in lower]
    x = some(5, actions=2, seed=seed + 1).x
    p = published(posterior, exploration=exploration).belief.decide(asked(x, 2), 0.0).propensities
    spread = exploration * np.sqrt([row @ (covariance[0] + covariance[1]) @ row for row in x])
    np.testing.assert_allclose(p[:, 0], special.ndtr(x @ (mean[0] - mean[1]) / spread), atol=1e-9)


@st.composite
def joint_features(draw: st.DrawFn) -> FeatureMap:
    """Give some space with some terms, of which the last tells every action apart."""
    names = st.sampled_from(["context", *FACTORS])
    of = draw(
        st.lists(
            st.lists(names, min_size=1, unique=True).map(":".join),
            max_size=6,
            unique_by=lambda name: frozenset(name.split(":")),
        )
    )
    every = "variant:channel:slot"
    terms = [Term(of=name) for name in of if {*name.split(":")} != {*every.split(":")}]
    sizes = draw(st.tuples(st.integers(2, 4), st.integers(1, 3), st.integers(1, 3)))
    variants, channels, slots = (tuple(Level(name=str(i)) for i in range(n)) for n in sizes)
    space = ActionSpace(variants=variants, channels=channels, slots=slots)
    return FeatureMap(space=space, terms=(*terms, Term(of=every)), width=WIDTH)


@given(features=joint_features(), seed=st.integers(0, 10**9), data=st.data())
def test_joint_propensities_are_shares_of_wins_in_the_bank(
    features: FeatureMap, seed: int, data: st.DataObject
):
    posterior, k = GaussianPosterior(features, Noise()), features.space.size
    posterior.fold(some(20, actions=k, seed=seed), seq=20)
    belief = published(posterior, draws=33).belief
    assert isinstance(belief, SampleBank)
    x = some(3, actions=k, seed=seed + 1).x
    eligible = np.array(data.draw(st.lists(st.booleans(), min_size=k, max_size=k).filter(any)))
    floor, n = 0.5 / k, np.count_nonzero(eligible)
    p = belief.decide(asked(x, k)._replace(masks=eligible[None, :]), floor).propensities
    for row, got in zip(x, p, strict=True):
        scores = np.where(eligible[:, None], design(features, row) @ belief.bank, -np.inf)
        wins = np.bincount(np.argmax(scores, axis=0), minlength=k) / 33
        np.testing.assert_allclose(got[eligible], (floor + (1 - n * floor) * wins)[eligible])
        np.testing.assert_array_equal(got[~eligible], 0.0)


@given(features=joint_features(), seed=st.integers(0, 10**9))
def test_a_joint_draw_is_the_best_action_of_one_member_of_the_bank(features: FeatureMap, seed: int):
    posterior, k = GaussianPosterior(features, Noise()), features.space.size
    posterior.fold(some(20, actions=k, seed=seed), seq=20)
    belief = published(posterior, draws=33).belief
    assert isinstance(belief, SampleBank)
    questions = asked(some(20, actions=k, seed=seed + 1).x, k)
    actions = belief.draw(questions, 0.0).actions
    for row, stream, action in zip(questions.x, questions.streams, actions, strict=True):
        member = belief.bank[:, int(streams.uniform(stream, 0) * 33)]
        assert action == np.argmax(design(features, row) @ member)


def test_a_bank_has_the_declared_number_of_draws_and_its_own_stream():
    posterior = gaussian(variants=2, channels=2)
    banks = [
        publish(posterior, version=1, exploration=1.0, draws=d, stream=s).belief.bank
        for d, s in ((17, STREAM), (17, STREAM), (17, rng.snapshot_stream(b"secret", "e", 2)))
    ]
    assert banks[0].shape == (posterior.features.weights, 17)
    np.testing.assert_array_equal(banks[0], banks[1])
    assert (banks[0] != banks[2]).all()


@pytest.mark.parametrize(
    ("kind", "form"),
    [("disjoint", IndependentScores), ("joint", SampleBank), ("beta", TabulatedScores)],
)
def test_the_posteriors_structure_gives_the_form(kind: str, form: type):
    snapshot = published(posteriors()[kind])
    assert isinstance(snapshot.belief, form)
    assert (snapshot.version, snapshot.seq, snapshot.count) == (3, 40, 40)


def expected_scores(posterior: Posterior, row: Floats) -> Floats:
    if isinstance(posterior, BetaBernoulliPosterior):
        successes, failures = posterior.parameters()
        return successes / (successes + failures)
    assert isinstance(posterior, GaussianPosterior)
    mean = posterior.moments().mean
    if posterior.features.is_disjoint:
        return mean @ row
    return design(posterior.features, row) @ mean[0]


@pytest.mark.parametrize("kind", ["disjoint", "joint", "beta"])
def test_no_exploration_is_greedy(kind: str):
    posterior, x = posteriors()[kind], some(20, actions=4, seed=3).x
    belief = published(posterior, exploration=0.0).belief
    best = [np.argmax(expected_scores(posterior, row)) for row in x]
    actions, p = belief.decide(asked(x, 4), 0.0)
    np.testing.assert_array_equal(actions, best)
    np.testing.assert_allclose(p, np.eye(4)[best], atol=1e-12)
    np.testing.assert_array_equal(belief.draw(asked(x, 4), 0.0).actions, best)


@pytest.mark.parametrize("kind", ["disjoint", "joint", "beta"])
def test_more_exploration_spreads_the_propensities(kind: str):
    x = some(20, actions=4, seed=3).x
    peaks = [
        published(posteriors()[kind], exploration=e, draws=4096)
        .belief.decide(asked(x, 4), 0.0)
        .propensities.max(axis=1)
        .mean()
        for e in (0.3, 1.0, 3.0)
    ]
    assert peaks == sorted(peaks, reverse=True)


@pytest.mark.parametrize("kind", ["disjoint", "joint", "beta"])
def test_learning_on_leaves_a_published_snapshot_alone(kind: str):
    posterior, x = posteriors()[kind], some(5, actions=4, seed=3).x
    snapshot = published(posterior)
    before = snapshot.belief.decide(asked(x, 4), 0.0)
    posterior.fold(some(500, actions=4, seed=4), seq=540)
    after = snapshot.belief.decide(asked(x, 4), 0.0)
    np.testing.assert_array_equal(before.propensities, after.propensities)
    assert snapshot.count == 40


@pytest.mark.parametrize("kind", ["disjoint", "joint", "beta"])
def test_publishing_twice_gives_the_same_bits(kind: str):
    posterior, x = posteriors()[kind], some(5, actions=4, seed=3).x
    two = [published(posterior).belief.decide(asked(x, 4), 0.0).propensities for _ in range(2)]
    np.testing.assert_array_equal(two[0], two[1])


def test_hardly_any_exploration_is_nearly_greedy():
    p = published(beta(3), exploration=1e-3).belief.decide(asked(np.ones((1, 1)), 3), 0.0)
    assert p.propensities.max() == pytest.approx(1.0)


def test_an_unknown_posterior_has_no_published_form():
    class Guess(BetaBernoulliPosterior):
        pass

    class Unknown(Posterior):
        seq = count = 0

        def _add(self, outcomes: Outcomes, weights: Floats) -> None: ...

        def _correct(self, outcomes: Outcomes, weights: Floats) -> None: ...

        def statistics(self) -> dict[str, Floats]:
            return {}

    assert published(Guess(2, (1.0, 1.0))).version == 3
    with pytest.raises(BanditError, match="Unknown"):
        published(Unknown())


def test_prior_scales_reach_the_published_spread():
    space = ActionSpace(variants=(Level(name="a"), Level(name="b")), channels=(Level(name="c"),))
    for prior_sd in (0.5, 2.0):
        term = Term(of="context:variant", prior_sd=prior_sd)
        posterior = GaussianPosterior(
            FeatureMap(space=space, terms=(term,), width=1), Noise(sd=0.25)
        )
        belief = published(posterior, exploration=2.0).belief
        assert isinstance(belief, IndependentScores)
        np.testing.assert_allclose(belief.root, 2.0 * 0.25 * prior_sd)  # not one over it
