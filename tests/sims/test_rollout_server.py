"""A rollout through a real server, over a real socket: the same decisions, bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from bandit.errors import InvalidInputError
from bandit.spec_file import to_json
from server.commands import app, through_server
from sims.rollouts import Plan, Published, Shard, plan_of, reduce, task
from sims.rollouts.published import Embedded
from sims.worlds import Fatigue, Traffic
from tests.sims.test_rollout_published import plan, spec, world

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Published]] = {
    "by outcomes": ({}, {}, Published(outcomes=25, seconds=86_400.0)),
    "by time": ({}, {}, Published(outcomes=1_000, seconds=900.0)),
    "by 8300000.000000001 us": ({}, {}, Published(outcomes=1_000, seconds=8.3)),
    "by both, fading, customers who tire": (
        {"policy": {"half_life": 3_600.0, "draws": 32}},
        {
            "fatigue": Fatigue(per_message=0.5, half_life=1.0),
            "traffic": Traffic(per_hour=120.0, customers=40),
        },
        Published(outcomes=9, seconds=300.0),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_server_makes_the_same_decisions(name: str):
    parts, its, learning = CASES[name]
    of = plan(
        spec(**parts),
        world(**its),
        learning,
        customers=120 if "fading" in name or "us" in name else 300,
    )
    told: list[int] = []
    found = through_server.compare(of, told.append)
    assert found.difference is None
    assert found.decisions == sum(told) == of.customers
    for mine, theirs in zip(task(of, Shard(0, 1)), found.track, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert reduce(of, [found.track]).each("regret", "policy")[0, -1] > 0.0


@pytest.mark.parametrize(
    ("break_it", "column"),
    [("secret", None), ("publication", "versions"), ("reward", "propensities")],
)
def test_a_difference_is_found(break_it: str, column: str | None, monkeypatch: pytest.MonkeyPatch):
    learning = Published(outcomes=20, seconds=86_400.0)
    own = [{"of": "context:variant:channel"}]  # exact propensities, so that a hair shows
    of = spec(policy={"terms": own})
    asked = plan(of, world(), learning)
    if break_it == "secret":
        whole = Plan.experiment
        monkeypatch.setattr(Plan, "experiment", lambda self, policy, _: whole(self, policy, 1))
    elif break_it == "publication":
        monkeypatch.setattr(Embedded, "publish", Embedded.tell)
    else:
        tell = Embedded.tell
        monkeypatch.setattr(
            Embedded,
            "tell",
            lambda self, told: tell(self, told._replace(rewards=[r + 1e-9 for r in told.rewards])),
        )
    found = through_server.compare(asked, lambda _: None)
    assert found.difference is not None
    assert found.difference.policy == "policy"
    if column is not None:
        assert found.difference.column in (column, "actions")


def test_learning_at_once_has_no_server():
    at_once = plan_of(spec(), world(), customers=10, replications=1)
    with pytest.raises(InvalidInputError, match="--publish-every"):
        through_server.compare(at_once, lambda _: None)


def test_the_command_compares(tmp_path: Path):
    (tmp_path / "four.json").write_text(to_json(spec()))
    (tmp_path / "four.world.toml").write_text(
        'reward = "click"\nbase = -1.0\ngenerated = { levels = 0.8 }\n'
    )
    command = ["simulate", str(tmp_path / "four.json"), "--customers", "60", "--replications", "1"]
    asked = [*command, "--publish-every", "20", "--through-server"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert "the same 180 decisions, bit for bit" in done.output
