"""Outcomes that turn out to be other numbers, against posteriors that knew them at first."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit import logistic as module
from bandit.errors import InvalidInputError
from bandit.experiment import Experiment
from bandit.kernels.compiling import Floats
from bandit.posterior import Posterior
from bandit.spec_file import from_data

FORMS = {
    "disjoint": {"posterior": "gaussian"},
    "joint": {"posterior": "gaussian", "terms": [{"of": "context"}, {"of": "context:variant"}]},
    "logistic": {"posterior": "logistic"},
    "logistic, joint": {
        "posterior": "logistic",
        "terms": [{"of": "context"}, {"of": "context:variant"}],
    },
    "beta": {"posterior": "beta_bernoulli"},
}
every_form = pytest.mark.parametrize("form", FORMS)
fading = pytest.mark.parametrize("half_life", [None, 3_600.0])


def experiment(form: str, half_life: float | None = None) -> Experiment:
    policy = {**FORMS[form], **({} if half_life is None else {"half_life": half_life})}
    return Experiment(
        from_data(
            {
                "name": "corrected",
                "actions": {"variants": ["a", "b", "c"], "channels": ["email"]},
                "context": [{"name": "x", "kind": "number", "bounds": [-1, 1]}],
                "outcome": {"window": 60, "aggregation": "max", "rewards": [{"name": "click"}]},
                "policy": policy,
            }
        ),
        secret=b"sixteen bytes or more",
    )


class Log:
    """Outcomes, some of which a later entry corrects."""

    def __init__(self, n: int, changed: int, seed: int, to: float | None = None) -> None:
        random = np.random.default_rng(seed)
        self.rows = random.uniform(-1, 1, (n, 1))
        self.actions = random.integers(0, 3, n)
        self.first = (random.random(n) < 0.4).astype(float)
        self.times = 1e9 + np.sort(random.uniform(0, 1e6, n))
        self.entries = [(i, np.nan, self.first[i]) for i in range(n)]
        self.final = self.first.copy()
        for i in random.integers(0, n, changed):
            value = float(random.uniform()) if to is None else to
            at = random.integers(self._place(i) + 1, len(self.entries) + 1)
            self.entries.insert(at, (int(i), self.final[i], value))
            self.final[i] = value

    def _place(self, i: int) -> int:
        return max(place for place, entry in enumerate(self.entries) if entry[0] == i)

    def fold(self, of: Experiment, cuts: tuple[int, ...] = ()) -> Posterior:
        posterior = of.prior()
        for a, b in pairwise([0, *sorted(cuts), len(self.entries)]):
            part = self.entries[a:b]
            which = np.array([i for i, _, _ in part], dtype=np.int64)
            of.learn(
                posterior,
                self.rows[which],
                self.actions[which],
                np.array([value for _, _, value in part]),
                times=self.times[which],
                replaced=np.array([old for _, old, _ in part]),
                seq=b,
            )
        return posterior

    def known(self, of: Experiment) -> Posterior:
        """Fold what would be known had every outcome been right at first."""
        posterior = of.prior()
        of.learn(
            *(posterior, self.rows, self.actions, self.final), times=self.times, seq=len(self.first)
        )
        return posterior


@fading
@every_form
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), changed=st.integers(1, 30))
def test_a_correction_is_as_if_it_had_been_known(
    form: str, half_life: float | None, seed: int, changed: int
):
    of, log = experiment(form, half_life), Log(40, changed, seed)
    corrected, known = log.fold(of), log.known(of)
    assert corrected.count == known.count == 40
    for name, array in corrected.present().items():
        other = known.present()[name]
        np.testing.assert_allclose(array, other, rtol=1e-9, atol=1e-11)
        if name in ("precision", "weights"):
            np.testing.assert_array_equal(array, other)


@fading
@every_form
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), cuts=st.lists(st.integers(0, 60), max_size=6))
def test_any_grouping_gives_the_same_bits(
    form: str, half_life: float | None, seed: int, cuts: list[int]
):
    of, log = experiment(form, half_life), Log(40, 20, seed)
    whole, parts = log.fold(of), log.fold(of, tuple(cuts))
    for name, array in whole.arrays().items():
        np.testing.assert_array_equal(array, parts.arrays()[name])
    assert whole.count == parts.count


def test_a_thinned_window_is_corrected_to_a_fraction_of_a_deviation(
    monkeypatch: pytest.MonkeyPatch,
):
    """Every tenth of 2,000 outcomes becomes a success; the window holds 200, most rows are gone."""
    monkeypatch.setattr(module, "capacity", lambda _: 200)
    of, log = experiment("logistic"), Log(2_000, 200, seed=3, to=1.0)
    corrected, thinned = log.fold(of).moments(), log.known(of).moments()
    monkeypatch.setattr(module, "capacity", lambda _: 4_000)
    exact = log.known(of).moments()
    sd = deviations(exact.lower)
    first = Log(2_000, 0, seed=3).known(of).moments()
    assert np.abs((first.mean - exact.mean) / sd).max() > 2.0  # the corrections did matter
    assert np.abs((thinned.mean - exact.mean) / sd).max() < 0.1
    assert np.abs((corrected.mean - exact.mean) / sd).max() < 0.1


def deviations(lower: Floats) -> Floats:
    covariances = [np.linalg.inv(part @ part.T) for part in lower]
    return np.array([np.sqrt(np.diag(covariance)) for covariance in covariances])


def test_a_large_outcome_leaves_no_negative_sum_of_squares():
    of = experiment("disjoint")
    posterior = of.prior()
    rows, actions = np.array([[0.3], [0.1]]), [0, 0]
    of.learn(posterior, rows, actions, np.array([1e15 / 3, 1.0]), seq=2)
    of.learn(posterior, rows[:1], [0], np.array([0.0]), replaced=np.array([1e15 / 3]), seq=3)
    assert posterior.statistics()["sums"].min() >= 0.0
    assert np.isfinite(posterior.moments().mean).all()


@every_form
@pytest.mark.parametrize("replaced", [[np.inf], [-1e16], [0.5, 0.5]])
def test_what_can_not_have_been_learned_can_not_be_replaced(form: str, replaced: list[float]):
    of = experiment(form)
    posterior = of.prior()
    of.learn(posterior, np.array([[0.3]]), [0], np.array([0.5]), seq=1)
    before = {name: array.copy() for name, array in posterior.arrays().items()}
    with pytest.raises(InvalidInputError):
        of.learn(
            *(posterior, np.array([[0.3]]), [0], np.array([1.0])),
            replaced=np.array(replaced),
            seq=2,
        )
    for name, array in before.items():
        np.testing.assert_array_equal(posterior.arrays()[name], array)
    assert (posterior.count, posterior.seq) == (1, 1)


@pytest.mark.parametrize("form", ["logistic", "beta"])
def test_rates_replace_rates(form: str):
    of = experiment(form)
    posterior = of.prior()
    with pytest.raises(InvalidInputError, match=r"\[0, 1\]"):
        of.learn(
            *(posterior, np.array([[0.3]]), [0], np.array([1.0])), replaced=np.array([2.0]), seq=1
        )
