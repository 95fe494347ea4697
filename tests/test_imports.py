"""Who may import whom, and whose ``bandit`` is imported at all."""

import subprocess
import sys
from pathlib import Path

import pytest

import bandit

ROOT = Path(__file__).parents[1]
TOOLS = Path(sys.executable).parent


def test_arrows_point_down():
    done = subprocess.run(
        [TOOLS / "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("content", ["", "PROJECT = 'PyCQA'\n"])
def test_a_foreign_bandit_is_told_apart(tmp_path: Path, content: str):
    (tmp_path / "bandit").mkdir()
    (tmp_path / "bandit/__init__.py").write_text(content)
    done = subprocess.run(
        [sys.executable, "-c", "import server.__main__; server.__main__.main()"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: the package 'bandit' at {tmp_path}")


def test_ours_says_so():
    assert bandit.PROJECT == "banditctl"
