"""The gate stops what it should, by the check that should, and lets the rest pass."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from bandit import spec_file
from bandit.context import OTHER
from bandit.errors import InvalidInputError
from bandit.gate import Gate
from bandit.spec import ExperimentSpec
from bandit.verdict import Check
from server.commands import app
from sims import worlds
from sims.gate import examine, validate
from sims.gate.leaks import check_leaks
from sims.gate.logs import check_log, judge
from sims.gate.measures import calibration, sample_size, shares
from sims.gate.segments import segments_of
from sims.gate.static import check_spec
from sims.gate.trial import Look, Trial, trial
from sims.log import Log

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "sims/examples/gate"
STOPPED_BY = {
    "pass-welcome": "",
    "stop-greedy": "exploration",
    "stop-leak": "leak",
    "stop-floor": "floor_room",
    "stop-starved": "starvation",
}


def spec_of(name: str) -> ExperimentSpec:
    return spec_file.parse((EXAMPLES / f"{name}.toml").read_text(), "toml")


def short(spec: ExperimentSpec, **limits: float) -> ExperimentSpec:
    return replace(spec, gate=replace(spec.gate, customers=800, replications=5, **limits))


WELCOME = spec_of("pass-welcome")
WORLD = worlds.read(EXAMPLES / "pass-welcome.world.toml")


def banditctl(*arguments: object, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", *map(str, arguments)],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


# --- the command ------------------------------------------------------------------------


def test_every_example_is_listed():
    names = {p.stem for p in EXAMPLES.glob("*.toml") if not p.stem.endswith(".world")}
    assert names == set(STOPPED_BY)
    assert sum(name.startswith("stop-") for name in names) >= 3


@pytest.mark.parametrize("name", STOPPED_BY)
def test_the_status_is_the_verdict(name: str):
    done = CliRunner().invoke(app, ["validate", str(EXAMPLES / f"{name}.toml")])
    assert done.exit_code == int(name.startswith("stop-")), done.output
    last = done.stdout.strip().splitlines()[-1]
    found = re.fullmatch(r"verdict: (passed|stopped by (.*)) \(specification (\w+), .*", last)
    assert found, last
    stopped = found[2].split(", ") if found[2] else []
    assert (STOPPED_BY[name] in stopped) if STOPPED_BY[name] else not stopped
    assert spec_file.digest(spec_of(name)).startswith(found[3])


def test_a_report_and_the_verdict_are_written(tmp_path: Path):
    """By a process of its own: its exit status is the verdict."""
    done = banditctl("validate", EXAMPLES / "stop-leak.toml", "--out", tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    stopped = {check["name"] for check in verdict["checks"] if not check["passed"]}
    assert verdict["spec_hash"] == spec_file.digest(spec_of("stop-leak"))
    assert "stop-leak " in verdict["worlds"][0]
    assert "stop-leak" in verdict["log"]
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith(f"verdict: stopped by {', '.join(sorted(stopped))} (")
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere.toml"], "nowhere.toml"),
        (["alone.toml"], "--world"),
        (["alone.toml", "--preset", "paradise"], "paradise"),
        (["alone.toml", "--world", "bad.toml"], "bad.toml"),
        (["alone.toml", "--override", "because"], "--address"),
        (["alone.toml", "--world", "w.toml", "--log", "none.csv"], "none.csv"),
        (["alone.toml", "--world", "other.toml"], "has_bike"),
    ],
)
def test_bad_input_is_status_two(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copy(EXAMPLES / "pass-welcome.toml", tmp_path / "alone.toml")
    shutil.copy(EXAMPLES / "pass-welcome.world.toml", tmp_path / "w.toml")
    (tmp_path / "bad.toml").write_text("reward = 1")
    text = (EXAMPLES / "pass-welcome.world.toml").read_text().replace("has_app", "has_bike")
    (tmp_path / "other.toml").write_text(text)
    with monkeypatch.context() as patched:
        patched.chdir(tmp_path)
        done = CliRunner().invoke(app, ["validate", *arguments])
    assert done.exit_code == 2, done.output
    assert told in done.output
    assert "Traceback" not in done.output


# --- the specification alone --------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "check", "passes"),
    [
        ({}, "exploration", True),
        ({"exploration": 0.0}, "exploration", False),
        ({"kind": "top_two", "exploration": 0.0}, "exploration", False),
        ({"kind": "epsilon_greedy", "epsilon": 0.0}, "exploration", False),
        ({"kind": "linucb", "confidence": 0.0}, "exploration", False),
        ({"kind": "uniform"}, "exploration", True),
        ({"kind": "softmax", "temperature": 1e-9}, "exploration", True),  # worlds tell
        ({"floor": 0.1}, "floor_room", True),
        ({"floor": 0.13}, "floor_room", False),
        ({"posterior": "logistic"}, "posterior", True),
        ({"posterior": "beta_bernoulli"}, "posterior", True),
    ],
)
def test_the_specification_alone(policy: dict[str, object], check: str, passes: bool):  # noqa: FBT001
    data = spec_file.to_data(WELCOME)
    data["policy"] = policy
    found = {c.name: c for c in check_spec(spec_file.from_data(data))}
    assert found[check].passed is passes
    assert all(c.passed for name, c in found.items() if name != check)


@pytest.mark.parametrize(
    ("field", "passes"),
    [("click", False), ("Clicked", False), ("outcome", False), ("clicks_last_year", True)],
)
def test_a_field_named_for_the_outcome_stops(field: str, passes: bool):  # noqa: FBT001
    data = spec_file.to_data(WELCOME)
    data["context"].append({"name": field, "kind": "flag"})
    found = {c.name: c for c in check_spec(spec_file.from_data(data))}
    assert found["leak_by_name"].passed is passes


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ({"regret": -0.1}, "regret"),
        ({"regret": float("nan")}, "regret"),
        ({"leak": 1.5}, "leak"),
        ({"starvation": float("nan")}, "starvation"),
        ({"effective_sample": float("inf")}, "effective_sample"),
        ({"customers": 10}, "customers"),
        ({"replications": 1}, "replications"),
    ],
)
def test_limits_out_of_range_are_refused(limits: dict[str, float], field: str):
    with pytest.raises(InvalidInputError) as caught:
        Gate(**limits)  # type: ignore[arg-type]
    assert caught.value.field == field


# --- worlds -----------------------------------------------------------------------------


def test_a_seed_repeats_and_names_the_verdict():
    spec = short(WELCOME)
    one, again = (validate(spec, {"w": WORLD}, seed=3) for _ in range(2))
    assert one == again
    assert validate(spec, {"w": WORLD}, seed=4).checks != one.checks
    assert (one.seed, one.experiment) == (3, "pass-welcome")


def test_no_world_is_no_verdict():
    with pytest.raises(InvalidInputError, match="at least one"):
        validate(WELCOME, {})


def test_a_harmful_policy_is_stopped_by_its_regret():
    """Learning is impossible in an hour; the baseline is the best action, and all else is bad."""
    base = replace(WORLD, effects=(worlds.Effect(adds=3.0, variant="short", channel="email"),))
    found = examine(short(WELCOME), {"w": base}).verdict
    names = {check.name for check in found.stopped_by}
    assert "regret" in names


def test_generous_bounds_of_a_reward_hide_no_loss():
    """Bounds are what a value may be at most; a customer may earn a millionth of that."""
    base = replace(WORLD, effects=(worlds.Effect(adds=3.0, variant="short", channel="email"),))
    data = spec_file.to_data(short(WELCOME))
    data["outcome"]["rewards"][0]["bounds"] = [0, 1e7]
    found = {c.name: c for c in validate(spec_file.from_data(data), {"w": base}).checks}
    assert not found["regret"].passed
    log = log_of(4_000)
    little = np.random.default_rng(1).random(len(log)) / 100.0
    log = replace(log, rewards=np.where(log.actions == 3, 1.0, little))
    data["policy"] = {"kind": "fixed", "action": {"variant": "short", "channel": "email"}}
    spec = spec_file.from_data(data)
    told = {c.name: c for c in check_log(spec, log, judge(spec, log), "l")}
    assert not told["log_regret"].passed


def test_a_world_that_never_pays_shows_nothing():
    world = replace(WORLD, base=-800.0, effects=())
    found = {c.name: c for c in validate(short(WELCOME), {"w": world}).checks}
    assert not found["learning"].passed
    assert "nothing to learn" in found["learning"].found
    assert found["regret"].passed


@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize(("temperature", "passes"), [(0.1, True), (1e-3, False)])
def test_a_temperature_is_held_against_the_outcomes(
    unit: float,
    temperature: float,
    passes: bool,  # noqa: FBT001
):
    """In whatever unit a click is counted, and the temperature with it."""
    data = spec_file.to_data(short(WELCOME))
    data["outcome"]["rewards"][0]["weight"] = unit
    data["policy"] = {"kind": "softmax", "temperature": temperature * unit}
    found = {c.name: c for c in examine(spec_file.from_data(data), {"w": WORLD}).verdict.checks
             if c.source != "the specification"}  # fmt: skip
    check = found["exploration"]
    assert check.passed is passes
    assert check.value == pytest.approx(temperature / 0.4, rel=0.3)  # clicks of a fifth or so


def test_the_worst_segment_is_named():
    """Everybody likes pushes, but those without the app: with one action for all they lose."""
    world = replace(
        WORLD,
        effects=(
            worlds.Effect(adds=2.0, channel="push", when={"has_app": True}),
            worlds.Effect(adds=-3.0, channel="push", when={"has_app": False}),
        ),
    )
    data = spec_file.to_data(short(WELCOME, segment_regret=0.1))
    data["policy"] = {"kind": "fixed", "action": {"variant": "short", "channel": "push"}}
    found = {c.name: c for c in validate(spec_file.from_data(data), {"w": world}).checks}
    check = found["worst_segment"]
    assert not check.passed
    assert "has_app = no" in check.found
    assert found["regret"].passed


def test_every_customer_is_in_one_segment_of_every_field():
    """Also whose category is none of the declared levels, or not known."""
    ages, segments, flags = [18.0, 30.0, 80.0, np.nan], [0, 1, OTHER, np.nan], [0.0, 1.0, np.nan]
    rows = np.array(list(itertools.product(ages, segments, flags)), dtype=np.float64)
    found = segments_of(WELCOME, rows)
    for column in range(3):
        of_field = [one.members(rows) for one in found if one.column == column]
        assert (np.sum(of_field, axis=0) == 1).all()


@pytest.fixture(scope="module")
def played() -> Trial:
    return trial(short(WELCOME), WORLD, name="w", seed=1)


def test_what_a_trial_keeps_adds_up(played: Trial):
    for run in played.runs:
        assert run.earned.shape == (4, len(played.points))
        assert (np.diff(run.earned, axis=1) > 0).all()
        assert (run.earned[3] >= run.earned[:3] - 1e-9).all()  # nothing beats the optimum
        assert run.got.sum() == pytest.approx(run.even.sum()) == 800
        assert run.look.propensities.sum(axis=1) == pytest.approx(1.0)
        assert run.moments[:, 0].sum() <= 400
    assert shares(played).mean() == pytest.approx(1.0)
    needed = sample_size(played.runs)
    assert needed is None or needed > 0


# --- propensities -----------------------------------------------------------------------


def look(p: np.ndarray, chosen: np.ndarray) -> Look:
    blank = np.zeros_like(p)
    return Look(p, np.ones_like(p, dtype=np.bool_), chosen, blank, blank)


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_true_propensities_are_calibrated(seed: int, k: int):
    """False alarms: at most 1e-6 an example, by Bonferroni on normal tails."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(k, 0.5), size=2_000)
    chosen = (p.cumsum(axis=1) < rng.random((2_000, 1))).sum(axis=1).clip(max=k - 1)
    assert calibration([look(p, chosen)])[0] > 1e-6


