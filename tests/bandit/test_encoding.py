"""Stored posteriors: the same bytes for ever, and no damage goes unnoticed."""

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit import encoding
from bandit.actions import ActionSpace, Level
from bandit.errors import CorruptionError
from bandit.features import FeatureMap, default_terms
from bandit.posterior import (
    BetaBernoulliPosterior,
    GaussianPosterior,
    Noise,
    Outcomes,
    Posterior,
)

GOLDEN = Path(__file__).parents[1] / "golden"
KINDS = ("disjoint", "joint", "beta")


def empty(kind: str, *, variants: int = 2) -> Posterior:
    if kind == "beta":
        return BetaBernoulliPosterior(2 * variants, (1.0, 1.0))
    space = ActionSpace(
        variants=tuple(Level(name=f"v{i}") for i in range(variants)),
        channels=tuple(Level(name=f"c{i}") for i in range(1 if kind == "disjoint" else 2)),
    )
    return GaussianPosterior(FeatureMap(space=space, terms=default_terms(space), width=2), Noise())


def learned(kind: str) -> Posterior:
    """Fold sums of a few powers of two, exact on any machine but not in fewer bits."""
    posterior = empty(kind)
    x = np.array([[1.0, 0.5], [1.0, -0.25], [1.0, 0.0]])
    posterior.fold(
        Outcomes(x, np.array([0, 1, 0]), np.array([1.0, 0.25 + 2.0**-40, 0.5])), seq=2**40 + 5
    )
    return posterior


def same(one: Posterior, two: Posterior) -> bool:
    arrays = zip(one.arrays().values(), two.arrays().values(), strict=True)
    return (one.seq, one.count) == (two.seq, two.count) and all(
        np.array_equal(a, b) for a, b in arrays
    )


def sealed(body: bytes) -> bytes:
    return body + hashlib.blake2b(body, digest_size=32).digest()


BYTES = {kind: encoding.to_bytes(learned(kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read(kind: str):
    read = empty(kind)
    encoding.load(read, BYTES[kind])
    assert same(read, learned(kind))
    assert encoding.to_bytes(read) == BYTES[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_format_is_the_one_of_the_first_release(kind: str):
    """The files were written by release 0.1.0 from ``learned`` and never change."""
    golden = bytes.fromhex((GOLDEN / f"posterior-1-{kind}.hex").read_text())
    assert BYTES[kind] == golden
    read = empty(kind)
    encoding.load(read, golden)
    assert same(read, learned(kind))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5)
@given(damage=st.integers(1, 255))
def test_any_changed_byte_is_noticed(kind: str, damage: int):
    posterior = empty(kind)
    for place in range(len(BYTES[kind])):
        broken = bytearray(BYTES[kind])
        broken[place] ^= damage
        with pytest.raises(CorruptionError):
            encoding.load(posterior, bytes(broken))
    assert same(posterior, empty(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_any_truncation_is_noticed(kind: str):
    for end in range(len(BYTES[kind])):
        with pytest.raises(CorruptionError):
            encoding.load(empty(kind), BYTES[kind][:end])
    with pytest.raises(CorruptionError):
        encoding.load(empty(kind), BYTES[kind] + b"\0")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_another_model_is_noticed(kind: str, other: str):
    if kind != other:
        with pytest.raises(CorruptionError):
            encoding.load(empty(other), BYTES[kind])
    with pytest.raises(CorruptionError, match=r"fit|lacks"):
        encoding.load(empty(kind, variants=3), BYTES[kind])


def test_a_newer_format_or_a_foreign_file_is_refused():
    body = BYTES["beta"][:-32]
    newer = sealed(body[:4] + struct.pack("<H", 2) + body[6:])
    with pytest.raises(CorruptionError, match="format 2, this release reads 1"):
        encoding.load(empty("beta"), newer)
    with pytest.raises(CorruptionError):
        encoding.load(empty("beta"), sealed(b"ELSE" + body[4:]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_even_when_sealed(value: float):
    posterior, read = learned("beta"), empty("beta")
    posterior.arrays()["counts"][1, 1] = value
    with pytest.raises(CorruptionError, match="finite"):
        encoding.load(read, encoding.to_bytes(posterior))
    assert same(read, empty("beta"))


def test_the_digest_tells_posteriors_apart():
    digests = {encoding.digest(data) for data in BYTES.values()}
    assert len(digests) == 3
    assert {len(d) for d in digests} == {32}
    assert encoding.digest(encoding.to_bytes(learned("joint"))) in digests
