"""Estimators agree with other people's packages, and do exactly what their derivations say."""

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.errors import InvalidInputError
from sims.log import Log
from sims.ope.balancing import Versions
from sims.ope.estimators import ESTIMATORS, Weighed, terms, terms_of, weigh
from sims.ope.targets import constant, fixed, probabilities, uniform

MODELS = tuple(name for name, each in ESTIMATORS.items() if each.needs_model)
PLAIN = tuple(name for name in ESTIMATORS if name != "balanced")
Synthetic = tuple[Log, np.ndarray, np.ndarray]
seeds = st.integers(0, 2**32 - 1)


def random_log(rows: int, actions: int, seed: int) -> tuple[Log, np.ndarray, np.ndarray]:
    """Give a log, a target and predictions."""
    random = np.random.default_rng(seed)
    logging = random.dirichlet(np.full(actions, 2.0), rows)
    chosen = (logging.cumsum(axis=1) > random.random((rows, 1))).argmax(axis=1)
    log = Log(
        actions=chosen,
        rewards=random.standard_normal(rows),
        propensities=logging[np.arange(rows), chosen],
        size=actions,
    )
    return log, random.dirichlet(np.ones(actions), rows), random.standard_normal((rows, actions))


# --- other people's numbers -------------------------------------------------------------

OBP = {
    "ips": ("ipw", np.inf),
    "clipped_ips": ("ipw_clip2", 2.0),
    "snips": ("snipw", np.inf),
    "dm": ("dm", np.inf),
    "dr": ("dr", np.inf),
    "clipped_dr": ("dr_clip2", 2.0),
    "sndr": ("sndr", np.inf),
    "switch_dr": ("switch_dr_tau1.5", 1.5),
    "dros": ("dr_os_lambda10", 10.0),
}


@pytest.fixture(scope="module")
def synthetic(data_folder: Path):
    """Give the synthetic log that the packages were given: log, target, predictions."""
    stored = np.load(data_folder / "oracles/obp_synthetic_2000.npz")
    log = Log(
        actions=stored["action"].astype(np.int64),
        rewards=stored["reward"].astype(np.float64),
        propensities=stored["pscore"],
        size=5,
        rows=stored["context"],
    )
    return log, stored["pi_e"], stored["q_hat"]


@pytest.mark.parametrize("name", PLAIN)
def test_every_estimator_is_that_of_obp(name: str, synthetic: Synthetic, data_folder: Path):
    log, target, predicted = synthetic
    theirs = json.loads((data_folder / "oracles/ope_obp.json").read_text())["estimates"]
    key, setting = OBP[name]
    found = terms(name, log, target, predicted, setting=setting).value
    assert found == pytest.approx(theirs[key], abs=1e-9)


def test_ips_and_snips_are_those_of_vw_estimators(synthetic: Synthetic, data_folder: Path):
    log, target, _ = synthetic
    theirs = json.loads((data_folder / "oracles/ope_vw_estimators.json").read_text())
    for name in ("ips", "snips"):
        assert terms(name, log, target).value == pytest.approx(theirs[name], abs=1e-9)
    assert weigh(log, target).weights.max() == pytest.approx(theirs["w_max"], abs=1e-9)


def open_bandit(path: Path) -> Log:
    with gzip.open(path, "rt") as file:
        rows = list(csv.DictReader(file))
    return Log(
        actions=np.array([int(row["item_id"]) for row in rows]),
        rewards=np.array([float(row["click"]) for row in rows]),
        propensities=np.array([float(row["propensity_score"]) for row in rows]),
        size=80,
        positions=np.array([int(row["position"]) - 1 for row in rows]),
    )


