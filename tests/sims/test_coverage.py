"""Intervals hold the truth as often as they promise; the long table is docs/reference/coverage.md.

Logs are seeded, so these pass or fail for good. For another seed, a bound is missed by chance
with the probability given beside it.
"""

import math
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from bandit.errors import InvalidInputError
from sims.ope import coverage
from sims.ope.coverage import BEGIN, END, Row, measure, table, written
from sims.ope.estimators import terms_of
from sims.ope.intervals import Moments
from sims.ope.trials import WORLDS

LOGS, ROWS = 80, 500
FALSE_ALARM = 1e-5
"""Of one bound; there are about 150, so 1.5e-3 for another seed."""

APPROXIMATE = 0.90
"""What intervals that hold in the limit must still keep at 500 rows."""


@lru_cache
def counted(world: str, logs: int = LOGS, rows: int = ROWS) -> dict[tuple[str, str], Row]:
    *_, last = measure(world, logs, seed=5, rows=rows)
    return {(row.estimate, row.interval): row for row in last}


def least(promised: float, logs: int = LOGS) -> int:
    """Give how many of some logs are held with probability 1 - FALSE_ALARM at least."""
    return int(stats.binom.ppf(FALSE_ALARM, logs, promised))


@pytest.mark.parametrize("world", ["uniform", "skewed", "rare", "thompson", "greedy"])
def test_what_holds_for_any_number_of_rows_holds(world: str):
    """Bernstein, Clopper-Pearson, and every sequence at every look."""
    for (estimate, interval), row in counted(world).items():
        if interval in ("bernstein", "clopper_pearson"):
            assert row.held >= least(0.95), (estimate, interval)
        if "_sequence" in interval or interval.startswith("importance"):
            assert row.held_always >= least(0.95), (estimate, interval)
            assert row.held >= row.held_always
            assert row.refused <= 0.1 * LOGS


@pytest.mark.parametrize("world", ["uniform", "thompson", "thompson with context"])
def test_what_holds_in_the_limit_nearly_holds(world: str):
    for (estimate, interval), row in counted(world).items():
        if interval in ("student", "percentile", "bca", "stabilised") and estimate != "matched":
            assert row.held >= least(APPROXIMATE), (estimate, interval)


def test_looking_often_breaks_what_is_for_one_look():
    """Student's at ten looks holds in about 75 % of logs: 72 of 80 has probability 2e-4."""
    row = counted("uniform")["ips", "student"]
    assert row.held_always < 0.9 * LOGS
    assert counted("uniform")["ips", "betting_sequence"].held_always >= least(0.95)


def test_rows_of_one_customer_break_what_takes_them_for_many():
    """By row about 80 % hold, by customer 94 %: 91 of 100 by row has probability 2e-3."""
    found = counted("returning", 100)
    for kind in ("student", "percentile", "bca"):
        assert found["snips", kind].held < 91
        assert found["snips", f"{kind} by customer"].held >= least(APPROXIMATE, 100)


def test_a_greedy_policy_breaks_all_but_betting():
    """IPS by Student or bootstrap holds in 3 of 4 logs: 72 of 80 has probability 2e-4."""
    found = counted("greedy")
    for kind in ("student", "percentile", "bca"):
        assert found["ips", kind].held < 0.9 * LOGS
    assert found["ips", "importance_betting"].held_always >= least(0.95)


@pytest.mark.parametrize("world", WORLDS)
def test_the_truth_of_a_log_is_the_truth(world: str):
    """IPS and DR of many rows, against the closed form: five errors, so 6e-7 each to fail.

    For policies that learn, 20 logs of 2,000 rows, so that errors are independent.
    """
    draw, _ = WORLDS[world]
    trials = [draw(np.random.default_rng(i), 2000) for i in range(20)]
    for name in ("ips", "dr"):
        means = np.array([terms_of(name, trial.weighed).value for trial in trials])
        error = max(float(means.std(ddof=1)) / math.sqrt(20), 1e-12)
        assert abs(means.mean() - trials[0].truth) < 5 * error
    for trial in trials:
        assert trial.weighed.weights.max() <= trial.largest_weight * (1 + 1e-12)
        if not math.isnan(trial.logged) and world != "returning":
            rewards = terms_of("ips", trial.weighed)._replace(numerators=trial.weighed.rewards)
            logged = Moments.of(rewards)
            assert abs(logged.value - trial.logged) < 5 * logged.error


def test_logs_are_named_by_seed_and_number():
    first, again = (list(measure("uniform", 3, seed=9, rows=200)) for _ in range(2))
    assert first == again
    assert list(measure("uniform", 2, seed=9, rows=200)) == first[:2]
    assert list(measure("uniform", 3, seed=10, rows=200)) != first


def test_bad_settings_are_refused():
    with pytest.raises(InvalidInputError, match="world: 'mars' is not one of uniform"):
        next(measure("mars", 1))
    with pytest.raises(InvalidInputError, match="replications: must be at least 1"):
        next(measure("uniform", 0))


def test_the_table_goes_between_the_markers():
    row = Row("uniform", "ips", "student", 400, 380, 300, 2, 0.125)
    text = table([row, row._replace(held_always=-1, refused=0)])
    assert "| uniform | ips | student | 95.0% +- 1.1% (2 refused) | 75.0% | 0.1250 |" in text
    assert "| uniform | ips | student | 95.0% +- 1.1% |  | 0.1250 |" in text
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert written(page, "new") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    with pytest.raises(InvalidInputError, match="page: has no"):
        written("no markers", "new")


def test_the_command_writes_the_page(tmp_path: Path):
    app = coverage.typer.Typer()
    app.command()(coverage.main)
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    asked = ["--replications", "2", "--world", "returning", "--seed", "3"]
    result = CliRunner().invoke(app, [*asked, "--write", str(page)])
    assert result.exit_code == 0, result.output
    assert "2 logs of each kind, seed 3" in page.read_text()
    assert page.read_text().count("| returning |") > 20
    shown = CliRunner().invoke(app, asked)
    assert set(page.read_text().splitlines()[1:-1]) <= set(shown.output.splitlines())


def test_the_page_tells_what_was_measured():
    """Every kind of log and every interval of this release is in the table of the docs."""
    page = Path(__file__).parents[2] / "docs/reference/coverage.md"
    told = set(re.findall(r"^\| ([\w ]+) \| (\w+) \| ([\w, ]+) \|", page.read_text(), re.MULTILINE))
    for world in WORLDS:
        assert {(world, *key) for key in counted(world, 2, 100)} <= told, world
