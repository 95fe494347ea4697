"""``banditctl simulate``: what a user sees, what is written, and what is refused."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from bandit.errors import BanditError
from server.commands import app
from server.commands.simulate import _policies
from sims.worlds import EXAMPLES, catalogue

SMALL = ["--customers", "200", "--replications", "2"]


def run(*words: str) -> tuple[str, BaseException | None]:
    """Give what the command printed, and what it failed with."""
    done = CliRunner().invoke(app, ["simulate", *words], env={"COLUMNS": "100"})
    return done.output, done.exception


def test_a_preset_is_played_and_written(tmp_path: Path):
    out = tmp_path / "there" / "it is"
    asked = ["--preset", "stationary", "--policy", "ts=thompson", "--policy", "ucb=linucb"]
    shown, failed = run(*asked, *SMALL, "--out", str(out))
    assert failed is None, shown
    for word in ("regret", "ts", "ucb", "uniform", "baseline", "power 80 %", "learning at once"):
        assert word in shown
    written = json.loads((out / "rollout.json").read_text())
    assert [one["policy"] for one in written["figures"]] == ["ts", "ucb", "uniform", "baseline"]
    assert written["learning"] == {"kind": "AtOnce"}
    table = pq.read_table(out / "rollout.parquet")
    assert table.num_rows == 4 * 50
    assert table["regret"][49].as_py() == written["figures"][0]["regret"]["mean"]
    shown = set(pq.read_table(out / "report.parquet")["chart"].to_pylist())
    assert {"regret", "allocation-1", "detection"} <= shown
    assert "<svg" in (out / "report.html").read_text()
    assert pq.read_table(out / "replications.parquet").num_rows == 4 * 2 * 50
    assert pq.read_table(out / "allocation.parquet").num_rows == 4 * 50 * 10


def test_files_and_a_cadence():
    spec, world = EXAMPLES / "spring_sale.toml", EXAMPLES / "spring_sale_world.toml"
    policy = f"other={catalogue.PRESETS / 'stationary.toml'}"
    asked = [str(spec), "--world", str(world), "--policy", policy, "--publish-every", "50"]
    shown, failed = run(*asked, "--publish-seconds", "30", *SMALL)
    assert failed is None, shown
    assert "published every 50 outcomes or 30 s" in shown
    assert "other" in shown


BAD = {
    "nothing": ([], "spec: name a file, or a --preset"),
    "no replications": (["--preset", "stationary", "--replications", "0"], "replications: must be"),
    "no such preset": (["--preset", "paradise"], "no world 'paradise'; there are cold-start"),
    "two worlds": (["--preset", "wheel", "--world", "w.toml"], "world: goes without --preset"),
    "no world": ([str(EXAMPLES / "hillstrom.toml")], "no hillstrom.world.toml beside"),
    "no such file": (["nowhere.toml"], "nowhere.toml: can not be read"),
    "another experiment's world": (
        [str(EXAMPLES / "hillstrom.toml"), "--preset", "stationary"],
        "reward",
    ),
    "both ways": (
        ["--preset", "stationary", "--at-once", "--publish-every", "5"],
        "at_once: goes without",
    ),
    "a server at once": (["--preset", "stationary", "--through-server"], "give --publish-every"),
    "no label": (["--preset", "stationary", "--policy", "linucb"], "is not LABEL=KIND"),
    "a label twice": (
        ["--preset", "stationary", "--policy", "a=linucb", "--policy", "a=uniform"],
        "repeats the label 'a'",
    ),
    "no such kind": (["--preset", "stationary", "--policy", "a=oracle"], "'oracle' is none of"),
    "a huge number": (["--preset", "stationary", "--customers", "10000000000"], "customers: must"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_can_not_be_is_told_in_one_line(name: str):
    words, message = BAD[name]
    _, failed = run(*words)
    assert isinstance(failed, BanditError)
    assert message in str(failed)


@pytest.mark.parametrize(
    ("world", "message"),
    [
        ('reward = "clik"', "reward: no reward 'clik' in the experiment; there are visit, conv"),
        (
            'reward = "visit"\neffects = [{ adds = 1, variant = "Mens" }]',
            "effects[0]: no variant 'Mens'; there are Mens E-Mail, Womens E-Mail, No E-Mail",
        ),
        ('reward = "visit"\ntraits = [{ field = "ag", low = 1, high = 2 }]', "no 'ag' in the con"),
    ],
)
def test_a_world_that_does_not_fit_is_named_with_what_would(
    tmp_path: Path, world: str, message: str
):
    (tmp_path / "w.toml").write_text(world)
    _, failed = run(str(EXAMPLES / "hillstrom.toml"), "--world", str(tmp_path / "w.toml"))
    assert isinstance(failed, BanditError)
    assert str(failed).startswith(f"{tmp_path / 'w.toml'}: ")
    assert message in str(failed)


def test_a_folder_that_can_not_be_made(tmp_path: Path):
    (tmp_path / "file").touch()
    _, failed = run("--preset", "stationary", *SMALL, "--out", str(tmp_path / "file" / "x"))
    assert isinstance(failed, BanditError)
    assert str(failed).startswith("out: ")


def test_a_policy_may_be_named_in_several_ways():
    spec = catalogue.preset("stationary").spec
    found = _policies(spec, ["a=thompson", "b=fixed:discount/push", "c=epsilon-greedy"])
    assert found is not None
    assert [p.kind for p in found.values() if not isinstance(p, str)] == [
        "thompson_sampling",
        "fixed",
        "epsilon_greedy",
    ]
    assert _policies(spec, []) is None
