"""The main job on real input: the campaign's 64,000 customers through a real server."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAST = r"matched visit rate: (0\.\d{4}) \[(0\.\d{4}), (0\.\d{4})\] on (\d+) rows"


def test_a_policy_learns_to_choose_the_mail(data_folder: Path, tmp_path: Path):
    """One of the five seeds; uniform earns .1468, and the gate is .172."""
    done = subprocess.run(
        [sys.executable, "-m", "server", "replay", "--data", data_folder / "hillstrom.csv.gz"],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "120", "PYTHONPATH": _python_path()},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    last = re.fullmatch(LAST, done.stdout.strip().splitlines()[-1])
    assert last, done.stdout
    rate, low, high, rows = map(float, last.groups())
    assert rate > 0.172
    assert low < rate < high
    assert abs(rows - 64_000 / 3) < 5 * (64_000 * 2 / 9) ** 0.5
    for policy, shown in (
        ("uniform", "0.1468"),
        ("Mens E-Mail", "0.1828"),
        ("Womens E-Mail", "0.1514"),
        ("No E-Mail", "0.1062"),
        ("this policy", last[1]),
    ):
        assert re.search(rf"{policy} +│ +\d+ │ {shown} ", done.stdout), policy
    assert list(tmp_path.iterdir()) == []


def _python_path() -> str:
    return f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
