"""Replay of a uniform log in process: unbiased, with honest intervals, and only where it may."""

import dataclasses
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.errors import InvalidInputError
from bandit.experiment import Experiment
from bandit.spec import ExperimentSpec
from bandit.spec_file import parse
from sims.datasets import hillstrom
from sims.log import Log, join
from sims.replay.uniform import LEVEL, Rejection, rejection

EXAMPLES = Path(hillstrom.__file__).parents[1] / "examples"
SECRET = b"sixteen bytes or more"
RATES = np.array([[0.8, 0.3, 0.2], [0.1, 0.4, 0.2]])
"""Of every action, where ``old`` is 1 and where it is 0."""


def spec_of(policy: str = "", more: str = "") -> ExperimentSpec:
    return parse(
        f"""
name = "replayed"
actions = {{ variants = ["a", "b", "c"], channels = ["mail"] }}
context = [{{ name = "old", kind = "flag" }}]
groups = {{ random = 0.2, no_contact = 0.1 }}
outcome = {{ window = 60, aggregation = "max", rewards = [{{ name = "click" }}] }}
{more}
[policy]
{policy}
""",
        "toml",
    )


def experiment_of(policy: str = "") -> Experiment:
    return Experiment(spec_of(policy), secret=SECRET)


def uniform_log(n: int, seed: int) -> Log:
    rng = np.random.default_rng(seed)
    old = rng.integers(0, 2, n)
    actions = rng.integers(0, 3, n)
    rewards = (rng.random(n) < RATES[1 - old, actions]).astype(float)
    return Log(
        actions=actions,
        rewards=rewards,
        propensities=np.full(n, 1 / 3),
        size=3,
        rows=old[:, None].astype(float),
        times=np.arange(n, dtype=float),
    )


def parts(log: Log, cuts: list[int]) -> list[Log]:
    ends = [0, *sorted({min(c, len(log)) for c in cuts}), len(log)]
    columns = ("actions", "rewards", "propensities", "rows", "times")
    return [
        dataclasses.replace(log, **{name: getattr(log, name)[a:b] for name in columns})
        for a, b in itertools.pairwise(ends)
        if a < b
    ]


def last(log: Log, experiment: Experiment, *, every: int = 256) -> Rejection:
    *_, found = rejection([log], experiment, every=every)
    return found


def test_a_fixed_policy_earns_what_its_arm_earned():
    log = uniform_log(3_000, seed=1)
    found = last(log, experiment_of('kind = "fixed"\naction = { variant = "b", channel = "mail" }'))
    mine = log.rewards[log.actions == 1]
    assert found.matched.n == len(mine)
    assert found.value == pytest.approx(mine.mean())
    half = 1.959964 * mine.std(ddof=1) / math.sqrt(len(mine))
    assert found.interval == pytest.approx((mine.mean() - half, mine.mean() + half), rel=1e-6)
    assert found.chosen.tolist() == [0, 3_000, 0]
    for a in range(3):
        arm = log.rewards[log.actions == a]
        assert found.arms[a].mean == pytest.approx(arm.mean())
        assert found.arms[a].deviation == pytest.approx(((arm - arm.mean()) ** 2).sum())
    assert found.logged.n == 3_000
    assert found.logged.mean == pytest.approx(log.rewards.mean())


def test_a_learning_policy_finds_the_best_of_both_kinds_of_customers():
    """The best earns 0.6; 0.35 is what the log earned. Seeds are fixed."""
    found = last(uniform_log(12_000, seed=2), experiment_of())
    assert found.value is not None
    assert found.value > 0.56
    assert abs(found.share - 1 / 3) < 5 * math.sqrt(2 / 9 / 12_000)  # 6e-7 to fail
    assert found.publications == 12_000 // 256


def test_uniform_replay_is_unbiased_and_its_interval_covers():
    """40 logs: five standard errors, and at least 33 of 40 covered; 1e-3 to fail by chance."""
    truth = RATES.mean()
    values, covered = [], 0
    for seed in range(40):
        found = last(uniform_log(1_500, seed), experiment_of('kind = "uniform"'))
        assert found.value is not None
        assert found.interval is not None
        values.append(found.value)
        covered += found.interval[0] <= truth <= found.interval[1]
    assert abs(np.mean(values) - truth) < 5 * np.std(values, ddof=1) / math.sqrt(40)
    assert covered >= 33


@given(cuts=st.lists(st.integers(1, 1_200), max_size=6), every=st.sampled_from([64, 300, 5_000]))
@settings(max_examples=15)
def test_batches_change_nothing(cuts: list[int], every: int):
    log = uniform_log(1_200, seed=3)
    pieces = parts(log, cuts)
    assert len(join(pieces)) == 1_200
    whole = last(log, experiment_of(), every=every)
    *_, found = rejection(pieces, experiment_of(), every=every)
    assert found.chosen.tolist() == whole.chosen.tolist()
    assert found.matched.n == whole.matched.n
    assert found.matched.total == pytest.approx(whole.matched.total, rel=1e-12)
    assert found.matched.deviation == pytest.approx(whole.matched.deviation, rel=1e-9)
    assert found.publications == whole.publications == 1_200 // every


