"""server/pb is what proto/ generates, byte for byte, and the contract is clean."""

import filecmp
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOLS = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}"}


def test_generated_code_is_current(tmp_path: Path):
    command = [sys.executable, ROOT / "proto/generate.py", tmp_path]
    subprocess.run(command, check=True, env=ENVIRONMENT)
    fresh = sorted(p.name for p in (tmp_path / "server/pb").iterdir())
    _, changed, missing = filecmp.cmpfiles(
        tmp_path / "server/pb", ROOT / "server/pb", fresh, shallow=False
    )
    kept = {p.name for p in (ROOT / "server/pb").iterdir()} - {"__init__.py", "__pycache__"}
    assert not changed + missing, "run: python proto/generate.py"
    assert kept == set(fresh)


def test_the_contract_lints():
    done = subprocess.run(
        [TOOLS / "buf", "lint"],
        cwd=ROOT / "proto",
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
