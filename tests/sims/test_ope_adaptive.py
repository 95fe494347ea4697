"""The front door on logs of a policy that learned: which intervals it gives, and that they hold."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from bandit.decision import Group
from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats
from server.commands import app
from sims.log import Log, taken
from sims.ope.collection import Watch
from sims.ope.diagnostics import Limits
from sims.ope.evaluate import evaluate
from sims.ope.interval_choice import kinds
from sims.ope.models import RewardModel
from sims.ope.past import HALVINGS, fit_in_order
from sims.ope.plan import Plan
from sims.ope.trials import CAREFUL

RATES = np.array([[0.40, 0.20], [0.20, 0.40]])
EVALUATED = np.array([[0.3, 0.7], [0.7, 0.3]])
VALUE = float((EVALUATED * RATES).sum(axis=1).mean())


def target(log: Log) -> Floats:
    assert log.rows is not None
    return EVALUATED[log.rows[:, 0].astype(int)]


def learned_log(n: int, seed: int) -> Log:
    """Thompson sampling by segment, a version every 50 rows; it avoids what is evaluated."""
    rng = np.random.default_rng(seed)
    versions = np.arange(n) // CAREFUL.cadence
    segments, points, luck = rng.integers(0, 2, n), rng.random(n), rng.random(n)
    actions, rewards, p = np.empty(n, dtype=np.int64), np.empty(n), np.empty(n)
    counts, successes = np.zeros((2, 2)), np.zeros((2, 2))
    for version in range(int(versions[-1]) + 1):
        rows = slice(version * CAREFUL.cadence, (version + 1) * CAREFUL.cadence)
        x = segments[rows]
        share = CAREFUL.share(counts, successes)[x]
        actions[rows] = points[rows] >= share
        p[rows] = np.where(actions[rows] == 0, share, 1.0 - share)
        rewards[rows] = luck[rows] < RATES[x, actions[rows]]
        np.add.at(counts, (x, actions[rows]), 1.0)
        np.add.at(successes, (x, actions[rows]), rewards[rows])
    return Log(
        actions=actions,
        rewards=rewards,
        propensities=p,
        size=2,
        rows=segments[:, None].astype(float),
        times=np.arange(n, dtype=float),
        versions=versions,
    )


PLAIN_MODEL = {"flat": np.full((1_500, 2), 0.3)}
TRUSTING = Limits(effective_rows=0.0, weight_share=1.0)
"""The intervals are measured, not when they are withheld."""

FAST = {"replicates": 0, "bounds": (0.0, 1.0), "limits": TRUSTING}


def test_intervals_hold_where_the_policy_learned():
    """Of 150 logs at least 128 (one look) and 143 (any number of looks).

    The table of coverage has 94 to 97 % for running spreads, and above 99 % for betting. False
    alarms: at most 1e-3 at 93 % for one look, and 1e-3 at 98.5 % for betting.
    """
    held = dict.fromkeys([("ips", 0), ("dr", 0), ("ips", 1), ("dr", 1), ("logged", 1)], 0)
    for seed in range(150):
        log = learned_log(1_500, seed)
        found = evaluate(log, target, models=PLAIN_MODEL, estimators=["ips", "dr"], **FAST)
        truth = {"ips": VALUE, "dr": VALUE}
        x = log.rows[:, 0].astype(int)  # type: ignore[index]
        own = np.where(log.actions == 0, log.propensities, 1.0 - log.propensities)
        truth["logged"] = float((own * RATES[x, 0] + (1.0 - own) * RATES[x, 1]).mean())
        for name, place in held:
            held[name, place] += found[name].intervals[place].covers(truth[name])
    for (name, place), count in held.items():
        assert count >= (128, 143)[place], (name, place)


def test_only_what_holds_is_given_unless_asked_for():
    log = learned_log(1_500, 1)
    names = ["ips", "snips", "dr", "dm", "clipped_ips"]
    found = evaluate(log, target, models=PLAIN_MODEL, estimators=names, **FAST)
    given = {name: [i.kind for i in one.intervals] for name, one in found.estimates.items()}
    assert given == {
        "logged": ["student", "mixture_sequence"],
        "ips": ["stabilised", "importance_betting"],
        "snips": ["importance_betting"],
        "dr": ["stabilised", "importance_betting"],
        "dm": [],
        "clipped_ips": [],
    }
    assert all("read ips or dr" in (found[name].caution or "") for name in ("dm", "clipped_ips"))
    assert found["ips"].standard_error is None
    assert "30 snapshots decided" in found.why
    asked = evaluate(
        log,
        target,
        estimators=["ips", "snips"],
        intervals=["student", "bca"],
        replicates=40,
        limits=TRUSTING,
    )
    for name in ("ips", "snips"):
        assert [i.kind for i in asked[name].intervals] == ["student", "bca"]
        assert "take rows as independent" in (asked[name].caution or "")
    without = evaluate(log, target, estimators=["ips"], replicates=0, limits=TRUSTING)
    assert [i.kind for i in without["ips"].intervals] == ["stabilised"]
    assert "betting needs the range" in without.why


def test_a_policy_that_did_not_change_has_the_plain_ones():
    log = dataclasses.replace(learned_log(1_500, 1), versions=None)
    found = evaluate(log, target, estimators=["ips"], **(FAST | {"replicates": 40}))
    assert [i.kind for i in found["ips"].intervals] == ["student", "bca"]
    assert "does not say which snapshot" in found.why
    declared = evaluate(log, target, estimators=["ips"], logging_is_adaptive=True, **FAST)
    assert [i.kind for i in declared["ips"].intervals] == ["stabilised", "importance_betting"]
    every = ["student", "stabilised", "betting"]
    both = evaluate(log, target, estimators=["ips"], intervals=every, **FAST)
    assert both["ips"].caution is None
    assert len(both["ips"].intervals) == 3


def found_in(log: Log, *, declared: bool | None = None) -> tuple[bool, str]:
    watch = Watch()
    for start in range(0, len(log), 400):
        watch.add(taken(log, slice(start, start + 400)))
    return watch.found(declared)


def test_how_a_log_came_about():
    log = learned_log(1_000, 2)
    assert found_in(log)[0]
    assert not found_in(log, declared=False)[0]
    one = dataclasses.replace(log, versions=np.full(1_000, 7))
    assert found_in(one) == (False, "one snapshot decided all rows")
    same = dataclasses.replace(log, propensities=np.full(1_000, 0.5))
    assert not found_in(same)[0]
    groups = np.full(1_000, int(Group.RANDOM))
    assert not found_in(dataclasses.replace(log, groups=groups))[0]
    groups[500:] = int(Group.BANDIT)
    assert found_in(dataclasses.replace(log, groups=groups))[0]
    by_action = dataclasses.replace(log, propensities=np.where(log.actions == 0, 0.3, 0.7))
    assert not found_in(by_action)[0]


def test_order_matters_only_where_the_policy_learned():
    back = learned_log(1_000, 2).times[::-1].copy()  # type: ignore[index]
    log = dataclasses.replace(learned_log(1_000, 2), times=back)
    with pytest.raises(InvalidInputError, match=r"log.times\[61\].*in the order of time"):
        evaluate(log, target, estimators=["ips"], replicates=0)
    evaluate(log, target, estimators=["ips"], replicates=0, logging_is_adaptive=False)


def test_models_see_only_earlier_rows():
    """Changing all rewards from a row on changes no prediction up to its stretch's end."""
    log = learned_log(1_600, 3)
    changed = dataclasses.replace(log, rewards=np.where(np.arange(1_600) < 800, log.rewards, 1.0))
    numbers = np.arange(1_600)
    one, other = (
        fit_in_order(RewardModel(), one, numbers, end=1_600, seed=1).predict(log, numbers)
        for one in (log, changed)
    )
    assert one[:800].tolist() == other[:800].tolist()
    assert one[800:].tolist() == other[800:].tolist()  # fitted on rows before 800
    early = dataclasses.replace(log, rewards=np.where(numbers < 400, 1.0, log.rewards))
    third = fit_in_order(RewardModel(), early, numbers, end=1_600, seed=1).predict(log, numbers)
    assert (third[400:] != one[400:]).any()
    assert (one[: 1_600 >> HALVINGS] == 0.0).all()
    assert (one[1_600 >> HALVINGS :] > 0.0).all()


