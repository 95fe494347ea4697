"""Compiled code is kept under the name of the files it was made from."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = "from {0} import calling; print(calling.folder); print(calling.twice(0.0))"
CALLING = """
from pathlib import Path
from bandit.kernels import compiling
from bandit.kernels.arithmetic import exp
from bandit.kernels.compiling import kernel

folder = compiling._cache_folder(Path(__file__).parent)


@kernel
def twice(x: float) -> float:
    return 2.0 * exp(x)
"""


def run(folder: Path, package: str, cache: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(package)],
        cwd=folder,
        env={"NUMBA_CACHE_DIR": str(cache), "PATH": "", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.parametrize("package", ["bandit.kernels", "sims.kernels"])
def test_an_edit_of_a_callee_is_not_answered_from_the_cache(package: str, tmp_path: Path):
    """``twice`` calls ``exp``; Numba alone would look only at the file of ``twice``."""
    shutil.copytree(
        ROOT / "bandit", tmp_path / "bandit", ignore=shutil.ignore_patterns("__pycache__")
    )
    source = tmp_path / "bandit" / "kernels" / "arithmetic.py"
    calling = tmp_path / package.replace(".", "/") / "calling.py"
    calling.parent.mkdir(parents=True, exist_ok=True)
    for folder in (calling.parent, calling.parent.parent):
        (folder / "__init__.py").touch()
    calling.write_text(CALLING)
    cache = tmp_path / "cache"
    kept, value = run(tmp_path, package, cache)
    assert value == "2.0"
    assert run(tmp_path, package, cache) == [kept, value]
    edited = source.read_text().replace(
        "return p * np.int64(power)", "return 3.0 * p * np.int64(power)"
    )
    assert edited != source.read_text()
    source.write_text(edited)
    other, value = run(tmp_path, package, cache)
    assert (other != kept, value) == (True, "6.0")
