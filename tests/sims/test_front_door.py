"""What ``from sims import ...`` gives, and what it costs."""

import subprocess
import sys
from pathlib import Path

import pytest

import sims

ROOT = Path(__file__).parents[2]


def test_the_front_door_has_what_it_says():
    from sims import evaluate, read, rollout, validate
    from sims.gate import validate as gate_validate
    from sims.log import read as read_log
    from sims.ope.evaluate import evaluate as ope_evaluate
    from sims.rollouts import rollout as play

    assert (evaluate, read, rollout, validate) == (ope_evaluate, read_log, play, gate_validate)
    assert set(sims.__all__) <= set(dir(sims))
    with pytest.raises(AttributeError, match="no attribute 'roulette'"):
        sims.roulette  # noqa: B018


def test_no_function_hides_a_room():
    rooms = {path.name for path in (ROOT / "sims").iterdir() if (path / "__init__.py").exists()}
    assert not rooms & set(sims.__all__)
    assert not set(sims.__all__) & {path.stem for path in (ROOT / "sims").glob("*.py")}


def test_the_door_alone_opens_no_room():
    told = "import sims, sys; print([m for m in sys.modules if m.startswith('sims.')])"
    command = [sys.executable, "-c", told]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
