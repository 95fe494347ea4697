"""The bootstrap: named weights, the same bits however it is computed, and what it refuses."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bandit.errors import InvalidInputError
from bandit.kernels import streams
from bandit.kernels.compiling import Floats, Ints
from sims.kernels import resampling
from sims.ope.bootstrap import KINDS, Bootstrap, bootstrap
from sims.ope.estimators import Terms
from sims.ope.intervals import Moments, student

ROWS = resampling.ROWS


def mean_of(values: Floats) -> Terms:
    return Terms(np.asarray(values, dtype=float), np.ones(len(values)))


def some_estimates(n: int, seed: int) -> dict[str, Terms]:
    rng = np.random.default_rng(seed)
    weights = rng.gamma(2.0, size=n)
    rewards = rng.normal(1.0, 2.0, n)
    return {
        "mean": mean_of(rewards),
        "ratio": Terms(weights * rewards, weights),
        "both": Terms(weights * rewards, weights, rng.normal(3.0, 1.0, n)),
    }


def part_of(terms: dict[str, Terms], start: int, stop: int) -> dict[str, Terms]:
    return {
        name: Terms(
            t.numerators[start:stop],
            t.denominators[start:stop],
            None if t.offsets is None else t.offsets[start:stop],
        )
        for name, t in terms.items()
    }


def drawn(seed: int, replicates: int, names: Ints) -> Floats:
    weights = np.empty((replicates // 4, 4, len(names)))
    key = np.array([seed & 0xFFFFFFFF, seed >> 32], dtype=np.uint32)
    for group in range(replicates // 4):
        resampling.draw_weights(key, group, names, weights[group])
    return weights.reshape(replicates, len(names))


# --- weights ----------------------------------------------------------------------------


def test_weights_are_philox_words_turned_into_poisson_numbers():
    """The words are those of the engine's generator, whose known answers are tested there."""
    names = np.array([0, 1, 2**31, 2**32, 2**40 + 7, 123456789])
    for seed, group in ((0, 0), (2**63 + 5, 3), (99, 249)):
        weights = drawn(seed, 4 * group + 4, names)[-4:]
        for i, name in enumerate(names.tolist()):
            stream = np.array([seed & 0xFFFFFFFF, seed >> 32, group, 0x626F6F74], dtype=np.uint32)
            told = [stats.poisson.ppf(w / 2**32, 1.0) for w in streams.philox(stream, name)]
            assert weights[:, i].tolist() == told


def test_weights_follow_the_poisson_law():
    """Chi-square over 0 .. 6 and more, 400,000 draws: p > 1e-6; a million to one."""
    weights = drawn(7, 40, np.arange(10_000)).ravel().astype(int)
    counts = np.bincount(np.minimum(weights, 7), minlength=8)
    law = np.append(stats.poisson.pmf(range(7), 1.0), stats.poisson.sf(6, 1.0))
    assert stats.chisquare(counts, law * weights.size).pvalue > 1e-6


def test_replicates_are_sums_with_these_weights():
    terms = some_estimates(1300, seed=1)
    ours = Bootstrap(list(terms), seed=5, replicates=80)
    ours.add(terms)
    weights = drawn(5, 80, np.arange(1300))
    for name, t in terms.items():
        told = weights @ t.numerators / (weights @ t.denominators)
        if t.offsets is not None:
            told += weights @ t.offsets / weights.sum(axis=1)
        assert ours.replicates(name) == pytest.approx(told, rel=1e-12)
        assert ours.value(name) == pytest.approx(t.value, rel=1e-12)


def test_a_cluster_is_drawn_as_a_whole():
    """Rows of one customer in one log: as if each customer were one row named by its number."""
    rng = np.random.default_rng(2)
    customers = rng.integers(0, 50, 700)
    values = rng.normal(size=700)
    ours = Bootstrap(["mean"], seed=5, replicates=40)
    ours.add({"mean": mean_of(values)}, customers)
    weights = drawn(5, 40, np.arange(50))[:, customers]
    told = weights @ values / weights.sum(axis=1)
    assert ours.replicates("mean") == pytest.approx(told, rel=1e-12)


# --- the same bits ----------------------------------------------------------------------


@given(
    cuts=st.lists(st.integers(0, 3 * ROWS + 17), max_size=6),
    threads=st.sampled_from([1, 2, 3, 7]),
    by_customer=st.booleans(),
)
@settings(max_examples=25)
def test_batches_and_threads_give_the_same_bits(
    cuts: list[int], threads: int, *, by_customer: bool
):
    n = 3 * ROWS + 17
    terms = some_estimates(n, seed=3)
    customers = np.random.default_rng(4).integers(0, 200, n) if by_customer else None
    edges = sorted({0, *cuts, n})
    whole = Bootstrap(list(terms), seed=11, replicates=720, threads=1)
    whole.add(terms, customers)
    parts = Bootstrap(list(terms), seed=11, replicates=720, threads=threads)
    for start, stop in itertools.pairwise(edges):
        own = None if customers is None else customers[start:stop]
        parts.add(part_of(terms, start, stop), own)
        parts.value("mean")  # looking on the way changes nothing
    for name in terms:
        assert parts.replicates(name).tobytes() == whole.replicates(name).tobytes()
        assert parts.interval(name) == whole.interval(name)


