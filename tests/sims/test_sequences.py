"""Confidence sequences: other people's numbers, batches, equivariance, and what they refuse."""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats
from sims.kernels import betting
from sims.ope import boundaries, sequences
from sims.ope.sequences import (
    BetaBinomial,
    Betting,
    Hoeffding,
    MixtureBernstein,
    PlugInBernstein,
)

STREAMS = ("x_bernoulli", "z_beta25")


@pytest.fixture(scope="module")
def told(data_folder: Path) -> dict[str, Any]:
    """Give the numbers of confseq 0.0.11."""
    found: dict[str, Any] = json.loads((data_folder / "oracles/confseq.json").read_text())
    return found


def looks(make: Callable[[], sequences.Sequence], values: Floats, at: Sequence[int]) -> Floats:
    """Give ends after each of some numbers of rows, (looks, 2)."""
    sequence = make()
    found = []
    for start, stop in itertools.pairwise([0, *at]):
        sequence.add(values[start:stop])
        found.append(sequence.interval[:2])
    return np.array(found)


# --- against other people's numbers -----------------------------------------------------


def test_boundaries_are_those_of_confseq(told: dict[str, Any]):
    v = np.array(told["normal_mixture_bound"]["v"])
    ours = {
        ("normal_mixture_bound", "two_sided"): boundaries.normal_mixture(v, 0.05, 100.0),
        ("normal_mixture_bound", "one_sided"): boundaries.normal_mixture_one_sided(v, 0.05, 100.0),
        ("gamma_exponential_mixture_bound", "bound"): boundaries.gamma_exponential_mixture(
            v, 0.05, 100.0, 1.0
        ),
        ("beta_binomial_mixture_bound", "two_sided"): boundaries.beta_binomial_mixture(
            v, 0.05, 100.0, 0.3, 0.7
        ),
        ("poly_stitching_bound", "bound"): boundaries.poly_stitching(v, 0.05, 10.0),
    }
    for (name, kind), found in ours.items():
        assert found == pytest.approx(told[name][kind], rel=1e-9), name


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("predmix_empbern_cs", PlugInBernstein),
        ("predmix_hoeffding_cs", Hoeffding),
        # theirs halves the error twice: at 5 % it is what it says at 2.5 %
        ("conjmix_empbern_cs", lambda: MixtureBernstein(level=0.975, v_opt=25.0)),
    ],
)
def test_sequences_are_those_of_confseq(
    told: dict[str, Any], stream: str, name: str, make: Callable[[], sequences.Sequence]
):
    expected = told[f"{name}_{stream}"]
    ours = looks(make, np.array(told[stream], dtype=float), expected["n"])
    assert ours[:, 0] == pytest.approx(expected["lower"], abs=1e-9)
    assert ours[:, 1] == pytest.approx(expected["upper"], abs=1e-9)


def test_the_beta_binomial_sequence_is_that_of_confseq(told: dict[str, Any]):
    expected = told["bernoulli_confidence_interval"]
    make = lambda: BetaBinomial(n_opt=expected["t_opt"])  # noqa: E731
    ours = looks(make, np.array(told["x_bernoulli"], dtype=float), expected["n"])
    assert ours[:, 0] == pytest.approx(expected["lower"], abs=1e-9)
    assert ours[:, 1] == pytest.approx(expected["upper"], abs=1e-9)


@pytest.mark.parametrize("stream", STREAMS)
def test_betting_is_that_of_confseq_on_its_grid(told: dict[str, Any], stream: str):
    """Theirs takes the narrowest of all looks, rounds out to a grid, and one cell more."""
    expected = told[f"betting_cs_{stream}"]
    every = looks(Betting, np.array(told[stream], dtype=float), range(1, 501))
    low, high = np.maximum.accumulate(every[:, 0]), np.minimum.accumulate(every[:, 1])
    at, cell = np.array(expected["n"]) - 1, 1 / expected["breaks"]
    ours = np.maximum(np.ceil(low[at] / cell) * cell - cell, 0.0)
    assert ours == pytest.approx(expected["lower"], abs=1e-9)
    ours = np.minimum(np.floor(high[at] / cell) * cell + cell, 1.0)
    assert ours == pytest.approx(expected["upper"], abs=1e-9)