@pytest.mark.parametrize("cut", [1, 700])
def test_batches_give_what_the_whole_gives(cut: int):
    log = learned_log(1_500, 4)
    parts = [taken(log, slice(0, cut)), taken(log, slice(cut, 1_500))]
    whole, batched = (evaluate(one, target, estimators=["dr"], **FAST) for one in (log, parts))
    assert batched.why == whole.why
    for a, b in zip(whole["dr"].intervals, batched["dr"].intervals, strict=True):
        assert a[:2] == pytest.approx(b[:2], rel=1e-9)


def test_wrong_propensities_make_the_bettor_rich():
    log = learned_log(1_500, 5)
    wrong = dataclasses.replace(log, propensities=log.propensities / 3.0)
    blind = {**FAST, "limits": dataclasses.replace(TRUSTING, mean_weight=0.0, calibration=0.0)}
    one = evaluate(wrong, target, estimators=["ips"], **blind)["ips"]
    assert "do not average 1" in (one.withheld or "")


@pytest.mark.parametrize(
    ("named", "problem"),
    [
        ({"intervals": ["magic"]}, "intervals: 'magic' is not known"),
        ({"intervals": ["betting"]}, "bounds: 'betting' needs the range"),
        ({"bounds": (1.0, 0.0)}, "bounds: must be two finite numbers"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(named: dict[str, object], problem: str):
    with pytest.raises(InvalidInputError, match=problem):
        Plan(**named)  # type: ignore[arg-type]


def test_kinds_follow_the_plan():
    log = learned_log(500, 1)
    watch = Watch()
    watch.add(log)
    assert kinds(Plan(), watch.found(None)) == ("stabilised",)
    assert kinds(Plan(replicates=0), watch.found(declared=False)) == ("student",)


# --- the command ------------------------------------------------------------------------

SPEC = """
name = "shop"
actions = { variants = ["plain", "bold"], channels = ["mail"] }
context = [{ name = "old", kind = "flag" }]
outcome = { window = 3600, aggregation = "max", rewards = [{ name = "click" }] }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    log = learned_log(3_000, 6)
    assert log.rows is not None
    (tmp_path / "shop.toml").write_text(SPEC)
    columns = {
        "variant": np.array(["plain", "bold"])[log.actions],
        "propensity": log.propensities,
        "reward": log.rewards,
        "context.old": log.rows[:, 0] == 1,
        "snapshot_version": log.versions,
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    return tmp_path


def test_the_command_says_which_interval_and_why(folder: Path):
    asked = ["evaluate", str(folder / "log.parquet"), "--spec", str(folder / "shop.toml")]
    few = ["--policy", "uniform", "--estimator", "ips", "--estimator", "dr"]
    wide = {"COLUMNS": "200"}
    done = CliRunner().invoke(app, [*asked, *few, "--replicates", "0"], env=wide)
    assert done.exit_code == 0, done.output
    for words in ("stabilised", "importance", "betting", "60 snapshots decided"):
        assert words in " ".join(done.output.split())  # a narrow cell may part two words
    done = CliRunner().invoke(app, [*asked, *few, "--not-adaptive", "--replicates", "40"], env=wide)
    assert "bca" in done.output
    assert "declared not to have changed" in " ".join(done.output.split())
    plain = CliRunner().invoke(app, [*asked, *few, "--interval", "student"], env=wide)
    assert "caution (dr, ips): student take rows as independent" in " ".join(plain.output.split())


def test_the_command_writes_a_report(folder: Path):
    asked = ["evaluate", str(folder / "log.parquet"), "--spec", str(folder / "shop.toml")]
    out = folder / "found"
    done = CliRunner().invoke(app, [*asked, "--estimator", "dr", "--out", str(out)])
    assert done.exit_code == 0, done.output
    names = {path.name for path in out.iterdir()}
    assert names == {"report.html", "report.json", "report.parquet", "estimates.parquet"}
    shown = set(pq.read_table(out / "report.parquet")["chart"].to_pylist())
    assert {"values", "estimates-1", "weights-1", "posterior-2", "calibration"} <= shown
