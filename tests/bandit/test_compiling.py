"""Compiled code is kept under the name of the files it was made from."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = "from bandit.kernels import arithmetic, compiling; print(compiling._CACHE); print({})"


def run(folder: Path, expression: str, cache: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(expression)],
        cwd=folder,
        env={"NUMBA_CACHE_DIR": str(cache), "PATH": "", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_an_edit_of_a_callee_is_not_answered_from_the_cache(tmp_path: Path):
    """``logistic`` calls ``exp``; Numba alone would look only at the file of ``logistic``."""
    shutil.copytree(
        ROOT / "bandit", tmp_path / "bandit", ignore=shutil.ignore_patterns("__pycache__")
    )
    kernels = tmp_path / "bandit" / "kernels"
    (kernels / "calling.py").write_text(
        '"""Calls another file."""\n\nfrom bandit.kernels.arithmetic import exp\n'
        "from bandit.kernels.compiling import kernel\n\n\n@kernel\n"
        'def twice(x: float) -> float:\n    """Double."""\n    return 2.0 * exp(x)\n'
    )
    expression = "__import__('bandit.kernels.calling', fromlist=['x']).twice(0.0)"
    cache = tmp_path / "cache"
    folder, value = run(tmp_path, expression, cache)
    assert value == "2.0"
    assert run(tmp_path, expression, cache) == [folder, value]
    source = kernels / "arithmetic.py"
    edited = source.read_text().replace(
        "return p * np.int64(power)", "return 3.0 * p * np.int64(power)"
    )
    assert edited != source.read_text()
    source.write_text(edited)
    other, value = run(tmp_path, expression, cache)
    assert (other != folder, value) == (True, "6.0")
