"""``banditctl demo`` plays a campaign and ends with the promised line."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAST = (
    r"demo: lift over random ([+-]\d+\.\d) % \[(-?\d+\.\d), (-?\d+\.\d)\], "
    r"(\d+) decisions, (\d+) rewards, (\d+) lost"
)


def test_the_demo_shows_a_lift_and_loses_nothing(tmp_path: Path):
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, "-m", "server", "demo", "--customers", "3000"],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "120", "PYTHONPATH": path, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = re.fullmatch(LAST, done.stdout.strip().splitlines()[-1])
    assert last, done.stdout
    lift, low, high = map(float, last.groups()[:3])
    decisions, rewards, lost = map(int, last.groups()[3:])
    assert low < lift < high
    assert high > 0  # the lift is 2.8 standard errors, so this fails once in a million runs
    assert lost == 0
    assert 3_000 < decisions < 3_100  # the two contrasting customers are decided for, too
    assert 100 < rewards < 3_000
    for shown in ("bandit", "random", "baseline", "no_contact", "Best for"):
        assert shown in done.stdout
    assert not list(tmp_path.glob("bandit-demo-*"))