# --- properties -------------------------------------------------------------------------

MAKERS: dict[str, Callable[..., sequences.Sequence]] = {
    "hoeffding": Hoeffding,
    "plug_in": PlugInBernstein,
    "mixture": MixtureBernstein,
    "stitched": lambda *a, **k: MixtureBernstein(*a, boundary="stitched", **k),
    "betting": Betting,
}
every_sequence = pytest.mark.parametrize("name", MAKERS)


@every_sequence
@given(cuts=st.lists(st.integers(0, 1500), max_size=6), seed=st.integers(0, 9))
@settings(max_examples=20)
def test_batches_give_the_same_bits(name: str, cuts: list[int], seed: int):
    values = np.random.default_rng(seed).beta(0.5, 2.0, 1500)
    whole, parts = MAKERS[name](), MAKERS[name]()
    whole.add(values)
    for start, stop in itertools.pairwise(sorted({0, *cuts, 1500})):
        parts.add(values[start:stop])
        _ = parts.interval  # looking on the way changes nothing
    assert parts.interval == whole.interval
    assert parts.n == whole.n == 1500


@every_sequence
@given(seed=st.integers(0, 99), low=st.floats(0.5, 0.98), more=st.floats(0.001, 0.01))
@settings(max_examples=20)
def test_a_higher_level_is_never_narrower(name: str, seed: int, low: float, more: float):
    """Bets of the plug-in kinds depend on the level, so a few per cent of slack."""
    values = np.random.default_rng(seed).random(3000)
    narrow, wide = (
        looks(lambda level=level: MAKERS[name](level=level), values, [3000])[0]
        for level in (low, low + more)
    )
    slack = 0.0 if name in ("mixture", "stitched") else 0.05 * (narrow[1] - narrow[0])
    assert wide[0] <= narrow[0] + slack
    assert wide[1] >= narrow[1] - slack


@every_sequence
@given(seed=st.integers(0, 99), shift=st.floats(-50, 50), scale=st.floats(0.01, 100))
@settings(max_examples=20)
def test_shift_and_scale_move_the_ends_along(name: str, seed: int, shift: float, scale: float):
    values = np.random.default_rng(seed).random(200)
    plain = looks(MAKERS[name], values, [200])[0]
    bounds = (shift, shift + scale)
    moved = looks(lambda: MAKERS[name](bounds), np.clip(shift + scale * values, *bounds), [200])[0]
    assert moved == pytest.approx(shift + scale * plain, abs=1e-7 * (abs(shift) + scale))


@every_sequence
@given(seed=st.integers(0, 99))
@settings(max_examples=20)
def test_the_other_way_round_mirrors_the_ends(name: str, seed: int):
    values = np.random.default_rng(seed).beta(0.4, 3.0, 300)
    plain = looks(MAKERS[name], values, [300])[0]
    other = looks(MAKERS[name], 1.0 - values, [300])[0]
    assert other == pytest.approx(1.0 - plain[::-1], abs=1e-9)


@every_sequence
def test_before_the_first_row_everything_is_possible(name: str):
    assert MAKERS[name]((-2.0, 3.0)).interval[:2] == (-2.0, 3.0)
    assert BetaBinomial().interval[:2] == (0.0, 1.0)


@every_sequence
@pytest.mark.parametrize("constant", [0.0, 0.3, 1.0])
def test_equal_rows_close_in_on_themselves(name: str, constant: float):
    """No spread is no certainty: the ends come nearer as rows come, and never meet."""
    widths = []
    for n in (10, 1000, 100_000):
        low, high = looks(MAKERS[name], np.full(n, constant), [n])[0]
        assert low <= constant <= high
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2] > 0.0
    assert widths[2] < 0.03


@every_sequence
def test_long_runs_of_wins_do_not_overflow(name: str):
    low, high = looks(MAKERS[name], np.full(200_000, 0.999), [200_000])[0]
    assert 0.96 < low < 0.999 < high <= 1.0


