"""Models predict rows they did not see; settings are chosen near the best."""

import dataclasses
import itertools
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from bandit.errors import InvalidInputError
from sims.log import Log, taken
from sims.ope import choices, tuning
from sims.ope.balancing import Balancer
from sims.ope.estimators import ESTIMATORS, Weighed, weigh
from sims.ope.models import Fitted, RewardModel, cross_fit
from sims.ope.sampling import Sample, folds_of
from sims.ope.tuning import Candidate, choose, slope, standard_error

KINDS = ("logistic", "ridge", "boosting")


def clicks(rows: int, seed: int, actions: int = 4) -> tuple[Log, np.ndarray]:
    """Give a log of clicks, and the true rates of every row."""
    random = np.random.default_rng(seed)
    tastes = np.random.default_rng(7).standard_normal((2, actions))
    contexts = random.standard_normal((rows, 2))
    rates = special.expit(contexts @ tastes - 0.5)
    chosen = random.integers(0, actions, rows)
    log = Log(
        actions=chosen,
        rewards=(random.random(rows) < rates[np.arange(rows), chosen]).astype(float),
        propensities=np.full(rows, 1.0 / actions),
        size=actions,
        rows=contexts,
    )
    return log, rates


def fit(model: RewardModel, log: Log, seed: int = 3) -> Fitted:
    sample = Sample(model.fit_rows, seed)
    sample.add(log, np.arange(len(log)))
    numbers, rows = sample.rows()
    return cross_fit(model, rows, numbers, seed=seed)


def predict(model: RewardModel, log: Log, seed: int = 3) -> np.ndarray:
    return fit(model, log, seed).predict(log, np.arange(len(log)))


# --- samples and folds ------------------------------------------------------------------


@given(
    size=st.integers(5, 80), cuts=st.lists(st.integers(1, 99), max_size=4), seed=st.integers(0, 9)
)
@settings(max_examples=30)
def test_a_sample_does_not_depend_on_batches(size: int, cuts: list[int], seed: int):
    log, _ = clicks(100, seed)
    whole, parts = Sample(size, seed), Sample(size, seed)
    whole.add(log, np.arange(100))
    ends = [0, *sorted(cuts), 100]
    for start, stop in itertools.pairwise(ends):
        parts.add(taken(log, slice(start, stop)), np.arange(start, stop))
    (numbers, rows), (others, same) = whole.rows(), parts.rows()
    assert len(numbers) == size
    assert numbers.tolist() == others.tolist() == sorted(numbers.tolist())
    assert np.array_equal(rows.rows, same.rows)
    assert np.array_equal(rows.rewards, log.rewards[numbers])


def test_samples_and_folds_are_even():
    """A fair share of 10,000 rows: five standard deviations, so 6e-7 to fail each."""
    log, _ = clicks(10_000, 1)
    sample = Sample(2_000, 5)
    sample.add(log, np.arange(10_000))
    low = (sample.rows()[0] < 5_000).sum()
    assert abs(low - 1_000) < 5 * np.sqrt(2_000 / 4)
    sizes = np.bincount(folds_of(log, np.arange(10_000), 4, 5))
    assert np.abs(sizes - 2_500).max() < 5 * np.sqrt(10_000 * 3 / 16)


