"""Random Fourier features: the kernel they stand for, their bits, and what they let be learned."""

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bandit.context import ContextField, ContextSchema
from bandit.errors import InvalidInputError
from bandit.experiment import Experiment
from bandit.features import INTERCEPT, WAVES, Encoder
from bandit.fourier import Fourier
from bandit.kernels.compiling import Floats
from bandit.snapshot import Asked
from bandit.spec_file import from_data, parse, to_data, to_json

GOLDEN = [
    [0.31832920457388675, 1.053622415429365],
    [0.9555072490955362, -0.42260276718500195],
    [0.19093377915622423, 0.35824578767850673],
]


def matern(distance: Floats) -> Floats:
    """Give the kernel at a distance in length scales."""
    r = math.sqrt(3.0) * distance
    return (1.0 + r) * np.exp(-r)


SCHEMA = ContextSchema(
    fields=(
        ContextField(name="a", kind="number", bounds=(-1, 1), required=True),
        ContextField(name="b", kind="number", bounds=(0, 10)),
        ContextField(name="c", kind="category", levels=("x", "y")),
        ContextField(name="d", kind="cyclic", period=24),
    )
)
ROW = st.tuples(
    st.floats(-1, 1),
    st.floats(-5, 15) | st.just(math.nan),
    st.sampled_from([0.0, 1.0, -1.0, math.nan]),
    st.floats(-48, 48) | st.just(math.nan),
)


def split(x: Floats, features: int) -> tuple[Floats, Floats]:
    """Give the columns of the fields and those of the waves."""
    return x[:, 1:-features], x[:, -features:]


# --- what they are ----------------------------------------------------------------------


@pytest.mark.parametrize("features", [64, 256, 1024])
@pytest.mark.parametrize("length_scale", [0.25, 1.0])
def test_products_of_features_approximate_the_matern_kernel(features: int, length_scale: float):
    numbers = tuple(
        ContextField(name=f"n{i}", kind="number", bounds=(-1, 1), required=True) for i in range(5)
    )
    encoder = Encoder(
        ContextSchema(fields=numbers), Fourier(features=features, length_scale=length_scale)
    )
    rows = np.random.default_rng(1).uniform(-1, 1, (200, 5))
    columns, waves = split(encoder.encode(rows), features)
    squares = ((columns[:, None] - columns[None]) ** 2).sum(axis=2) / 5
    error = waves @ waves.T - matern(np.sqrt(squares) / length_scale)
    # sqrt(1 / features) bounds the mean over all draws of frequencies; this is one draw
    assert np.sqrt((error**2).mean()) < 1.25 * math.sqrt(1.0 / features)
    assert abs(error).max() < 6.0 / math.sqrt(features)
    np.testing.assert_allclose((waves**2).sum(axis=1), 1.0, rtol=1e-12)


def test_the_error_falls_with_the_root_of_the_number():
    rows = np.random.default_rng(2).uniform(-1, 1, (100, 1))
    only = ContextSchema(
        fields=(ContextField(name="a", kind="number", bounds=(-1, 1), required=True),)
    )
    exact = matern(abs(rows - rows.T) / 0.5)
    errors = []
    for features in (16, 256):
        x = Encoder(only, Fourier(features=features, length_scale=0.5)).encode(rows)
        waves = split(x, features)[1]
        errors.append(float(np.sqrt(((waves @ waves.T - exact) ** 2).mean())))
    assert errors[1] < 0.5 * errors[0]


@given(rows=st.lists(ROW, min_size=1, max_size=5), features=st.sampled_from([2, 6, 64]))
def test_features_are_waves_of_the_encoded_fields(rows: list[tuple[float, ...]], features: int):
    fourier = Fourier(features=features, length_scale=0.7)
    packed = np.array(rows)
    columns, waves = split(Encoder(SCHEMA, fourier).encode(packed), features)
    np.testing.assert_array_equal(columns, Encoder(SCHEMA).encode(packed)[:, 1:])
    turns = columns @ fourier.frequencies(columns.shape[1], len(SCHEMA.fields))
    angles = 2.0 * math.pi * turns
    expected = np.stack([np.cos(angles), np.sin(angles)], axis=2).reshape(len(rows), features)
    np.testing.assert_allclose(waves, expected * math.sqrt(2.0 / features), atol=1e-12)


@given(rows=st.lists(ROW, min_size=2, max_size=8))
def test_one_row_has_the_bits_of_a_batch_and_another_encoder_gives_them_again(
    rows: list[tuple[float, ...]],
):
    packed = np.array(rows)
    fourier = Fourier(features=16)
    together = Encoder(SCHEMA, fourier).encode(packed)
    again = Encoder(SCHEMA, Fourier(features=16))
    alone = np.concatenate([again.encode(packed[i : i + 1]) for i in range(len(packed))])
    assert together.tobytes() == alone.tobytes()
    assert np.isfinite(together).all()


def test_the_first_frequencies_are_what_they_were():
    """Golden: a stored posterior is a posterior of these very features."""
    found = Fourier(features=4, length_scale=1.0).frequencies(3, 1) * (2.0 * math.pi)
    np.testing.assert_array_equal(found, GOLDEN)