@given(seed=st.integers(0, 99), mean=st.floats(0.0, 1.0), more=st.floats(0.0, 0.5))
@settings(max_examples=50)
def test_wealth_falls_with_the_mean_it_is_bet_against(seed: int, mean: float, more: float):
    """What makes bisection right: the means that are not excluded are an interval."""
    values = np.random.default_rng(seed).beta(0.4, 3.0, 300)
    bets = np.empty(300)
    betting.plug_in(values, 0.025, np.inf, np.zeros(betting.PLUG_IN), bets)
    there = betting.log_wealth(values, bets, mean, 0.5)
    beyond = betting.log_wealth(values, bets, min(mean + more, 1.0), 0.5)
    assert beyond <= there + 1e-9
    straight = np.log1p(np.minimum(bets, 0.5 / max(mean, 1e-300)) * (values - mean)).sum()
    assert there == pytest.approx(straight, abs=1e-9)


def test_betting_is_the_narrowest_on_skewed_rows():
    """What it is for; a fixed stream of 5,000 rows with mean .0196."""
    values = np.random.default_rng(1).beta(0.2, 10.0, 5000)
    widths = {name: np.ptp(looks(MAKERS[name], values, [5000])[0]) for name in MAKERS}
    assert min(widths, key=lambda name: float(widths[name])) in ("betting", "mixture")
    assert widths["betting"] < 0.2 * widths["hoeffding"]


def test_stitching_wins_in_the_long_run():
    """The mixture grows like ``sqrt(v log v)``, the stitched curve like ``sqrt(v log log v)``."""
    v = np.array([1e2, 1e40])
    mixed = boundaries.gamma_exponential_mixture(v, 0.025, 100.0)
    sewn = boundaries.poly_stitching(v, 0.025, 100.0, c=1.0)
    assert mixed[0] < sewn[0]
    assert mixed[1] > sewn[1]


# --- refusals ---------------------------------------------------------------------------


@every_sequence
def test_rows_outside_of_the_range_are_named(name: str):
    sequence = MAKERS[name]((0.0, 2.0))
    sequence.add(np.array([0.0, 1.0, 2.0]))
    with pytest.raises(InvalidInputError, match=r"values\[4\]: 2.5 is outside of the declared"):
        sequence.add(np.array([1.0, 2.5]))
    with pytest.raises(InvalidInputError, match=r"values\[3\]: must be finite, got nan"):
        sequence.add(np.array([math.nan]))
    with pytest.raises(InvalidInputError, match="must be a vector"):
        sequence.add(np.zeros((2, 2)))
    assert sequence.n == 3


@every_sequence
@pytest.mark.parametrize("bounds", [(1.0, 0.0), (0.0, 0.0), (0.0, math.inf), (math.nan, 1.0)])
def test_a_range_is_two_numbers_in_order(name: str, bounds: tuple[float, float]):
    with pytest.raises(InvalidInputError, match="bounds: must be two finite numbers"):
        MAKERS[name](bounds)


@every_sequence
def test_a_level_lies_between_0_and_1(name: str):
    with pytest.raises(InvalidInputError, match="level: must lie between 0 and 1"):
        MAKERS[name](level=1.0)


def test_beta_binomial_rows_are_0_or_1():
    sequence = BetaBinomial()
    sequence.add(np.array([0.0, 1.0]))
    with pytest.raises(InvalidInputError, match=r"values\[3\]: must be 0 or 1, got 0.5"):
        sequence.add(np.array([0.0, 0.5]))
    assert (sequence.n, sequence.successes) == (2, 1)


def test_settings_are_checked():
    for make in (
        lambda: MixtureBernstein(v_opt=0.0),
        lambda: MixtureBernstein(boundary="magic"),
        lambda: BetaBinomial(n_opt=math.inf),
        lambda: boundaries.normal_mixture(np.array([-1.0]), 0.05, 1.0),
        lambda: boundaries.normal_mixture(np.array([1.0]), 1.5, 1.0),
        lambda: boundaries.gamma_exponential_mixture(np.array([1.0]), 0.05, 1.0, 0.0),
        lambda: boundaries.poly_stitching(np.array([1.0]), 0.05, 1.0, c=-1.0),
    ):
        with pytest.raises(InvalidInputError):
            make()
