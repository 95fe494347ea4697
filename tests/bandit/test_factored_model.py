"""The factored joint model: attributes, full products and odd masks against dense twins."""

import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from bandit import rng
from bandit.actions import FACTORS, ActionSpace, Level
from bandit.errors import InvalidInputError
from bandit.experiment import Experiment
from bandit.features import FeatureMap, Term, default_terms
from bandit.kernels import scoring, streams
from bandit.kernels.compiling import Bools, Floats
from bandit.posterior import GaussianPosterior, Noise, Outcomes
from bandit.snapshot import Asked, SampleBank, publish
from bandit.spec_file import from_data
from tests.bandit.dense import design

SECRET = b"sixteen bytes or more"
WIDTH = 3
SEEDS = st.integers(0, 2**32 - 1)
NUMBERS = st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0]) | st.floats(-3, 3)
EVERY = Term(of="variant:channel:slot")  # so that no two actions are alike


@st.composite
def spaces(draw: st.DrawFn) -> ActionSpace:
    """Give a space of which some factors have attributes, levels of some edits, some retired."""
    factors = []
    for count in draw(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 2))):
        names = [f"z{i}" for i in range(draw(st.integers(0, 3)))]
        factors.append(
            tuple(
                Level(
                    name=str(i),
                    attributes=tuple((name, draw(NUMBERS)) for name in names),
                    generation=draw(st.integers(0, 2)),
                    retired=i > 0 and draw(st.booleans()),
                )
                for i in range(count)
            )
        )
    variants, channels, slots = factors
    return ActionSpace(variants=variants, channels=channels, slots=slots)


@st.composite
def models(draw: st.DrawFn) -> FeatureMap:
    """Give a space with some terms, most of them with attributes."""
    space = draw(spaces())
    choices = [["", "context"]]
    for factor, levels in zip(FACTORS, space.factors, strict=True):
        choices.append(["", factor, *([f"{factor}.attributes"] if levels[0].attributes else [])])
    of = draw(st.lists(st.tuples(*map(st.sampled_from, choices)), max_size=4, unique=True))
    names = [":".join(filter(None, one)) for one in of]
    terms = [Term(of=name, prior_sd=draw(st.sampled_from([0.5, 1.0]))) for name in names if name]
    terms = [term for term in terms if term.names != EVERY.names]
    return FeatureMap(space=space, terms=(*terms, EVERY), width=WIDTH)


def some(features: FeatureMap, *, n: int, seed: int) -> Outcomes:
    random = np.random.default_rng(seed)
    x = np.column_stack([np.ones(n), random.standard_normal((n, features.width - 1))])
    x[:, 1] *= random.integers(0, 2, n)  # with zeros to skip
    return Outcomes(x, random.integers(0, features.space.size, n), random.standard_normal(n))


def asked(x: Floats, eligible: Bools) -> Asked:
    names = b"".join(rng.keyed(SECRET, "draw", "e", bytes([i]))[:16] for i in range(len(x)))
    which = np.zeros(len(x), dtype=np.int64)
    return Asked(x, which, eligible[None, :], rng.words(names).reshape(-1, 4))


# --- against dense twins ----------------------------------------------------------------


@given(features=models(), seed=SEEDS)
def test_design_and_names_follow_the_terms(features: FeatureMap, seed: int):
    x = np.random.default_rng(seed).standard_normal(WIDTH)
    for action, expected in enumerate(design(features, x)):
        np.testing.assert_allclose(features.design(x, action), expected, rtol=1e-15)
    names = features.weight_names(["one", "age", "hour"])
    assert len(names) == len(set(names)) == features.weights
    assert len(features.prior_precision) == features.weights


def test_weights_are_named_by_feature_level_and_attribute():
    space = ActionSpace(
        variants=tuple(Level(name=n, attributes=(("long", 1.0), ("warm", 0.0))) for n in "ab"),
        channels=(Level(name="sms"), Level(name="email")),
    )
    of = ("context:variant.attributes", "variant.attributes:channel", "variant")
    features = FeatureMap(space=space, terms=tuple(Term(of=o) for o in of), width=2)
    assert features.weight_names(["(intercept)", "age"]) == [
        "(intercept):variant.long",
        "age:variant.long",
        "(intercept):variant.warm",
        "age:variant.warm",
        "variant.long:channel=sms",
        "variant.long:channel=email",
        "variant.warm:channel=sms",
        "variant.warm:channel=email",
        "variant=a",
        "variant=b",
    ]