def test_frequencies_do_not_change_when_more_are_asked_for():
    few, many = (Fourier(features=n).frequencies(7, 3) for n in (10, 64))
    np.testing.assert_array_equal(few, many[:, :5])


def test_frequencies_have_the_matern_spectrum_and_are_orthogonal_in_groups():
    turns = Fourier(features=1024, length_scale=1.0).frequencies(8, 1) * (2.0 * math.pi)
    group = turns[:, :8]
    products = group.T @ group
    np.testing.assert_allclose(products / np.diag(products), np.eye(8), atol=1e-10)
    squares = (turns**2).sum(axis=0)
    # 512 frequencies, false alarm below 1e-6 each, and fixed anyway
    assert stats.kstest(squares / 8, stats.f(8, 3).cdf).pvalue > 1e-6
    directions = turns / np.sqrt(squares)
    assert abs(directions.mean(axis=1)).max() < 6.0 / math.sqrt(8 * 512)


def test_columns_have_names_and_owners():
    encoder = Encoder(SCHEMA, Fourier(features=4))
    assert len(set(encoder.names)) == encoder.width == len(encoder.owners)
    assert encoder.names[-4:] == ["(cos 1)", "(sin 1)", "(cos 2)", "(sin 2)"]
    owned = dict(zip(encoder.names, encoder.owners, strict=True))
    assert owned["(intercept)"] == INTERCEPT
    assert owned["(sin 2)"] == WAVES
    assert [owned[name] for name in ("a", "b missing", "c=(other)", "cos(d)")] == [0, 1, 2, 3]


# --- in a specification -----------------------------------------------------------------


def whole(**policy: object) -> dict[str, object]:
    return {
        "name": "rings",
        "actions": {"variants": ["in", "out"], "channels": ["email"]},
        "context": [
            {"name": n, "kind": "number", "bounds": [-1, 1], "required": True} for n in "xy"
        ],
        "outcome": {"window": 60, "rewards": [{"name": "r"}], "aggregation": "max"},
        "policy": policy,
    }


def test_a_specification_is_read_and_written():
    spec = from_data(whole(fourier={}))
    assert spec.policy.fourier == Fourier()
    assert spec.encoder.width == spec.features.width == 3 + Fourier().features
    assert parse(to_json(spec), "json").policy == spec.full_policy
    assert to_data(spec)["policy"]["fourier"] == {
        "features": Fourier().features,
        "length_scale": Fourier().length_scale,
    }
    linear = from_data(whole())
    assert "fourier" not in to_data(linear)["policy"]
    assert linear.encoder.width == 3


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"policy": {"fourier": {"features": 7}}}, "policy.fourier.features"),
        ({"policy": {"fourier": {"features": 2048}}}, "policy.fourier.features"),
        ({"policy": {"fourier": {"length_scale": 0.0}}}, "policy.fourier.length_scale"),
        ({"policy": {"fourier": {"length_scale": 1e3}}}, "policy.fourier.length_scale"),
        ({"policy": {"fourier": {}}, "context": []}, "policy.fourier"),
        ({"policy": {"fourier": {}, "terms": [{"of": "variant"}]}}, "policy.fourier"),
        ({"policy": {"fourier": {}, "posterior": "beta_bernoulli"}}, "policy.posterior"),
        (
            {
                "policy": {"fourier": {"features": 1024}},
                "actions": {"variants": ["a", "b"], "channels": ["c", "d"]},
            },
            "policy.terms",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_its_path(changes: dict[str, object], path: str):
    with pytest.raises(InvalidInputError) as caught:
        from_data({**whole(), **changes})
    assert caught.value.field == path


# --- what they are for ------------------------------------------------------------------


@cache
def regret(linear: bool) -> float:  # noqa: FBT001  cached by it
    """Give the share of customers who get the worse of two actions, the last 500 of 2,000.

    Inside a ring ``in`` pays 1, outside ``out`` does: no line tells them apart.
    """
    policy = {"noise": {"sd": 0.2}} if linear else {"noise": {"sd": 0.2}, "fourier": {}}
    of = Experiment(from_data(whole(**policy)), secret=b"sixteen bytes or more")
    random = np.random.default_rng(3)
    rows = random.uniform(-1, 1, (2_000, 2))
    best = (np.hypot(rows[:, 0], rows[:, 1]) > 0.8).astype(int)
    noise, names = random.normal(0, 0.2, 2_000), random.integers(0, 2**32, (2_000, 4), np.uint32)
    posterior, chosen = of.prior(), np.zeros(2_000, dtype=np.int64)
    for first in range(0, 2_000, 250):
        part = slice(first, first + 250)
        belief = of.publish(posterior, version=0).belief
        asked = Asked(
            of.spec.encoder.encode(rows[part]),
            np.zeros(250, np.int64),
            np.ones((1, 2), np.bool_),
            names[part],
        )
        chosen[part] = belief.draw(asked, 0.0).actions
        outcomes = (chosen[part] == best[part]) + noise[part]
        of.learn(posterior, rows[part], chosen[part].tolist(), outcomes, seq=first + 250)
    return float((chosen != best)[-500:].mean())


def test_a_ring_is_learned_with_them_and_not_without():
    assert regret(linear=True) > 0.3
    assert regret(linear=False) < 0.1