def test_open_bandit_with_its_three_positions(data_folder: Path):
    theirs = json.loads((data_folder / "oracles/ope_obd_small.json").read_text())["all"]
    bts = np.load(data_folder / "oracles/obd_bts_action_dist_all.npz")["action_dist"]
    random_log = open_bandit(data_folder / "obd/random_all.csv.gz")
    bts_log = open_bandit(data_folder / "obd/bts_all.csv.gz")
    assert random_log.rewards.mean() == pytest.approx(theirs["onpolicy_random"])
    assert bts_log.rewards.mean() == pytest.approx(theirs["onpolicy_bts"])
    for log, policy, key in (
        (random_log, constant(bts), "bts_from_random"),
        (bts_log, uniform, "random_from_bts"),
    ):
        for name, oracle in (("ips", "ipw"), ("snips", "snipw")):
            found = terms(name, log, policy(log)).value
            assert found == pytest.approx(theirs[key][oracle], abs=1e-9)


# --- exact enumeration of small worlds --------------------------------------------------


class SmallWorld:
    """Two contexts, three actions, rewards of 0 or 1: every row that can be, with its chance."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.contexts = random.dirichlet(np.ones(2))
        self.logging = random.dirichlet(np.ones(3), 2) * 0.94 + 0.02
        self.target = random.dirichlet(np.ones(3), 2)
        self.rates = random.random((2, 3))
        self.model = random.standard_normal((2, 3))
        x, a, r = (part.ravel() for part in np.meshgrid([0, 1], [0, 1, 2], [0, 1], indexing="ij"))
        self.x, self.log = x, self._log(x, a, r.astype(float), self.logging)
        outcome = np.where(r == 1, self.rates[x, a], 1 - self.rates[x, a])
        self.outcome = self.contexts[x] * outcome
        self.chance = self.outcome * self.logging[x, a]
        self.value = float((self.contexts[:, None] * self.target * self.rates).sum())

    def _log(self, x: np.ndarray, a: np.ndarray, r: np.ndarray, policy: np.ndarray) -> Log:
        return Log(actions=a, rewards=r, propensities=policy[x, a], size=3)

    def expectation(self, name: str, setting: float = np.inf) -> float:
        """Give the exact mean of an estimator; for a ratio that of its parts."""
        found = terms(name, self.log, self.target[self.x], self.model[self.x], setting=setting)
        ratio = (self.chance @ found.numerators) / (self.chance @ found.denominators)
        return ratio if found.offsets is None else ratio + self.chance @ found.offsets


@given(seed=seeds)
@settings(max_examples=40)
def test_ips_and_dr_with_any_model_are_unbiased(seed: int):
    world = SmallWorld(seed)
    assert world.chance.sum() == pytest.approx(1.0)
    for name in ("ips", "snips", "dr", "sndr", "switch_dr", "dros", "clipped_ips", "clipped_dr"):
        assert world.expectation(name) == pytest.approx(world.value, abs=1e-12), name


@given(seed=seeds)
@settings(max_examples=40)
def test_the_mean_of_ips_and_dr_over_all_logs_of_two_rows_is_the_value(seed: int):
    """All 12 x 12 logs, each weighed by its chance: the value itself, not a row's share."""
    world = SmallWorld(seed)
    for name in ("ips", "dr"):
        rows = terms(name, world.log, world.target[world.x], world.model[world.x]).numerators
        every = (rows[:, None] + rows[None, :]) / 2.0
        mean = float((world.chance[:, None] * world.chance[None, :] * every).sum())
        assert mean == pytest.approx(world.value, abs=1e-12)


@given(seed=seeds, setting=st.floats(0.1, 10.0))
@settings(max_examples=40)
def test_the_bias_of_changed_weights_is_as_derived(seed: int, setting: float):
    """docs/math/ope.md: E[(changed weight - weight) (reward - model)]."""
    world = SmallWorld(seed)
    weighed = weigh(world.log, world.target[world.x], world.model[world.x])
    for name in ("clipped_ips", "clipped_dr", "switch_dr", "dros"):
        estimator = ESTIMATORS[name]
        changed = estimator.shrink(weighed.weights, setting) - weighed.weights
        known = weighed.fitted if estimator.needs_model else 0.0
        bias = world.chance @ (changed * (weighed.rewards - known))
        assert world.expectation(name, setting) == pytest.approx(world.value + bias, abs=1e-12)