def test_threads_are_used_and_change_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sims.ope.bootstrap._SMALL", 0)
    terms = some_estimates(2 * ROWS, seed=3)
    found = []
    for threads in (1, 2, 5, 64):
        one = Bootstrap(list(terms), seed=1, replicates=100, threads=threads)
        one.add(terms)
        found.append([one.replicates(name).tobytes() for name in terms])
    assert all(one == found[0] for one in found)


def test_a_ratio_that_begins_as_a_mean_has_the_same_bits():
    """Denominators get a column once they differ from 1; until then it was that of ones."""
    n = 2 * ROWS + 100
    rng = np.random.default_rng(6)
    below, offsets = np.ones(n), np.zeros(n)
    below[ROWS + 50 :] = rng.gamma(2.0, size=n - ROWS - 50)
    offsets[ROWS + 50 :] = 1.0
    terms = {"ratio": Terms(rng.normal(size=n), below, offsets), "mean": mean_of(rng.random(n))}
    whole = Bootstrap(["ratio", "mean"], seed=1, replicates=40)
    whole.add(terms)
    parts = Bootstrap(["ratio", "mean"], seed=1, replicates=40)
    parts.add(part_of(terms, 0, ROWS + 50))
    parts.add(part_of(terms, ROWS + 50, n))
    for name in terms:
        assert parts.replicates(name).tobytes() == whole.replicates(name).tobytes()


def test_company_changes_nothing():
    """An estimate has the same interval alone and beside others."""
    terms = some_estimates(900, seed=8)
    together = bootstrap(terms, seed=2, replicates=200)
    for name in terms:
        assert bootstrap({name: terms[name]}, seed=2, replicates=200)[name] == together[name]


def test_another_seed_is_another_draw():
    terms = some_estimates(300, seed=8)
    one, other = (bootstrap(terms, seed=seed, replicates=200) for seed in (1, 2**32 + 1))
    assert one["mean"] != other["mean"]


# --- against others and by properties ---------------------------------------------------


def test_the_percentile_interval_is_about_that_of_obp(data_folder: Path):
    """Same rows, other draws (theirs multinomial): ends differ by the noise of a quantile.

    At 2.5 % of 1,000 replicates its standard error is .085 of the estimate's, theirs the same:
    the bound of .7 is six of them together. Their self-normalised rows are drawn as a mean.
    """
    log = np.load(data_folder / "oracles/obp_synthetic_2000.npz")
    told = json.loads((data_folder / "oracles/ope_obp.json").read_text())["bootstrap95"]
    at = np.arange(2000)
    weights = log["pi_e"][at, log["action"]] / log["pscore"]
    direct = (log["pi_e"] * log["q_hat"]).sum(axis=1)
    rest = log["reward"] - log["q_hat"][at, log["action"]]
    terms = {
        "ipw": mean_of(weights * log["reward"]),
        "snipw": mean_of(weights / weights.mean() * log["reward"]),
        "dm": mean_of(direct),
        "dr": mean_of(direct + weights * rest),
    }
    for name, found in bootstrap(terms, seed=1, kind="percentile").items():
        error = Moments.of(terms[name]).error
        assert abs(found.low - told[name]["95.0% CI (lower)"]) < 0.7 * error
        assert abs(found.high - told[name]["95.0% CI (upper)"]) < 0.7 * error


def test_bca_is_scipys():
    """SciPy's BCa of a skewed mean, both with 20,000 replicates: ends agree to .1 of an error.

    A 2.5 % quantile of 20,000 has a standard error of .02, the acceleration adds .01: the
    bound is four of both together, so about 1e-4 to fail for another seed.
    """
    values = np.random.default_rng(5).lognormal(size=80)
    told = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    ours = bootstrap({"mean": mean_of(values)}, seed=1, replicates=20_000)["mean"]
    error = Moments.of(mean_of(values)).error
    assert abs(ours.low - told.low) < 0.1 * error
    assert abs(ours.high - told.high) < 0.1 * error
    plain = bootstrap({"mean": mean_of(values)}, seed=1, replicates=20_000, kind="percentile")
    assert ours.high - plain["mean"].high > 0.15 * error  # skewed: the correction is visible


