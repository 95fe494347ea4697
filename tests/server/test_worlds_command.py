"""``banditctl worlds``: lists, shows, fits and checks; its status is the verdict."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bandit import spec_file
from bandit.errors import BanditError
from server.commands import app
from sims import worlds
from sims.worlds import Course

SPEC = """
name = "small"
actions = { variants = ["a", "b"], channels = ["email"] }
context = [{ name = "age", kind = "number", bounds = [18, 80] }]
outcome = { window = 60, rewards = [{ name = "click" }] }
"""
WORLD = """
reward = "click"
base = -1.0
traits = [{ field = "age", low = 18, high = 80 }]
effects = [{ adds = 1.0, variant = "b", slope = "age" }]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with an experiment, its world, and a log of 6,000 rows."""
    (tmp_path / "spec.toml").write_text(SPEC)
    (tmp_path / "true.toml").write_text(WORLD)
    spec = spec_file.parse(SPEC, "toml")
    course = Course(worlds.read(tmp_path / "true.toml"), spec, seed=1)
    arrivals = course.arrivals(0, 6_000)
    expected = course.expected(arrivals, 0, course.history())
    actions = np.arange(6_000) % 2
    rewards = course.respond(arrivals, 0, actions, expected).rewards
    lines = [
        f"{age!r},{'ab'[action]},{reward:.0f}"
        for age, action, reward in zip(
            arrivals.rows[:, 0].tolist(), actions.tolist(), rewards.tolist(), strict=True
        )
    ]
    (tmp_path / "log.csv").write_text("\n".join(["age,variant,outcome", *lines, ""]))
    return tmp_path


def run(*arguments: str | Path, status: int = 0) -> str:
    done = CliRunner().invoke(app, ["worlds", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == status, done.output
    return done.output


def test_the_worlds_that_ship_are_listed():
    shown = run("list")
    assert all(name in shown for name in worlds.names())


@pytest.mark.parametrize("name", worlds.names())
def test_a_world_is_shown(name: str):
    shown = run("show", name)
    assert "the best action for each customer" in shown
    assert shown == run("show", name, "--seed", "1")
    assert shown != run("show", name, "--seed", "2")


def test_a_world_of_ones_own_is_shown(folder: Path):
    assert "optimum" in run("show", folder / "true.toml", "--spec", folder / "spec.toml")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["show", "flat-earth"], "no world 'flat-earth'; there are"),
        (["show", "mine.toml"], "--spec: is needed"),
        (["show", "wheel", "--spec", "spec.toml"], "--spec: goes with a world's file"),
        (["fit", "log.csv", "--spec", "spec.toml", "--out", "world.json"], "ends in .toml"),
        (["fit", "log.csv", "--spec", "spec.toml", "--out", "no/w.toml"], "is no folder"),
        (["fit", "log.csv", "--spec", "no.toml", "--out", "w.toml"], "no.toml: can not be read"),
        (["fit", "no.csv", "--spec", "spec.toml", "--out", "w.toml"], "no.csv: can not be read"),
        (
            ["fit", "log.csv", "--spec", "spec.toml", "--out", "w.toml", "--context", "age"],
            "--context: needs FIELD=COLUMN",
        ),
        (
            ["fit", "log.csv", "--spec", "spec.toml", "--out", "w.toml", "--strength", "0"],
            "strength: must be in",
        ),
        (
            ["fit", "log.csv", "--spec", "spec.toml", "--out", "w.toml", "--reward", "x"],
            "reward: no reward 'x'; known: click",
        ),
        (
            ["check", "true.toml", "--log", "log.csv", "--spec", "spec.toml", "--outcome", "y"],
            "log.csv: columns: no column 'y'",
        ),
    ],
)
def test_what_can_not_be(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
):
    monkeypatch.chdir(folder)
    with pytest.raises(BanditError) as caught:
        run(*arguments)
    assert told in str(caught.value)
    assert not (folder / "w.toml").exists()


def test_a_world_is_fitted_and_checked(folder: Path):
    log, spec, out = folder / "log.csv", folder / "spec.toml", folder / "mine.world.toml"
    shown = run("fit", log, "--out", out, "--spec", spec)
    assert "verdict: reproduced; 0 of" in shown
    assert "variant b" in shown
    assert (folder / "mine.contexts.parquet").exists()
    again = run("check", out, "--log", log, "--spec", spec, "--held-out", "0.3")
    assert again[again.index("World and log") :] == shown[shown.index("World and log") :]
    assert "reproduced" in run("check", folder / "true.toml", "--log", log, "--spec", spec)
    other = folder / "other.toml"
    other.write_text(WORLD.replace("-1.0", "-2.0"))
    assert "NOT reproduced" in run("check", other, "--log", log, "--spec", spec, status=1)


def test_what_was_never_sent_is_told(folder: Path):
    (folder / "wide.toml").write_text(SPEC.replace('"b"]', '"b", "c"]'))
    shown = run(
        "fit", folder / "log.csv", "--out", folder / "w.toml", "--spec", folder / "wide.toml",
        "--strength", "1",
    )  # fmt: skip
    assert "1 of 3 actions were never sent" in shown
