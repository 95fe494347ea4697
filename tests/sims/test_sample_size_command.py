"""``banditctl sample-size``: the figures of ``sims.rollouts.sample_size``, and what is refused."""

import re

import pytest
from typer.testing import CliRunner

from bandit.errors import BanditError
from server.commands import app
from sims.rollouts import sample_size
from sims.worlds import EXAMPLES, catalogue


def run(*words: str) -> tuple[str, BaseException | None]:
    """Give what the command printed, and what it failed with."""
    done = CliRunner().invoke(app, ["sample-size", *words], env={"COLUMNS": "150"})
    return done.output, done.exception


def test_it_prints_what_the_function_finds():
    shown, failed = run("--preset", "stationary", "--lift", "0.5", "--tests", "40", "--seed", "2")
    assert failed is None, shown
    _, spec, world = catalogue.preset("stationary")
    found = sample_size(spec, world, lift=0.5, tests=40, seed=2)
    assert f"{found.customers:,} customers of each arm, {2 * found.customers:,} together" in shown
    assert f"({found.low:,} to {found.high:,} of each, by 40 tests)" in shown
    assert "+50.0% in 80% of the tests" in shown
    for point in found.curve[-8:]:
        assert re.search(rf"{point.customers:,} .* {point.power:.1%}", shown)


def test_it_says_how_long_a_test_takes():
    """A hundred customers an hour, so a test of n customers takes n / 2400 days."""
    examples = EXAMPLES / "gate"
    asked = [str(examples / "pass-welcome.toml"), "--lift", "0.5", "--tests", "20"]
    shown, failed = run(*asked)
    assert failed is None, shown
    together = re.search(r"([\d,]+) together", shown)
    days = re.search(r"about ([\d,.]+) days", shown)
    assert together
    assert days
    expected = int(together[1].replace(",", "")) / 2_400.0
    assert float(days[1]) == pytest.approx(expected, rel=0.15)  # arrivals are random
    assert "baseline, short/email" in shown


BAD = {
    "nothing": ([], "spec: name a file, or a --preset"),
    "no lift": (["--preset", "stationary", "--lift", "0"], "lift: must be in"),
    "no power": (["--preset", "stationary", "--power", "1"], "power: must be in"),
    "too few": (
        ["--preset", "stationary", "--lift", "0.01", "--tests", "20", "--most", "500"],
        "most: 500 customers of each arm",
    ),
    "tired": (["--preset", "fatigue", "--tests", "20"], "is not memoryless"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_question_says_what_is_wrong(name: str):
    words, told = BAD[name]
    _, failed = run(*words)
    assert isinstance(failed, BanditError)
    assert told in str(failed)