def test_without_skewness_all_agree_with_students():
    values = np.random.default_rng(6).normal(size=2000)
    told = student(Moments.of(mean_of(values)))
    for kind in KINDS:
        ours = bootstrap({"mean": mean_of(values)}, seed=1, replicates=8000, kind=kind)["mean"]
        assert ours[:2] == pytest.approx(told[:2], abs=0.1 * told.width)
        assert ours.kind == kind


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 50), low=st.floats(0.5, 0.9), more=st.floats(0.001, 0.05))
@settings(max_examples=20)
def test_a_higher_level_is_never_narrower(kind: str, seed: int, low: float, more: float):
    terms = some_estimates(60, seed)
    found = Bootstrap(list(terms), seed=1, replicates=200, threads=1)
    found.add(terms)
    for name in terms:
        narrow, wide = (found.interval(name, level, kind) for level in (low, low + more))
        assert wide.low <= narrow.low <= narrow.high <= wide.high


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 50), shift=st.floats(-50, 50), scale=st.floats(0.01, 100))
@settings(max_examples=20)
def test_shift_and_scale_move_the_ends_along(kind: str, seed: int, shift: float, scale: float):
    """Rewards times a, plus b: numerators become ``a n + b d``."""
    plain = some_estimates(60, seed)["ratio"]
    moved = Terms(scale * plain.numerators + shift * plain.denominators, plain.denominators)
    found = bootstrap({"plain": plain, "moved": moved}, seed=1, replicates=200, kind=kind)
    expected = [shift + scale * end for end in found["plain"][:2]]
    assert found["moved"][:2] == pytest.approx(expected, abs=1e-8 * (abs(shift) + scale))


# --- refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed: must lie in"),
        ({"seed": 1 << 64}, "seed: must lie in"),
        ({"replicates": 0}, "replicates: must be a multiple of 4"),
        ({"replicates": 41}, "replicates: must be a multiple of 4"),
        ({"threads": 0}, "threads: must be at least 1"),
    ],
)
def test_settings_are_checked(change: dict[str, int], message: str):
    with pytest.raises(InvalidInputError, match=message):
        Bootstrap(["a"], **{"seed": 1, **change})


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_names_differ(names: list[str]):
    with pytest.raises(InvalidInputError, match="names"):
        Bootstrap(names, seed=1)


def test_rows_are_checked_and_named():
    found = Bootstrap(["a", "b"], seed=1)
    found.add({"a": mean_of(np.zeros(5)), "b": mean_of(np.ones(5))})
    good, bad = mean_of(np.zeros(2)), mean_of(np.array([0.0, math.nan]))
    with pytest.raises(InvalidInputError, match=r"terms.b.numerators\[6\]: must be finite"):
        found.add({"a": good, "b": bad})
    with pytest.raises(InvalidInputError, match="need a, b; got a"):
        found.add({"a": good})
    with pytest.raises(InvalidInputError, match=r"terms\.b: has 3 rows, 'a' has 2"):
        found.add({"a": good, "b": mean_of(np.zeros(3))})
    with pytest.raises(InvalidInputError, match="clusters: must be 2 whole numbers"):
        found.add({"a": good, "b": good}, np.array([0.5, 1.5]))
    with pytest.raises(InvalidInputError, match="clusters: must be 2 whole numbers"):
        found.add({"a": good, "b": good}, np.array([1]))
    assert found.n == 5


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_rows_give_no_interval(n: int):
    """Two rows are both left out by 13 % of the replicates."""
    with pytest.raises(InvalidInputError, match=r"2 rows|too few rows carry weight"):
        bootstrap({"a": mean_of(np.arange(float(n)))}, seed=1)


def test_a_few_empty_replicates_are_left_out():
    """Six rows are all left out by .25 % of the replicates; the others count."""
    found = Bootstrap(["a"], seed=1, replicates=4000)
    found.add({"a": mean_of(np.arange(6.0))})
    assert 0 < np.isnan(found.replicates("a")).sum() < 40
    assert found.interval("a").covers(2.5)


def test_equal_rows_have_no_interval():
    with pytest.raises(InvalidInputError, match=r"terms\.a: all rows say 0.25"):
        bootstrap({"a": mean_of(np.full(50, 0.25))}, seed=1)


def test_kind_level_and_replicates_fit():
    found = Bootstrap(["a"], seed=1, replicates=100)
    found.add({"a": mean_of(np.arange(50.0))})
    with pytest.raises(InvalidInputError, match="kind: 'magic' is not one of"):
        found.interval("a", kind="magic")
    with pytest.raises(InvalidInputError, match="level"):
        found.interval("a", 1.5)
    with pytest.raises(InvalidInputError, match="100 replicates are too few"):
        found.interval("a", 0.99)