def test_the_cadence_is_part_of_the_policy():
    """Nothing is learned before the first publication: until then the prior decides."""
    log = uniform_log(2_000, seed=4)
    never = last(log, experiment_of(), every=10_000)
    assert never.publications == 0
    often = last(log, experiment_of(), every=50)
    assert often.publications == 40
    assert often.value is not None
    assert never.value is not None
    assert often.value > never.value + 0.1


# --- logs that are not uniform --------------------------------------------------------------


def test_other_propensities_are_no_uniform_log():
    log = uniform_log(500, seed=5)
    p = log.propensities.copy()
    p[7] = 0.5
    found = last(dataclasses.replace(log, propensities=p), experiment_of())
    assert found.value is None
    assert found.interval is None
    assert found.withheld == (
        "the log is not uniform: its propensities are 0.3333 to 0.5, and 1 / 3 is uniform"
    )


def test_uneven_counts_are_no_uniform_log():
    log = uniform_log(2_000, seed=6)
    actions = np.where(np.arange(2_000) % 10 == 0, 0, log.actions)
    found = last(dataclasses.replace(log, actions=actions), experiment_of())
    assert found.uniformity.p_value < LEVEL
    assert found.value is None
    assert re.search(r"not uniform: counts by action, \d+ to \d+, differ", found.withheld or "")


def test_a_uniform_log_is_called_one_as_often_as_said():
    """600 logs at level 0.001: more than 6 refused happens with a chance of 3e-6."""
    refused = 0
    rng = np.random.default_rng(7)
    chosen = experiment_of('kind = "fixed"\naction = { variant = "a", channel = "mail" }')
    for _ in range(600):
        actions = rng.integers(0, 3, 60)
        log = Log(
            actions=actions,
            rewards=np.ones(60),
            propensities=np.full(60, 1 / 3),
            size=3,
            rows=np.ones((60, 1)),
        )
        refused += "not uniform" in (last(log, chosen).withheld or "")
    assert refused <= 6


def test_an_excluded_action_is_not_one_of_a_uniform_log():
    spec = spec_of(more="")
    ruled = dataclasses.replace(
        spec,
        actions=parse(
            'name = "r"\noutcome = { window = 60, rewards = [{ name = "c" }] }\n'
            '[actions]\nvariants = ["a", "b", "c"]\nchannels = ["mail"]\n'
            'exclusions = [{ variant = "c", reason = "legal" }]',
            "toml",
        ).actions,
    )
    log = uniform_log(400, seed=8)
    found = last(log, Experiment(ruled, secret=SECRET))
    assert "action 2, which the experiment's rules exclude" in (found.withheld or "")
    kept = log.actions < 2
    two = Log(
        actions=log.actions[kept],
        rewards=log.rewards[kept],
        propensities=np.full(int(kept.sum()), 0.5),
        size=3,
        rows=(log.rows if log.rows is not None else np.zeros((0, 1)))[kept],
    )
    assert last(two, Experiment(ruled, secret=SECRET)).withheld is None


def test_too_few_matches_give_no_number():
    log = uniform_log(1, seed=9)
    found = last(log, experiment_of())
    assert found.value is None
    assert "rows matched: too few" in (found.withheld or "")


def test_a_log_of_something_else_is_refused():
    log = uniform_log(10, seed=10)
    with pytest.raises(InvalidInputError, match="the log has 4 actions, the experiment 3"):
        last(dataclasses.replace(log, size=4), experiment_of())
    with pytest.raises(InvalidInputError, match="needs contexts"):
        last(dataclasses.replace(log, rows=None), experiment_of())
    with pytest.raises(InvalidInputError, match="must be 1 or more"):
        last(log, experiment_of(), every=0)


# --- real data ------------------------------------------------------------------------------


def test_hillstrom_in_process(data_folder: Path):
    """What the server's replay finds, too: the mail for men, well above what was sent."""
    spec = parse((EXAMPLES / "hillstrom.toml").read_text(), "toml")
    visit = dataclasses.replace(spec.outcome, rewards=(spec.outcome.by_name["visit"],))
    spec = dataclasses.replace(spec, outcome=visit)
    rows = hillstrom.load(data_folder / "hillstrom.csv.gz")
    log = hillstrom.log(rows, spec, "visit", seed=1)
    found = last(log, Experiment(spec, secret=SECRET))
    assert found.uniformity.p_value > LEVEL
    assert found.logged.mean == pytest.approx(0.146781, abs=5e-7)
    assert [arm.mean for arm in found.arms] == pytest.approx(
        [hillstrom.PUBLISHED[v.name][1] for v in spec.actions.variants], abs=5e-7
    )
    assert found.value is not None
    assert found.value > 0.172
    assert found.interval is not None
    assert found.interval[0] > found.logged.interval[1]
    with pytest.raises(InvalidInputError, match="'click' is none of"):
        hillstrom.log(rows, spec, "click")
    with pytest.raises(InvalidInputError, match="need the variants"):
        hillstrom.log(rows, spec_of(), "visit")
