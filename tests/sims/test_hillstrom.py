"""The loader takes the published campaign and nothing else."""

import gzip
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from bandit import spec_file
from bandit.errors import InvalidInputError
from sims.datasets import hillstrom
from sims.datasets.hillstrom import Row
from sims.worlds import EXAMPLES

FIRST = {
    "recency": 10.0,
    "history": 142.44,
    "mens": True,
    "womens": False,
    "newbie": False,
    "zip_code": "Surburban",
    "channel": "Phone",
}


@pytest.fixture(scope="module")
def file(data_folder: Path) -> Path:
    return data_folder / "hillstrom.csv.gz"


@pytest.fixture(scope="module")
def rows(file: Path) -> list[Row]:
    return hillstrom.load(file)


def test_the_campaign_is_as_published(rows: list[Row]):
    assert len(rows) == 64_000
    assert Counter(row.variant for row in rows) == {
        "Mens E-Mail": 21_307,
        "Womens E-Mail": 21_387,
        "No E-Mail": 21_306,
    }
    means = {
        name: sum(r.outcomes[name] for r in rows if r.variant == "Mens E-Mail") / 21_307
        for name in hillstrom.REWARDS
    }
    assert means == pytest.approx(
        {"visit": 0.182757, "conversion": 0.012531, "spend": 1.422617}, abs=5e-7
    )


def test_a_row_is_typed(rows: list[Row]):
    assert rows[0].context == FIRST
    assert {type(row.context["mens"]) for row in rows} == {bool}


def test_every_context_fits_the_experiment(rows: list[Row]):
    spec = spec_file.parse((EXAMPLES / "hillstrom.toml").read_text(), "toml")
    for row in rows:
        values = spec.schema.row(row.context)
        assert -1.0 not in values[5:]  # no category that was not declared
    assert {v.name for v in spec.actions.variants} == {row.variant for row in rows}


def test_it_need_not_be_compressed(file: Path, rows: list[Row], tmp_path: Path):
    plain = tmp_path / "hillstrom.csv"
    plain.write_bytes(gzip.decompress(file.read_bytes()))
    assert hillstrom.load(plain) == rows


def changed(data: bytes) -> bytes:
    return gzip.compress(data.replace(b"Phone", b"phone", 1))


def shortened(data: bytes) -> bytes:
    return gzip.compress(data[: len(data) // 2])


def cut(data: bytes) -> bytes:
    return gzip.compress(data)[:-100]


def spoiled(data: bytes) -> bytes:
    packed = bytearray(gzip.compress(data))
    packed[len(packed) // 2] ^= 0xFF
    return bytes(packed)


@pytest.mark.parametrize("spoil", [changed, shortened, cut, spoiled, lambda _: b"", lambda _: b"x"])
def test_another_content_is_refused(file: Path, tmp_path: Path, spoil: Callable[[bytes], bytes]):
    other = tmp_path / "other.csv.gz"
    other.write_bytes(spoil(gzip.decompress(file.read_bytes())))
    with pytest.raises(InvalidInputError) as caught:
        hillstrom.load(other)
    assert caught.value.field == str(other)


def test_a_missing_file_is_refused(tmp_path: Path):
    for path in (tmp_path / "missing.csv", tmp_path):
        with pytest.raises(InvalidInputError, match="can not be read"):
            hillstrom.load(path)


def test_an_unpacked_giant_is_not_unpacked(tmp_path: Path):
    """A small file can unfold into gigabytes; the loader stops at what the campaign can be."""
    bomb = tmp_path / "bomb.csv.gz"
    with gzip.open(bomb, "wb") as out:
        for _ in range(80):
            out.write(bytes(2**20))
    with pytest.raises(InvalidInputError):
        hillstrom.load(bomb)
