"""Rejection replay is unbiased on a uniform log, and tells the policy only what it may know."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sims.datasets.hillstrom import Row
from sims.replay.uniform import BATCH, Replayed, constants, replay

RATES = {"a": {True: 0.8, False: 0.1}, "b": {True: 0.3, False: 0.4}, "c": {True: 0.2, False: 0.2}}
ARMS = sorted(RATES)
Asked = Sequence[tuple[str, Row]]


def uniform_log(n: int, seed: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        old, arm = bool(rng.random() < 0.5), ARMS[int(rng.integers(3))]
        visit = float(rng.random() < RATES[arm][old])
        rows.append(Row({"old": old}, arm, {"visit": visit, "spend": 7.0 * visit}))
    return rows


def play(
    rows: list[Row], choose: Callable[[Row], str | None], *, seed: int = 1
) -> tuple[Replayed, list[tuple[str, float]]]:
    """Replay a policy that is a function of the row; give what was found and what was told."""
    told: list[tuple[str, float]] = []

    def decide(asked: Asked) -> list[tuple[str, str | None]]:
        return [(f"decision of {name}", choose(row)) for name, row in asked]

    *_, found = replay(rows, "visit", seed, decide, told.extend)
    return found, told


@pytest.mark.parametrize("arm", ARMS)
def test_a_constant_policy_earns_what_its_arm_earned(arm: str):
    rows = uniform_log(2_000, seed=2)
    found, _ = play(rows, lambda _: arm)
    assert found.sample == pytest.approx(constants(rows, "visit")[arm])
    assert found.chosen == {arm: 2_000}


def test_a_contextual_policy_is_estimated_without_bias():
    """Mean over 40 logs against the closed form; five standard errors, so 6e-7 to fail."""
    truth = 0.5 * RATES["a"][True] + 0.5 * RATES["b"][False]
    means = []
    for seed in range(40):
        found, _ = play(
            uniform_log(3_000, seed), lambda row: "a" if row.context["old"] else "b", seed=seed
        )
        means.append(found.sample.mean)
    error = np.std(means, ddof=1) / math.sqrt(len(means))
    assert abs(np.mean(means) - truth) < 5 * error
    assert error < 0.005


def test_a_third_of_a_uniform_log_matches():
    found, _ = play(uniform_log(9_000, seed=3), lambda row: "a" if row.context["old"] else "c")
    assert abs(found.sample.n - 3_000) < 5 * math.sqrt(9_000 * 2 / 9)  # 6e-7 to fail


@given(n=st.sampled_from([0, 1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH]), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_every_customer_is_asked_once_and_only_matches_are_told(n: int, seed: int):
    rows = uniform_log(n, seed=4)
    seen: list[str] = []

    def decide(asked: Asked) -> list[tuple[str, str | None]]:
        assert 0 < len(asked) <= BATCH
        seen.extend(name for name, _ in asked)
        return [(name, "a") for name, _ in asked]

    told: list[tuple[str, float]] = []
    sizes = [f.rows for f in replay(rows, "spend", seed, decide, told.extend)]
    assert sorted(seen) == sorted(f"hillstrom-{seed}-{i}" for i in range(n))
    assert sizes == [min(start + BATCH, n) for start in range(0, n, BATCH)]
    expected = {
        f"hillstrom-{seed}-{i}": row.outcomes["spend"]
        for i, row in enumerate(rows)
        if row.variant == "a"
    }
    assert dict(told) == expected
    assert len(told) == len(expected)


def test_the_order_is_given_by_the_seed():
    rows = uniform_log(500, seed=5)
    orders = [[one for one, _ in play(rows, lambda _: "a", seed=seed)[1]] for seed in (1, 1, 2)]
    assert orders[0] == orders[1]
    assert [o.rpartition("-")[2] for o in orders[0]] != [o.rpartition("-")[2] for o in orders[2]]


def test_nothing_sent_matches_nothing():
    found, told = play(uniform_log(100, seed=6), lambda _: None)
    assert (found.rows, found.matched, told) == (100, [], [])
    assert found.chosen == {"None": 100}
    assert math.isnan(found.sample.mean)


def test_what_is_learned_comes_after_what_was_decided():
    """A batch is decided before any of its outcomes is told."""
    calls: list[str] = []

    def decide(asked: Asked) -> list[tuple[str, str | None]]:
        calls.append("decide")
        return [(name, row.variant) for name, row in asked]

    rows = uniform_log(3 * BATCH + 1, seed=7)
    list(replay(rows, "visit", 1, decide, lambda _: calls.append("tell")))
    assert calls == ["decide", "tell"] * 4


def test_constants_are_the_logs_own_means():
    rows = uniform_log(999, seed=8)
    found = constants(rows, "spend")
    assert list(found) == ["uniform", *ARMS]
    assert found["uniform"].n == 999 == sum(found[arm].n for arm in ARMS)
    for arm in ARMS:
        mine = [row.outcomes["spend"] for row in rows if row.variant == arm]
        assert found[arm].mean == pytest.approx(sum(mine) / len(mine))
        low, high = found[arm].interval
        half = 1.959964 * np.std(mine, ddof=1) / math.sqrt(len(mine))
        assert (low, high) == pytest.approx(
            (found[arm].mean - half, found[arm].mean + half), rel=1e-6
        )