def test_a_customers_rows_are_in_one_fold():
    log, _ = clicks(300, 1)
    log = dataclasses.replace(log, customers=np.arange(300) // 10 - 15)
    folds = folds_of(log, np.arange(300), 3, 1).reshape(30, 10)
    assert (folds == folds[:, :1]).all()
    assert len(np.unique(folds)) == 3


# --- models -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_predicted_without_its_fold(kind: str):
    """Other rewards in a fold change what is predicted of the others, and nothing in it."""
    log, _ = clicks(400, 1)
    model = RewardModel(kind=kind)
    folds = folds_of(log, np.arange(400), model.folds, 3)
    turned = np.where(folds == 1, 1.0 - log.rewards, log.rewards)
    before, after = predict(model, log), predict(model, dataclasses.replace(log, rewards=turned))
    assert np.array_equal(before[folds == 1], after[folds == 1])
    assert not np.allclose(before[folds == 0], after[folds == 0], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bits(kind: str):
    log, _ = clicks(300, 2)
    model = RewardModel(kind=kind)
    assert np.array_equal(predict(model, log), predict(model, log))
    assert not np.array_equal(predict(model, log), predict(model, log, seed=4))


@pytest.mark.parametrize(
    ("kind", "features", "error"),
    [
        ("logistic", "interacted", 0.05),
        ("logistic", "per_action", 0.05),
        ("ridge", "interacted", 0.12),
        ("boosting", "interacted", 0.13),
    ],
)
def test_models_learn_the_rates(kind: str, features: str, error: float):
    """Errors are about half of these; a model without interactions has 0.17."""
    log, rates = clicks(6_000, 3)
    found = predict(RewardModel(kind=kind, features=features), log)
    assert np.sqrt(np.mean((found - rates) ** 2)) < error
    additive = predict(RewardModel(kind="logistic", features="additive"), log)
    assert np.sqrt(np.mean((additive - rates) ** 2)) > 0.14


def test_actions_share_what_their_levels_share():
    """Actions are variant x channel; one pair was never logged, and is predicted well."""
    random = np.random.default_rng(5)
    levels = np.array([[v, c, 0] for v in range(3) for c in range(3)])
    rates = special.expit(np.array([-1.0, 0.0, 1.0])[levels[:, 0]] + 0.5 * levels[:, 1] - 1.0)
    actions = random.integers(0, 8, 8_000)
    log = Log(
        actions=actions,
        rewards=(random.random(8_000) < rates[actions]).astype(float),
        propensities=np.full(8_000, 1 / 8),
        size=9,
    )
    found = predict(RewardModel(levels=levels), log).mean(axis=0)
    assert np.abs(found - rates).max() < 0.06
    alone = predict(RewardModel(), log).mean(axis=0)
    assert abs(alone[8] - rates[8]) > 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_missing_contexts_and_positions_are_features(kind: str):
    log, _ = clicks(2_000, 4)
    random = np.random.default_rng(1)
    gaps = log.rows.copy()
    gaps[random.random(2_000) < 0.3, 0] = np.nan
    positions = random.integers(0, 3, 2_000)
    rewards = (random.random(2_000) < np.array([0.8, 0.4, 0.1])[positions]).astype(float)
    log = dataclasses.replace(log, rows=gaps, positions=positions, rewards=rewards)
    found = predict(RewardModel(kind=kind), log)
    assert np.isfinite(found).all()
    means = [found[positions == p].mean() for p in range(3)]
    assert np.abs(np.array(means) - [0.8, 0.4, 0.1]).max() < 0.06


def test_rewards_that_never_vary_are_predicted():
    log, _ = clicks(60, 1)
    found = predict(RewardModel(), dataclasses.replace(log, rewards=np.zeros(60)))
    assert (found == 0.0).all()


def test_auto_is_logistic_for_clicks_and_ridge_for_money():
    log, _ = clicks(60, 1)
    money = dataclasses.replace(log, rewards=log.rewards * 3.5)
    assert fit(RewardModel(), log).kind == "logistic"
    assert fit(RewardModel(), money).kind == "ridge"
    with pytest.raises(InvalidInputError, match=r"model\.kind: logistic needs rewards that are 0"):
        fit(RewardModel(kind="logistic"), money)


def test_what_does_not_fit_is_refused():
    log, _ = clicks(60, 1)
    many = dataclasses.replace(log, size=300)
    with pytest.raises(InvalidInputError, match=r"model\.levels: boosting can tell 255 levels"):
        fit(RewardModel(kind="boosting"), many)
    with pytest.raises(InvalidInputError, match=r"model\.levels: have shape \(3, 1\)"):
        fit(RewardModel(levels=np.zeros((3, 1), dtype=np.int64)), log)
    one = dataclasses.replace(log, customers=np.zeros(60, dtype=np.int64))
    with pytest.raises(InvalidInputError, match=r"model\.folds: all rows are in one of 3 folds"):
        fit(RewardModel(), one)
    for named, message in (
        ({"kind": "forest"}, "'forest' is not one of auto, logistic"),
        ({"features": "all"}, "'all' is not one of interacted"),
        ({"folds": 1}, "must be at least 2"),
        ({"penalty": 0.0}, "must be positive"),
        ({"fit_rows": 3}, "must be at least 10"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            RewardModel(**named)


# --- balancing --------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "share"), [("logistic", 0.9), ("boosting", 0.6)])
def test_a_classifier_finds_the_weights(kind: str, share: float):
    """Contexts of two kinds: the odds are those of a table that logistic features hold."""
    random = np.random.default_rng(1)
    x = random.integers(0, 2, 8_000)
    logging = np.array([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]])
    target = np.array([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]])[x]
    chosen = (logging[x].cumsum(axis=1) > random.random((8_000, 1))).argmax(axis=1)
    log = Log(
        actions=chosen,
        rewards=np.zeros(8_000),
        propensities=logging[x, chosen],
        size=3,
        rows=x[:, None].astype(float),
    )
    numbers = np.arange(8_000)
    found = Balancer(kind=kind).fit(log, target, numbers, seed=1).weights(log, target, numbers)
    true = weigh(log, target).weights
    assert (found[true == 0.0] == 0.0).all()
    assert np.corrcoef(found, true)[0, 1] > share
    assert np.abs(found / np.maximum(true, 1e-9) - 1.0)[true > 0.0].mean() < 0.15
    assert found.mean() == pytest.approx(1.0, abs=0.05)


# --- settings ---------------------------------------------------------------------------


def test_slope_stops_at_the_first_contradiction():
    unbiased, near, far = (
        Candidate(np.inf, 1.0, 0.5),
        Candidate(2.0, 0.8, 0.1),
        Candidate(1.0, 0.3, 0.01),
    )
    assert slope([unbiased]) == 0
    assert slope([unbiased, near]) == 1
    assert slope([unbiased, near, far]) == 1  # 0.5 from one of error 0.1
    assert slope([unbiased, far]) == 1  # 0.7 <= 0.01 + 1.45 * 0.5
    assert slope([unbiased, far, near]) == 1  # what comes after does not count
    assert slope([Candidate(np.inf, 1.0, 0.1), Candidate(1.0, 0.7, 0.0)]) == 0


@pytest.mark.parametrize("name", [n for n, e in ESTIMATORS.items() if e.setting])
def test_settings_go_from_unbiased_to_the_model(name: str):
    weights = np.random.default_rng(1).exponential(size=500)
    found = tuning.settings_of(name, weights)
    assert found[0] == np.inf
    assert (np.diff(found) < 0).all()
    spreads = [np.var(ESTIMATORS[name].shrink(weights, s)) for s in found.tolist()]
    if name != "switch_dr":
        assert (np.diff(spreads) <= 1e-12).all()
    with pytest.raises(InvalidInputError, match=r"settings\.dr: 'dr' has nothing to set"):
        tuning.settings_of("dr", weights)


@pytest.mark.parametrize("name", [n for n, e in ESTIMATORS.items() if e.setting])
def test_settings_lie_where_weights_are_and_end_at_the_model_alone(name: str):
    """A sure policy gives most rows next to no weight; that is no scale to set anything to."""
    random = np.random.default_rng(2)
    large = random.exponential(2.0, size=300)
    weights = np.concatenate([large, 10.0 ** random.uniform(-40, -20, size=700)])
    found, alone = (tuning.settings_of(name, w) for w in (weights, large))
    assert bool(found[-1] == 0.0) is ESTIMATORS[name].needs_model
    assert found[found > 0.0].min() > 1e-6
    assert found == pytest.approx(alone)


def test_a_standard_error_counts_customers():
    rows = np.repeat(np.random.default_rng(1).standard_normal(50), 4)
    alone = standard_error(rows)
    grouped = standard_error(rows, np.arange(200) // 4)
    assert alone == pytest.approx(np.std(rows, ddof=1) / np.sqrt(200))
    assert grouped == pytest.approx(np.std(rows[::4], ddof=1) / np.sqrt(50))
    assert standard_error(rows[:1]) == np.inf


@cache
def logs(habit: float, wrong: float) -> tuple[list[Weighed], float]:
    """Give 60 logs of 1,000 rows, with a model that is wrong, and the policy's true value."""
    return choices.logs(choices.Kind(1_000, 5, habit, wrong), 60, seed=11)


@pytest.mark.parametrize("name", ["clipped_ips", "clipped_dr", "switch_dr", "dros"])
@pytest.mark.parametrize(("habit", "wrong"), [(0.5, 0.5), (1.5, 0.3)], ids=["near", "far"])
def test_the_chosen_setting_is_near_the_best(name: str, habit: float, wrong: float):
    """Error over 60 logs of 1,000 rows against the best fixed setting, known only in hindsight.

    Guaranteed are sqrt(6) + 3 = 5.4 times; seeds are fixed, so this does not fail by chance.
    """
    *_, found = choices.ratios(name, *logs(habit, wrong))
    assert 0.9 < found["SLOPE++, 1 se"] < 2.2
    assert found["SLOPE++, 1 se"] < found["2 se"]
    if habit > 1.0:  # weights are heavy
        share = 1.0 if name == "clipped_ips" else 0.3
        assert found["SLOPE++, 1 se"] < share * found["no setting"]


def test_ratios_are_those_of_root_mean_squares():
    """By hand on three logs: no setting is the first place, whose errors are known."""
    drawn, value = choices.logs(choices.KINDS["a"], 3)
    *_, found = choices.ratios("clipped_ips", drawn, value)
    tried = [[one.value - value for one in choose("clipped_ips", w).candidates] for w in drawn]
    every = np.sqrt(np.mean(np.square(tried), axis=0))
    assert found["no setting"] == pytest.approx(every[0] / every.min())


def test_the_table_of_settings_is_written_into_a_page(tmp_path: Path):
    page = tmp_path / "ope.md"
    page.write_text(f"before\n{choices.BEGIN}\nold\n{choices.END}\nafter\n")
    choices.main(count=2, seed=1, write=page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    for kind in choices.KINDS:
        assert f"| {kind}, dros | " in text
