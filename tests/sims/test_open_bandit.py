"""The Open Bandit sample is read as published, and nothing else is."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from bandit.errors import InvalidInputError
from sims.datasets import open_bandit


@pytest.mark.parametrize("name", ["random", "bts"])
def test_a_sample_is_as_published(data_folder: Path, name: str):
    path = data_folder / "obd" / f"{name}_all.csv.gz"
    log = open_bandit.load(path)
    assert open_bandit.policy(path) == name
    assert (len(log), log.size) == (10_000, 80)
    assert log.rewards.sum() == open_bandit.CLICKS[name]
    assert log.positions is not None
    assert set(log.positions.tolist()) == {0, 1, 2}
    assert set(log.actions.tolist()) == set(range(80))
    assert log.times is not None
    assert (np.diff(log.times) >= 0).all()
    if name == "random":
        np.testing.assert_array_equal(log.propensities, 0.0125)
    else:
        assert log.propensities.min() < 0.001
        assert log.propensities.max() > 0.1
    schema = open_bandit.fields(path)
    assert log.rows is not None
    for place, field in enumerate(schema):
        used = np.unique(log.rows[:, place])
        np.testing.assert_array_equal(used, np.arange(len(field.levels)))


def test_the_first_row_is_read_as_it_stands(data_folder: Path):
    log = open_bandit.load(data_folder / "obd" / "bts_all.csv.gz")
    assert log.positions is not None
    assert log.times is not None
    first = (log.actions[0], log.positions[0], log.rewards[0], log.propensities[0])
    assert first == (79, 1, 0.0, 0.087125)
    assert log.times[0] == pytest.approx(1_574_553_617.004101, abs=1e-6)


def test_another_file_is_refused(data_folder: Path, tmp_path: Path):
    data = gzip.decompress((data_folder / "obd" / "bts_all.csv.gz").read_bytes())
    plain = tmp_path / "bts.csv"
    plain.write_bytes(data)
    assert open_bandit.policy(plain) == "bts"
    plain.write_bytes(data.replace(b"0.087125", b"0.087126", 1))
    with pytest.raises(InvalidInputError, match="is no Open Bandit sample: sha256"):
        open_bandit.load(plain)
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(gzip.compress(data)[:-200])
    for path in (cut, tmp_path / "absent.csv"):
        with pytest.raises(InvalidInputError, match="can not be read"):
            open_bandit.load(path)