@given(seed=seeds)
@settings(max_examples=20)
def test_a_right_model_makes_the_direct_method_and_every_setting_exact(seed: int):
    world = SmallWorld(seed)
    world.model = world.rates
    for name in MODELS:
        assert world.expectation(name, 0.5) == pytest.approx(world.value, abs=1e-12), name


@given(seed=seeds, share=st.floats(0.05, 0.95))
@settings(max_examples=40)
def test_the_mixture_of_versions_is_unbiased_and_no_worse_than_ips(seed: int, share: float):
    """Rows of two versions in fixed shares; variance of one row within each, by enumeration."""
    world, other = SmallWorld(seed), SmallWorld(seed + 1)
    policies = {0: world.logging, 1: other.logging}
    versions = Versions(
        policies={v: lambda log, p=p: p[log.rows[:, 0].astype(int)] for v, p in policies.items()}
    )
    target = world.target[world.x]
    means, spreads = {"ips": 0.0, "balanced": 0.0}, {"ips": 0.0, "balanced": 0.0}
    for version, part in ((0, share), (1, 1.0 - share)):
        policy = policies[version]
        log = Log(
            actions=world.log.actions,
            rewards=world.log.rewards,
            propensities=policy[world.x, world.log.actions],
            size=3,
            rows=world.x[:, None].astype(float),
        )
        plain = weigh(log, target)
        weights = versions.weights(log, target, {0: share, 1: 1.0 - share})
        both = Weighed(rewards=plain.rewards, weights=plain.weights, balanced=weights)
        chance = world.outcome * log.propensities
        for name in means:
            rows = terms_of(name, both).numerators
            means[name] += part * (chance @ rows)
            spreads[name] += part * (chance @ rows**2)
    assert means["ips"] == pytest.approx(world.value, abs=1e-12)
    assert means["balanced"] == pytest.approx(world.value, abs=1e-12)
    assert spreads["balanced"] <= spreads["ips"] + 1e-12


def test_a_version_without_a_policy_is_refused():
    log = random_log(5, 3, seed=1)[0]
    with pytest.raises(InvalidInputError, match=r"balancing\.policies: has rows of version 7"):
        Versions(policies={0: uniform}).weights(log, uniform(log), {7: 1.0})


# --- properties -------------------------------------------------------------------------


@given(seed=seeds)
@settings(max_examples=30)
def test_the_logging_policy_itself_earned_the_plain_mean(seed: int):
    random = np.random.default_rng(seed)
    policy = random.dirichlet(np.ones(4), 50)
    actions = random.integers(0, 4, 50)
    log = Log(
        actions=actions,
        rewards=random.standard_normal(50),
        propensities=policy[np.arange(50), actions],
        size=4,
    )
    for name in ("ips", "snips", "clipped_ips"):
        assert terms(name, log, policy).value == pytest.approx(log.rewards.mean(), abs=1e-12)


@given(seed=seeds, setting=st.floats(0.1, 10.0))
@settings(max_examples=30)
def test_the_order_of_rows_does_not_matter(seed: int, setting: float):
    log, target, predicted = random_log(60, 4, seed)
    order = np.random.default_rng(seed).permutation(60)
    turned = Log(
        actions=log.actions[order],
        rewards=log.rewards[order],
        propensities=log.propensities[order],
        size=4,
    )
    for name in PLAIN:
        whole = terms(name, log, target, predicted, setting=setting).value
        other = terms(name, turned, target[order], predicted[order], setting=setting).value
        assert other == pytest.approx(whole, rel=1e-12, abs=1e-12), name


@given(seed=seeds, cut=st.integers(1, 59))
@settings(max_examples=30)
def test_batches_sum_to_the_whole(seed: int, cut: int):
    log, target, predicted = random_log(60, 4, seed)
    for name in PLAIN:
        whole = terms(name, log, target, predicted, setting=2.0)
        sums = np.zeros(3)
        for start, stop in ((0, cut), (cut, 60)):
            part = Log(
                actions=log.actions[start:stop],
                rewards=log.rewards[start:stop],
                propensities=log.propensities[start:stop],
                size=4,
            )
            found = terms(name, part, target[start:stop], predicted[start:stop], setting=2.0)
            offsets = 0.0 if found.offsets is None else found.offsets.sum()
            sums += found.numerators.sum(), found.denominators.sum(), offsets
        assert sums[0] / sums[1] + sums[2] / 60 == pytest.approx(whole.value, abs=1e-12), name


