"""Published results run again: the table says what holds, and the short runs hold."""

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bandit.errors import InvalidInputError
from bandit.posterior import Noise
from sims.kernels.delayed import delayed
from sims.published import __main__ as command
from sims.published import linear, logs, wheel
from sims.published.result import Result, beaten, mean_of, reproduced


def test_a_mean_has_students_interval():
    mean, half = mean_of([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert mean_of([4.0]) == (4.0, 0.0)


@pytest.mark.parametrize(
    ("ours", "holds"), [([9.0, 9.1], True), ([10.9, 11.1], True), ([30.0, 30.1], False)]
)
def test_what_is_reproduced_is_near(ours: list[float], *, holds: bool):
    assert reproduced("x", "s", 10.0, ours, within=1.0).holds is holds


def test_a_published_mean_of_runs_has_an_error_of_its_own():
    ours = [9.0, 11.0, 13.0, 15.0]
    exact, as_many, one = (
        reproduced("x", "s", 10.0, ours, within=1.0, their_runs=n).high for n in (None, 4, 1)
    )
    half = mean_of(ours)[1]
    assert (exact, as_many) == pytest.approx((11.0 + half, 11.0 + half * 2.0**0.5))
    assert one == pytest.approx(11.0 + half * 5.0**0.5)


@pytest.mark.parametrize(
    ("ours", "holds"), [([8.0, 8.1], True), ([0.0, 19.0], False), ([10.1, 10.2], False)]
)
def test_what_is_beaten_is_below_with_its_interval(ours: list[float], *, holds: bool):
    assert beaten("x", "s", 10.0, ours).holds is holds


def test_the_table_shows_every_verdict():
    results = [
        reproduced("near", "s", 10.0, [10.0], within=1.0),
        reproduced("far", "s", 10.0, [20.0], within=1.0),
        beaten("shown", "s", 10.0, [20.0], is_required=False),
    ]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(command.table(results))
    lines = console.export_text().splitlines()
    for what, verdict in (("near", "holds"), ("far", "MISSED"), ("shown", "worse")):
        [line] = [line for line in lines if what in line]
        assert verdict in line


def missed(results: list[Result]) -> list[Result]:
    return [one for one in results if one.is_required and not one.holds]


def test_gaussian_rewards_in_short():
    results = linear.gaussian(4)
    assert missed(results) == []
    assert results[1].ours < 0.8 * results[0].ours


def test_the_shuttle_in_short(data_folder: Path):
    assert missed(linear.shuttle(data_folder / linear.SHUTTLE, 3)) == []


def test_another_file_is_not_the_shuttle(tmp_path: Path):
    path = tmp_path / "shuttle.gz"
    spoiled = bytearray(gzip.compress(b"1 2 3 1\n" * 1_000))
    spoiled[20] ^= 0xFF
    for content in (b"", b"no gzip", spoiled[:30], bytes(spoiled), gzip.compress(bytes(1 << 27))):
        path.write_bytes(content)
        with pytest.raises(InvalidInputError):
            linear.load_shuttle(path)


def test_a_draw_of_the_noise_widens_scores():
    """With few outcomes LinFullPost explores more than with the noise's estimate."""
    x = np.ones(1)

    def chosen(player: linear.Arms) -> float:
        for arm in (0, 1):
            player.learn(x, arm, float(arm))
        return float(np.mean([player.choose(x, number) for number in range(2_000)]))

    wide = linear.Arms(2, 1, 1, 2.0, Noise(shape=1.0, scale=0.1))
    narrow = linear.Arms(2, 1, 1, 2.0, Noise(shape=1e6, scale=1e5))
    assert chosen(narrow) - chosen(wide) > 0.02  # equal they would differ by .01 in 1 sd


def test_late_feedback_costs():
    prompt, late = (
        np.mean([delayed(np.random.default_rng(s), 30_000, 10, steps, 1e-3) for s in range(4)])
        for steps in (1, 1_000)
    )
    assert late > 1.3 * prompt > 0.0


def test_the_wheel_pays_at_its_rim():
    x, means, rewards = wheel.world(0.5, 4_000, 1)
    far = np.hypot(x[:, 0], x[:, 1]) > 0.5
    assert far.mean() == pytest.approx(0.75, abs=0.03)  # 4.4 standard errors
    assert (means[far].max(axis=1) == 50.0).all()
    assert (means[~far].max(axis=1) == 1.2).all()
    assert np.abs(rewards - means).max() < 0.3


class PlainLinFullPost:
    """The published protocol in a few lines of numpy, to hold the engine's posteriors against."""

    def __init__(self, arms: int, width: int, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.precision = np.repeat(0.25 * np.eye(width)[None], arms, axis=0)
        self.moment, self.squares = np.zeros((arms, width)), np.zeros(arms)
        self.mean, self.root = np.zeros((arms, width)), 2.0 * np.ones_like(self.precision)
        self.root *= np.eye(width)
        self.shape, self.scale = np.full(arms, 6.0), np.full(arms, 6.0)

    def choose(self, x: np.ndarray, _: int) -> int:
        sds = np.sqrt(self.scale / self.random.gamma(self.shape))
        draws = self.random.standard_normal(self.mean.shape)
        weights = self.mean + sds[:, None] * np.einsum("kij,kj->ki", self.root, draws)
        return int((weights @ x).argmax())

    def learn(self, x: np.ndarray, arm: int, reward: float) -> None:
        self.precision[arm] += np.outer(x, x)
        self.moment[arm] += reward * x
        self.squares[arm] += reward * reward
        covariance = np.linalg.inv(self.precision[arm])
        self.mean[arm] = covariance @ self.moment[arm]
        self.root[arm] = np.linalg.cholesky(covariance)
        self.shape[arm] += 0.5
        explained = self.mean[arm] @ self.precision[arm] @ self.mean[arm]
        self.scale[arm] = 6.0 + 0.5 * (self.squares[arm] - explained)


def test_the_engines_arms_play_the_published_protocol():
    """On the same contexts; false alarms: 1e-4 (means of 24 differences, Student)."""
    noise = Noise(shape=6.0, scale=6.0)
    differences = []
    for seed in range(24):
        ours = wheel.play(linear.Arms(5, 3, seed, 2.0, noise), 0.5, 300, seed)
        differences.append(ours - wheel.play(PlainLinFullPost(5, 3, seed), 0.5, 300, seed))
    mean, half = mean_of(differences)
    assert abs(mean) < 2.3 * half  # 4.7 standard errors
    assert half < 6.0  # a policy that never learns differs by about 70


def test_a_linear_policy_does_not_see_the_rim():
    assert missed(wheel.linear(0.99, 4)) == []


def test_a_synthetic_log_in_short():
    assert missed(logs.synthetic(3)) == []


def test_the_open_bandit_sample(data_folder: Path):
    assert missed(logs.open_bandit(data_folder)) == []
