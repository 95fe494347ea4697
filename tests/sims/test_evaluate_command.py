"""banditctl evaluate and replay --log, as a user runs them on a log of somebody else."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandit.errors import InvalidInputError
from bandit.experiment import Experiment
from bandit.spec_file import parse
from server.commands import run
from sims.log import Log, batches
from sims.ope.candidates import action_of, candidate, parts

SPEC = """
name = "shop"
baseline = { variant = "plain", channel = "mail" }
[actions]
variants = ["plain", "bold", "odd"]
channels = ["mail"]
[[context]]
name = "old"
kind = "flag"
[[context]]
name = "age"
kind = "number"
bounds = [18, 90]
[outcome]
window = 60
aggregation = "max"
[[outcome.rewards]]
name = "click"
"""
RATES = np.array([[0.1, 0.5, 0.2], [0.3, 0.1, 0.2]])
MAPPED = ("--column", "reward=clicked", "--column", "propensity=p", "--column", "variant=mail")
FAST = ("--replicates", "40")


def table(n: int, seed: int = 1) -> pa.Table:
    rng = np.random.default_rng(seed)
    old = rng.integers(0, 2, n)
    p = np.where(old[:, None] == 1, [[0.5, 0.25, 0.25]], [[0.2, 0.6, 0.2]])
    actions = (p.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return pa.table(
        {
            "mail": np.array(["plain", "bold", "odd"])[actions],
            "p": p[np.arange(n), actions],
            "clicked": (rng.random(n) < RATES[old, actions]).astype(float),
            "context.old": old == 1,
            "context.age": rng.uniform(18, 90, n),
        }
    )


Call = Callable[..., "Said"]


class Said(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    (tmp_path / "shop.toml").write_text(SPEC)
    pq.write_table(table(6_000), tmp_path / "log.parquet", row_group_size=1_000)
    return tmp_path


@pytest.fixture
def banditctl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["banditctl", *arguments])
        try:
            status = run()
        except SystemExit as end:
            status = int(end.code or 0)
        return Said(status, *capsys.readouterr())

    return call


def test_policies_are_evaluated_and_the_truth_is_covered(folder: Path, banditctl: Call):
    """Ends of 95 % intervals widened by their own width: at most 1e-4 to fail by chance."""
    said = banditctl(
        *("evaluate", "log.parquet", "--spec", "shop.toml", *MAPPED, *FAST),
        *("--policy", "uniform", "--policy", "odd", "--policy", "learned", "--out", "e.json"),
        *("--estimator", "ips", "--estimator", "snips", "--estimator", "dr", "--estimator", "sndr"),
    )
    assert (said.status, said.err) == (0, "")
    assert "learned from rows 1 to 3000 of the file" in said.out
    assert "evaluated: 3 policies, 15 estimates on 3000 rows" in said.out
    told = json.loads((folder / "e.json").read_text())
    assert told["experiment"] == "shop"
    truths = {"uniform": RATES.mean(), "odd": 0.2}
    checked = 0
    for one in told["estimates"]:
        assert one["withheld"] is None
        if one["policy"] in truths and one["estimate"] in ("ips", "snips", "dr", "sndr"):
            width = one["high"] - one["low"]
            assert one["low"] - width < truths[one["policy"]] < one["high"] + width
            checked += 1
    assert checked == 16
    learned = [e for e in told["estimates"] if (e["policy"], e["estimate"]) == ("learned", "dr")]
    assert learned[0]["value"] > 0.3  # uniform earns 0.23, the best policy 0.4


@pytest.mark.parametrize("ending", [".json", ".csv", ".parquet"])
def test_estimates_are_written(folder: Path, banditctl: Call, ending: str):
    said = banditctl(
        *("evaluate", "log.parquet", "--spec", "shop.toml", *MAPPED, "--replicates", "0"),
        *("--policy", "baseline", "--estimator", "ips", "--out", f"e{ending}"),
    )
    assert said.status == 0, said.err
    assert (folder / f"e{ending}").stat().st_size > 100


def test_a_withheld_estimate_ends_with_status_1(folder: Path, banditctl: Call):
    rows = table(6_000)
    kept = rows.filter(pa.compute.not_equal(rows["mail"], "odd"))
    pq.write_table(kept, folder / "log.parquet")
    said = banditctl(
        *("evaluate", "log.parquet", "--spec", "shop.toml", *MAPPED, *FAST, "--policy", "odd")
    )
    assert said.status == 1
    assert "withheld" in said.out
    assert "100.0% of the policy falls on actions the log never took (2)" in said.err


def test_a_refused_log_ends_with_status_1(folder: Path, banditctl: Call):
    rows = table(500).to_pydict()
    rows["p"][77] = 0.0
    pq.write_table(pa.table(rows), folder / "log.parquet")
    command = ("evaluate", "log.parquet", "--spec", "shop.toml", *MAPPED, *FAST)
    said = banditctl(*command)
    assert said.status == 1
    assert said.err == 'error: log.parquet: row 78, column "p": must be in (0, 1], got 0.0\n'
    said = banditctl(*command, "--exclude", "--policy", "uniform")
    assert said.status == 0, said.err
    assert "not used: 1 p: must be in (0, 1]" in said.out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--policy", "best"), "no variant 'best'; a policy is one of uniform, baseline"),
        (("--policy", "plain,mail"), "nor an action as VARIANT,CHANNEL,SLOT"),
        (("--policy", "bald,mail,now"), "no variant 'bald'"),
        (("--learn", "1"), "must be between 0 and 1"),
        (("--column", "reward"), "'reward' is not OURS=THEIRS"),
        (("--column", "reward=clicked"), "'reward' is given twice"),
        (("--out", "e.txt"), "needs the ending"),
        (("--estimator", "magic"), "'magic' is not known"),
    ],
)
def test_what_makes_no_sense_is_refused(
    folder: Path, banditctl: Call, arguments: tuple[str, ...], problem: str
):
    said = banditctl(*("evaluate", "log.parquet", "--spec", "shop.toml"), *MAPPED, *arguments)
    assert said.status == 1
    assert problem in said.err
    assert not (folder / "e.txt").exists()


@pytest.mark.usefixtures("folder")
def test_a_log_that_is_not_uniform_is_not_replayed(banditctl: Call):
    said = banditctl("replay", "--log", "log.parquet", "--spec", "shop.toml", *MAPPED)
    assert said.status == 1
    assert (
        "there is no estimate: the log is not uniform: its propensities are 0.2 to 0.6" in said.err
    )
    said = banditctl("replay", "--log", "log.parquet", "--data", "x", "--spec", "shop.toml")
    assert said.status == 1
    assert "goes with --spec, and not with --data" in said.err
    assert "name the campaign" in banditctl("replay").err


def test_a_uniform_log_is_replayed(folder: Path, banditctl: Call):
    rng = np.random.default_rng(3)
    rows = table(3_000).to_pydict()
    rows["mail"] = rng.choice(["plain", "bold", "odd"], 3_000).tolist()
    rows["p"] = [1 / 3] * 3_000
    pq.write_table(pa.table(rows), folder / "log.parquet")
    said = banditctl("replay", "--log", "log.parquet", "--spec", "shop.toml", *MAPPED)
    assert (said.status, said.err) == (0, "")
    assert "of 3000 rows" in said.out.splitlines()[-1]


# --- candidates ---------------------------------------------------------------------------


def test_candidates():
    experiment = Experiment(parse(SPEC, "toml"), secret=bytes(16))
    log = Log(
        actions=np.zeros(3, dtype=np.int64),
        rewards=np.zeros(3),
        propensities=np.ones(3),
        size=3,
        rows=np.array([[1.0, 20.0], [0.0, 30.0], [np.nan, np.nan]]),
    )
    np.testing.assert_allclose(candidate("uniform", experiment)(log), np.full((3, 3), 1 / 3))
    assert candidate("baseline", experiment)(log).tolist() == [[1, 0, 0]] * 3
    assert candidate("odd", experiment)(log).tolist() == [[0, 0, 1]] * 3
    prior = candidate("prior", experiment)(log)
    np.testing.assert_allclose(prior.sum(axis=1), 1.0)
    with pytest.raises(InvalidInputError, match="there is nothing to learn from"):
        candidate("learned", experiment, [])
    assert action_of("bold, mail, now", experiment.spec) == 1


@pytest.mark.parametrize("last", [0, 1, 700, 1_000, 5_999, 6_000])
def test_the_parts_of_a_log_are_the_log(folder: Path, last: int):
    spec = parse(SPEC, "toml")
    columns = {"reward": "clicked", "propensity": "p", "variant": "mail"}
    first, rest = parts(
        lambda: batches(folder / "log.parquet", spec, columns=columns, size=500), last
    )
    places = [
        np.concatenate([log.places for log in part()] or [np.zeros(0, dtype=np.int64)]).tolist()
        for part in (first, rest)
    ]
    assert places == [list(range(1, last + 1)), list(range(last + 1, 6_001))]