def test_wrong_propensities_are_found():
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.full(4, 2.0), size=5_000)
    chosen = rng.integers(0, 4, 5_000)  # uniform, whatever p says
    assert calibration([look(p, chosen)])[0] < 1e-6


# --- leaks and logs ---------------------------------------------------------------------


def drawn(n: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = np.column_stack([rng.uniform(18, 80, n), rng.integers(0, 2, n), rng.integers(0, 2, n)])
    return rows, (rng.random(n) < 0.2).astype(np.float64)


def test_noise_is_no_leak_and_a_trace_is_one():
    rows, rewards = drawn(2_000)
    fine = check_leaks(WELCOME, rows, rewards, "log")
    assert fine.passed
    assert fine.value is not None
    assert fine.value < 0.6  # noise on held-out rows
    rows[:, 2] = rewards
    leaking = check_leaks(WELCOME, rows, rewards, "log")
    assert not leaking.passed
    assert "has_app" in leaking.found


def test_a_missing_value_can_leak_too():
    rows, rewards = drawn(2_000)
    rows[rewards > 0, 0] = np.nan
    assert not check_leaks(WELCOME, rows, rewards, "log").passed


def test_a_category_of_many_levels_can_leak_too():
    """Every third of 60 levels is only ever seen with a click, the others never."""
    data = spec_file.to_data(WELCOME)
    data["context"] = [{"name": "page", "kind": "category", "levels": [f"p{i}" for i in range(60)]}]
    _, rewards = drawn(6_000)
    rng = np.random.default_rng(3)
    pages = np.where(
        rewards > 0, 3 * rng.integers(0, 20, 6_000), 3 * rng.integers(0, 20, 6_000) + 1
    )
    rows = pages[:, None].astype(np.float64)
    found = check_leaks(spec_file.from_data(data), rows, rewards, "log")
    assert not found.passed
    assert "page" in found.found


def test_too_few_outcomes_say_nothing():
    rows, rewards = drawn(60)
    rows[:, 2] = rewards
    found = check_leaks(WELCOME, rows, rewards, "log")
    assert found.passed
    assert "too few" in found.found


def log_of(n: int, propensities: np.ndarray | None = None) -> Log:
    rows, rewards = drawn(n)
    actions = np.random.default_rng(2).integers(0, 4, n)
    p = np.full(n, 0.25) if propensities is None else propensities
    return Log(rows=rows, actions=actions, rewards=rewards, propensities=p, size=4)


def test_a_uniform_log_is_enough_and_a_short_one_is_not():
    long, few = log_of(4_000), log_of(100)
    for log, passes in ((long, True), (few, False)):
        checks = {c.name: c for c in check_log(WELCOME, log, judge(WELCOME, log), "l")}
        assert checks["effective_sample"].passed is passes
        assert checks["log_calibration"].passed
        assert checks["log_regret"].passed is passes
        assert ("can not be told" in checks["log_regret"].found) is not passes


def told_by(log: Log, **changes: object) -> dict[str, Check]:
    """Give what the gate says by a log of a policy that always sends a short e-mail, action 0."""
    data = spec_file.to_data(WELCOME)
    data["policy"] = {"kind": "fixed", "action": {"variant": "short", "channel": "email"}}
    spec = spec_file.from_data(data | changes)
    return {c.name: c for c in check_log(spec, log, judge(spec, log), "l")}


@pytest.mark.parametrize("share", [1.0, 0.01])
def test_a_policy_that_earns_nothing_is_stopped_unless_chance_would_do_so(share: float):
    """About 500 rows say what it earns: a fifth of them would click, or one in five hundred."""
    log = log_of(4_000)
    clicks = log.rewards * (np.random.default_rng(4).random(len(log)) < share)
    log = replace(log, rewards=np.where(log.actions == 0, 0.0, clicks))
    check = told_by(log)["log_regret"]
    assert check.passed is (share < 1.0)
    assert "it would have earned 0 [0, " in check.found
    assert (check.value or 0.0) < 0.9  # a share of what was logged, with an interval


def test_a_policy_that_earns_the_most_on_every_row_passes():
    log = log_of(4_000)
    best = replace(log, rewards=np.where(log.actions == 0, 1.0, log.rewards))
    assert told_by(best)["log_regret"].passed


def test_a_log_that_can_not_tell_is_no_proof():
    """Nobody clicked at all; and propensities that are wrong."""
    log = log_of(4_000)
    silent = replace(log, rewards=np.zeros(len(log)))
    wrong = replace(log, rewards=np.where(log.actions == 0, 0.0, log.rewards))
    wrong = replace(wrong, propensities=np.full(len(log), 0.1))
    for given_log, told in (
        (silent, "every outcome of the log is 0"),
        (wrong, "not chosen as often"),
    ):
        check = told_by(given_log)["log_regret"]
        assert not check.passed
        assert check.value is None
        assert told in check.found


def test_propensities_that_are_too_small_are_found():
    log = log_of(4_000, np.full(4_000, 0.1))
    checks = {c.name: c for c in check_log(WELCOME, log, judge(WELCOME, log), "l")}
    assert not checks["log_calibration"].passed