@given(seed=seeds)
@settings(max_examples=20)
def test_the_ends_of_a_setting_are_the_estimators_they_join(seed: int):
    log, target, predicted = random_log(40, 3, seed)

    def value(name: str, setting: float = np.inf) -> float:
        return terms(name, log, target, predicted, setting=setting).value

    for name in ("switch_dr", "dros", "clipped_dr"):
        assert value(name) == pytest.approx(value("dr"), abs=1e-12)
        assert value(name, 0.0) == pytest.approx(value("dm"), abs=1e-12)
    assert value("clipped_ips") == pytest.approx(value("ips"), abs=1e-12)
    assert value("dros", 1e12) == pytest.approx(value("dr"), abs=1e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_the_influence_is_what_a_row_changes(name: str):
    """Against the value with a little more of one row: the derivative of the definition."""
    log, target, predicted = random_log(30, 3, seed=5)
    found = terms(name, log, target, predicted, setting=2.0)
    offsets = np.zeros(30) if found.offsets is None else found.offsets
    step = 1e-6
    for row in (0, 7, 29):
        more = np.ones(30)
        more[row] += step
        value = (more @ found.numerators) / (more @ found.denominators) + more @ offsets / sum(more)
        derivative = (value - found.value) / step * 30
        assert derivative == pytest.approx(found.influence[row], abs=1e-3)
    assert found.influence.sum() == pytest.approx(0.0, abs=1e-9)


# --- bad input --------------------------------------------------------------------------


def test_a_target_that_is_no_distribution_is_named_by_row_and_column():
    log, target, predicted = random_log(6, 3, seed=1)
    for column, value, message in (
        (1, np.nan, r"target\[4, 1\]: must be a probability, got nan"),
        (2, -0.1, r"target\[4, 2\]: must be a probability, got -0\.1"),
        (0, 0.0, r"target\[4\]: probabilities must sum to 1, got"),
    ):
        bad = target.copy()
        bad[4, column] = value
        with pytest.raises(InvalidInputError, match=message):
            terms("ips", log, bad)
    with pytest.raises(InvalidInputError, match=r"target: has shape \(5, 3\)"):
        terms("ips", log, target[:5])
    predicted[2, 1] = np.inf
    with pytest.raises(InvalidInputError, match=r"predicted\[2, 1\]: must be finite"):
        terms("dm", log, target, predicted)


def test_what_is_missing_or_unknown_is_said():
    log, target, _ = random_log(6, 3, seed=1)
    with pytest.raises(InvalidInputError, match="'dr' needs a reward model"):
        terms("dr", log, target)
    with pytest.raises(InvalidInputError, match="'ipw' is not known; there are ips, "):
        terms("ipw", log, target)
    with pytest.raises(InvalidInputError, match=r"settings\.clipped_ips: must be at least 0"):
        terms("clipped_ips", log, target, setting=-1.0)
    with pytest.raises(InvalidInputError, match="'balanced' needs weights"):
        terms("balanced", log, target)


def test_targets_that_do_not_fit_the_log_are_refused():
    log, _, _ = random_log(6, 3, seed=1)
    assert probabilities(fixed(2), log)[:, 2].tolist() == [1.0] * 6
    for policy, message in (
        (fixed(3), r"target\.action: must be in \[0, 2\], got 3"),
        (constant([0.5, 0.5]), r"target: has shape \(2,\), but the log has 3 actions"),
        (constant(np.full((3, 2), 1 / 3)), "the log has no positions"),
        (constant([0.5, 0.5, 0.5]), r"target\[0\]: probabilities must sum to 1"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            probabilities(policy, log)