@given(features=models(), seed=SEEDS, n=st.integers(1, 30))
def test_the_posterior_is_dense_regression(features: FeatureMap, seed: int, n: int):
    outcomes = some(features, n=n, seed=seed)
    posterior = GaussianPosterior(features, Noise(shape=2.0, scale=3.0))
    posterior.fold(outcomes, seq=n)
    mean, lower, _, shape, scale = posterior.moments()
    pairs = zip(outcomes.x, outcomes.actions, strict=True)
    phi = np.array([design(features, x)[action] for x, action in pairs])
    precision = phi.T @ phi + np.diag(features.prior_precision)
    expected = np.linalg.solve(precision, phi.T @ outcomes.rewards)
    np.testing.assert_allclose(lower[0] @ lower[0].T, precision, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(mean[0], expected, rtol=1e-7, atol=1e-9)
    residual = ((outcomes.rewards - phi @ expected) ** 2).sum()
    residual += (features.prior_precision * expected**2).sum()
    np.testing.assert_allclose([shape, scale], [2.0 + n / 2, 3.0 + residual / 2], rtol=1e-9)


@given(
    features=models(),
    seed=SEEDS,
    draws=st.sampled_from([16, 33, scoring.TILE, scoring.TILE + 1, 2 * scoring.TILE + 43]),
    data=st.data(),
)
@settings(max_examples=50)
def test_decisions_are_shares_of_wins_under_any_mask(
    features: FeatureMap, seed: int, draws: int, data: st.DataObject
):
    posterior, k = GaussianPosterior(features, Noise()), features.space.size
    posterior.fold(some(features, n=20, seed=seed), seq=20)
    stream = rng.snapshot_stream(SECRET, "e", 20)
    belief = publish(posterior, version=1, exploration=1.0, draws=draws, stream=stream).belief
    assert isinstance(belief, SampleBank)
    eligible = np.array(data.draw(st.lists(st.booleans(), min_size=k, max_size=k).filter(any)))
    questions = asked(some(features, n=3, seed=seed + 1).x, eligible)
    actions, p = belief.decide(questions, 0.0)
    drawn = belief.draw(questions, 0.0).actions
    for t, x in enumerate(questions.x):
        phi = design(features, x)
        scores = np.where(eligible[:, None], phi @ belief.bank, -np.inf)
        best = scores.max(axis=0)
        close = scores >= best - 1e-9 * (1.0 + np.abs(best))
        # Where attributes make two actions nearly equal, rounding may pick either.
        certain = (
            np.bincount(np.argmax(scores, axis=0)[close.sum(axis=0) == 1], minlength=k) / draws
        )
        possible = close.sum(axis=1) / draws
        assert (p[t] >= certain - 1e-9).all()
        assert (p[t] <= possible + 1e-9).all()
        assert p[t].sum() == pytest.approx(1.0)
        assert eligible[actions[t]]
        member = min(int(streams.uniform(questions.streams[t], 0) * draws), draws - 1)
        assert close[drawn[t], member]


@given(seed=SEEDS, sizes=st.tuples(*[st.integers(2, 3)] * 3))
@settings(max_examples=25)
def test_full_crosses_the_whole_product(seed: int, sizes: tuple[int, int, int]):
    """With a term for every combination each action learns alone, as a disjoint model does."""
    factors = [tuple(Level(name=str(i)) for i in range(n)) for n in sizes]
    space = ActionSpace(variants=factors[0], channels=factors[1], slots=factors[2])
    full = FeatureMap(space=space, terms=(Term(of="context:variant:channel:slot"),), width=WIDTH)
    assert full.is_disjoint
    beside = (*full.terms, Term(of="context", prior_sd=1e-3))
    shared = FeatureMap(space=space, terms=beside, width=WIDTH)
    outcomes = some(full, n=60, seed=seed)
    alone, together = GaussianPosterior(full, Noise()), GaussianPosterior(shared, Noise())
    for posterior in (alone, together):
        posterior.fold(outcomes, seq=60)
    found = together.moments().mean[0, : space.size * WIDTH].reshape(space.size, WIDTH)
    np.testing.assert_allclose(found, alone.moments().mean, atol=1e-3)


# --- what sharing means -----------------------------------------------------------------


def described(variants: dict[str, dict[str, float]], **policy: object) -> Experiment:
    levels = [{"name": name, "attributes": numbers} for name, numbers in variants.items()]
    return Experiment(
        from_data(
            {
                "name": "e",
                "actions": {"variants": levels, "channels": ["x"]},
                "context": [{"name": "age", "kind": "number", "bounds": [-2, 2], "required": True}],
                "outcome": {"window": 60, "rewards": [{"name": "r"}]},
                "policy": {"noise": {"sd": 1.0}, **policy},
            }
        ),
        secret=SECRET,
    )


def test_variants_with_like_attributes_are_correlated_as_the_closed_form_says():
    """Fisher's z at 1e-6. Before any outcome: z_a . z_b |x|^2 + |x|^2, and .04 of their own."""
    scales = {"context": 1.0, "context:variant.attributes": 1.0, "variant": 0.2}
    e = described(
        {"a": {"p": 1.0, "q": 0.5}, "b": {"p": 0.8, "q": 0.7}},
        draws=16_384,
        exploration=1.0,
        terms=[{"of": of, "prior_sd": sd} for of, sd in scales.items()],
    )
    belief = e.publish(e.prior(), version=0).belief
    assert isinstance(belief, SampleBank)
    x = e.spec.encoder.encode(np.array([[1.0]]))[0]
    scores = np.array([belief.features.design(x, a) @ belief.bank for a in range(2)])
    square, each, both = x @ x, (1.25, 1.13), 0.8 + 0.35
    variances = [square * (1.0 + z) + 0.04 for z in each]
    exact = square * (1.0 + both) / np.sqrt(variances[0] * variances[1])
    error = np.arctanh(np.corrcoef(scores)[0, 1]) - np.arctanh(exact)
    assert exact > 0.96
    assert abs(error) < -special.ndtri(1e-6 / 2) / np.sqrt(16_384 - 3)


def test_a_new_variant_starts_from_what_its_attributes_predict():
    """Closed form: no own effect is known, so the mean is z kron x times the shared block."""
    rng_ = np.random.default_rng(5)
    numbers = {f"v{i}": dict(zip("pqr", rng_.uniform(-1, 1, 3), strict=True)) for i in range(30)}
    e = described(numbers)
    assert [t.of for t in e.spec.features.terms] == [
        "context",
        "context:variant.attributes",
        "variant",
    ]
    truth = rng_.standard_normal((3, 2))
    rows, actions = rng_.uniform(-2, 2, (3_000, 1)), rng_.integers(0, 30, 3_000)
    x = e.spec.encoder.encode(rows)
    z = np.array([list(one.values()) for one in numbers.values()])
    rewards = np.einsum("np,pd,nd->n", z[actions], truth, x) + rng_.normal(0, 1.0, 3_000)
    posterior = e.prior()
    e.learn(posterior, rows, actions.tolist(), rewards, seq=3_000)

    new = {"p": 0.9, "q": -0.4, "r": 0.1}
    data = e.spec.actions
    grown = ActionSpace(
        variants=(
            *data.variants,
            Level(name="new", attributes=tuple(new.items()), generation=1),
        ),
        channels=data.channels,
        slots=data.slots,
    )
    after, revised = e.revise(posterior, replace(e.spec, actions=grown))
    mean, lower, variance, *_ = revised.moments()  # type: ignore[attr-defined]
    f, one = after.spec.features, x[0]
    phi = f.design(one, 30)
    before = posterior.moments()  # type: ignore[attr-defined]
    shared = slice(0, 8)  # context: 2, context by attribute: 3 x 2
    start = np.concatenate([one, np.kron(list(new.values()), one)])
    assert phi @ mean[0] == pytest.approx(start @ before.mean[0, shared], rel=1e-12)
    covariance = np.linalg.inv(before.lower[0] @ before.lower[0].T)[shared, shared]
    spread = variance * phi @ np.linalg.inv(lower[0] @ lower[0].T) @ phi
    assert spread == pytest.approx(before.noise_variance * (start @ covariance @ start + 0.04))
    # and that is close to the truth, which a flat start at 0 is not
    predicted, true = phi @ mean[0], list(new.values()) @ truth @ one
    assert abs(predicted - true) < 0.25 < abs(true)


# --- size -------------------------------------------------------------------------------


def test_2400_actions_need_no_dense_matrix():
    """A dense design alone would take 7.5 MB; building, learning and deciding stay below."""
    levels = [tuple(Level(name=str(i)) for i in range(n)) for n in (20, 5, 24)]
    space = ActionSpace(variants=levels[0], channels=levels[1], slots=levels[2])
    terms = tuple(Term(of=f"context:{factor}") for factor in FACTORS)

    def work() -> SampleBank:
        features = FeatureMap(space=space, terms=terms, width=8)
        posterior = GaussianPosterior(features, Noise())
        posterior.fold(some(features, n=100, seed=1), seq=100)
        stream = rng.snapshot_stream(SECRET, "e", 100)
        belief = publish(posterior, version=1, exploration=1.0, draws=256, stream=stream).belief
        assert isinstance(belief, SampleBank)
        belief.decide(asked(np.ones((1, 8)), space.mask), 0.0)
        return belief

    work()  # compiled, and the space's tables made
    tracemalloc.start()
    belief = work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    f = belief.features
    assert (f.space.size, f.weights, f.blocks) == (2_400, 392, 1)
    dense_bytes = 2_400 * 392 * 8
    assert peak < dense_bytes
    held = [f.cells, f.loads, f.offsets, f.prior_precision, belief.bank, *f.planes[:-1]]
    assert sum(array.nbytes for array in held) < dense_bytes / 6


def test_crossed_attributes_cost_as_much_as_their_cells():
    """16 times the cells take about 16 times as long, not 256 times: least of 5 runs each."""

    def seconds(count: int) -> float:
        levels = tuple(Level(name=str(i), attributes=(("z", float(i)),)) for i in range(count))
        space = ActionSpace(variants=levels, channels=levels)
        of = ("variant.attributes:channel.attributes", "variant")
        features = FeatureMap(space=space, terms=tuple(Term(of=o) for o in of), width=1)
        bank, x = np.ones((features.weights, 1)), np.ones(1)
        out = np.empty((count * count, 1))
        taken = []
        for _ in range(6):
            begun = time.perf_counter()
            scoring.plane_scores(x, bank, features.layout, features.planes, out)
            taken.append(time.perf_counter() - begun)
        return min(taken[1:])

    assert seconds(100) < 64 * seconds(25)


# --- what can not work ------------------------------------------------------------------

ALIKE = tuple(Level(name=n, attributes=(("p", 1.0),)) for n in "ab")
PLAIN = (Level(name="a"), Level(name="b"))


@pytest.mark.parametrize(
    ("variants", "of", "said"),
    [
        (PLAIN, ("variant.attributes", "variant"), "levels of variant declare none"),
        (ALIKE, ("context:variant.attributes",), "can not tell 'a' from 'b'"),
        (ALIKE, ("context",), "no term names variant"),
    ],
)
def test_attribute_terms_that_can_not_work_are_refused(
    variants: tuple[Level, ...], of: tuple[str, ...], said: str
):
    space = ActionSpace(variants=variants, channels=(Level(name="x"),))
    with pytest.raises(InvalidInputError, match=said) as caught:
        FeatureMap(space=space, terms=tuple(Term(of=name) for name in of), width=2)
    assert caught.value.field == "terms"


def test_attributes_of_too_many_levels_at_once_are_refused():
    numbers = tuple((f"z{i:02d}", 1.0) for i in range(64))
    levels = tuple(Level(name=str(i), attributes=numbers) for i in range(20))
    space = ActionSpace(variants=levels, channels=levels, slots=levels[:2])
    terms = (Term(of="variant.attributes:channel.attributes"), EVERY)
    with pytest.raises(InvalidInputError, match="coefficients of attributes"):
        FeatureMap(space=space, terms=terms, width=2)


def test_a_term_names_a_factor_or_its_attributes():
    with pytest.raises(InvalidInputError, match="use two terms"):
        Term(of="variant:variant.attributes")
    with pytest.raises(InvalidInputError, match="is none of"):
        Term(of="attributes")


def test_attributes_that_tell_levels_apart_need_no_own_effect():
    levels = tuple(Level(name=n, attributes=(("p", float(i)),)) for i, n in enumerate("abc"))
    space = ActionSpace(variants=levels, channels=(Level(name="x"),))
    features = FeatureMap(space=space, terms=(Term(of="context:variant.attributes"),), width=2)
    assert (features.weights, features.is_disjoint) == (2, False)
    alone = ActionSpace(variants=levels[:1], channels=(Level(name="x"),))
    one = FeatureMap(space=alone, terms=(Term(of="context:variant.attributes"),), width=2)
    assert not one.is_disjoint


@pytest.mark.parametrize(
    ("v", "c", "expected"),
    [
        (True, False, ["context", "context:variant.attributes", "variant", "context:channel"]),
        (False, True, ["context", "context:variant", "context:channel.attributes", "channel"]),
    ],
)
def test_default_terms_use_the_attributes(*, v: bool, c: bool, expected: list[str]):
    def levels(*, has: bool) -> tuple[Level, ...]:
        return tuple(
            Level(name=n, attributes=(("p", float(i)),) if has else ()) for i, n in enumerate("ab")
        )

    space = ActionSpace(variants=levels(has=v), channels=levels(has=c))
    terms = default_terms(space)
    assert [term.of for term in terms] == [*expected, "variant:channel"]
    assert {term.prior_sd for term in terms if term.of in FACTORS} == {0.2}
