"""Features and terms, against one explicit design vector per action."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.actions import FACTORS, ActionSpace, Level
from bandit.context import ContextField, ContextSchema
from bandit.errors import InvalidInputError
from bandit.features import Encoder, FeatureMap, Term, default_terms
from bandit.kernels.compiling import Floats

NAMES = ("context", *FACTORS)


def space(v: int, c: int, s: int) -> ActionSpace:
    variants, channels, slots = (
        tuple(Level(name=f"{letter}{i}") for i in range(n))
        for letter, n in zip("vcs", (v, c, s), strict=True)
    )
    return ActionSpace(variants=variants, channels=channels, slots=slots)


def terms(*of: str) -> tuple[Term, ...]:
    return tuple(Term(of=name) for name in of)


def design(actions: ActionSpace, of: tuple[str, ...], x: Floats, action: int) -> Floats:
    """Give phi(x, a) the obvious way: one Kronecker product of one-hot vectors per term."""
    parts = []
    for names in of:
        part = np.ones(1)
        for column, (factor, levels) in enumerate(zip(FACTORS, actions.factors, strict=True)):
            if factor in names.split(":"):
                part = np.kron(part, np.eye(len(levels))[actions.table[action, column]])
        parts.append(np.kron(part, x) if "context" in names.split(":") else part)
    return np.concatenate(parts)


def scattered(features: FeatureMap, x: Floats, action: int) -> Floats:
    """Give phi(x, a) as the kernels see it: cells, offsets and crossed."""
    phi = np.zeros(features.weights)
    for t, first in enumerate(features.offsets):
        cell = features.cells[t, action]
        if features.crossed[t]:
            phi[first + cell * len(x) : first + (cell + 1) * len(x)] = x
        else:
            phi[first + cell] = 1.0
    return phi


@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    of=st.lists(
        st.lists(st.sampled_from(NAMES), min_size=1, unique=True).map(":".join),
        max_size=4,
        unique_by=lambda name: frozenset(name.split(":")),
    ),
    width=st.integers(1, 3),
)
def test_cells_and_offsets_make_the_obvious_design(
    sizes: tuple[int, int, int], of: list[str], width: int
):
    if not any(set(name.split(":")) == set(FACTORS) for name in of):
        of = [*of, "variant:channel:slot"]  # so that no two actions are alike
    features = FeatureMap(space=space(*sizes), terms=terms(*of), width=width)
    x = np.arange(1.0, width + 1.0)
    for action in range(features.space.size):
        expected = design(features.space, tuple(of), x, action)
        np.testing.assert_array_equal(scattered(features, x, action), expected)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((1, 1, 1), ["context:variant"]),
        ((3, 1, 1), ["context:variant"]),
        ((1, 3, 1), ["context:channel"]),
        ((1, 1, 3), ["context:slot"]),
        ((2, 2, 1), ["context", "context:variant", "context:channel", "variant:channel"]),
        (
            (2, 2, 2),
            [
                "context",
                "context:variant",
                "context:channel",
                "context:slot",
                "variant:channel",
                "variant:slot",
                "channel:slot",
            ],
        ),
    ],
)
def test_default_terms_follow_the_factors_with_a_choice(
    sizes: tuple[int, int, int], expected: list[str]
):
    assert [term.of for term in default_terms(space(*sizes))] == expected


@pytest.mark.parametrize(
    ("sizes", "of", "is_disjoint"),
    [
        ((3, 1, 1), ("context:variant",), True),
        ((3, 2, 1), ("context:variant:channel",), True),
        ((3, 2, 1), ("context:variant:channel:slot",), True),
        ((3, 1, 1), ("variant",), False),
        ((3, 1, 1), ("context", "variant"), False),
        ((3, 2, 1), ("context:variant", "context:channel"), False),
    ],
)
def test_disjoint_is_one_term_with_weights_for_every_action(
    sizes: tuple[int, int, int], of: tuple[str, ...], *, is_disjoint: bool
):
    features = FeatureMap(space=space(*sizes), terms=terms(*of), width=2)
    assert features.is_disjoint is is_disjoint
    blocks, weights = (
        (features.space.size, 2) if is_disjoint else (1, len(features.prior_precision))
    )
    assert (features.blocks, features.weights) == (blocks, weights)


def test_every_weight_has_its_terms_prior():
    pair = (Term(of="context:variant", prior_sd=0.5), Term(of="channel", prior_sd=2.0))
    features = FeatureMap(space=space(2, 3, 1), terms=pair, width=2)
    np.testing.assert_array_equal(features.prior_precision, [4.0] * 4 + [0.25] * 3)
    alone = FeatureMap(space=space(2, 1, 1), terms=pair[:1], width=2)
    np.testing.assert_array_equal(alone.prior_precision, [4.0] * 2)


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ((), "1 to 16"),
        (("variant:context", "context:variant", "channel"), "repeated"),
        (("context:variant",), "no term names channel"),
        (("variant:channel",), "2500 weights in a block"),
        (("context:variant:channel",), "statistics"),
    ],
)
def test_terms_that_can_not_work_are_refused(of: tuple[str, ...], said: str):
    with pytest.raises(InvalidInputError, match=said) as caught:
        FeatureMap(space=space(50, 50, 1), terms=terms(*of), width=100)
    assert caught.value.field == "terms"


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"of": "contxt"}, "of"),
        ({"of": ""}, "of"),
        ({"of": "variant:variant"}, "of"),
        ({"of": "variant", "prior_sd": 0.0}, "prior_sd"),
        ({"of": "variant", "prior_sd": float("nan")}, "prior_sd"),
        ({"of": "variant", "prior_sd": 1e7}, "prior_sd"),
    ],
)
def test_a_term_out_of_range_is_refused(parts: dict[str, object], field: str):
    with pytest.raises(InvalidInputError) as caught:
        Term(**parts)  # type: ignore[arg-type]
    assert caught.value.field == field


SCHEMA = ContextSchema(
    fields=(
        ContextField(name="age", kind="number", bounds=(20, 60)),
        ContextField(name="spent", kind="number", bounds=(0, 99), scale="log1p", required=True),
        ContextField(name="plan", kind="category", levels=("free", "pro")),
        ContextField(name="vip", kind="flag"),
        ContextField(name="hour", kind="cyclic", period=24),
    )
)


def named(values: dict[str, object]) -> dict[str, float]:
    encoder = Encoder(SCHEMA)
    x = encoder.encode(np.array([SCHEMA.row(values)]))[0]
    assert len(encoder.names) == len(set(encoder.names)) == encoder.width == len(x)
    return {name: value for name, value in zip(encoder.names, x.tolist(), strict=True) if value}


def test_every_kind_of_field_has_its_columns():
    assert named({"age": 50, "spent": 99, "plan": "pro", "vip": True, "hour": 6}) == {
        "(intercept)": 1.0,
        "age": 0.5,
        "spent": 1.0,
        "plan=pro": 1.0,
        "vip": 1.0,
        "sin(hour)": 1.0,
    }


def test_missing_and_unseen_values_have_columns_of_their_own():
    missing = {"age missing": 1.0, "plan missing": 1.0, "vip missing": 1.0, "hour missing": 1.0}
    assert named({"spent": 99}) == {"(intercept)": 1.0, "spent": 1.0, **missing}
    del missing["plan missing"]
    assert named({"spent": 99, "plan": "new"}) == {
        "(intercept)": 1.0,
        "spent": 1.0,
        "plan=(other)": 1.0,
        **missing,
    }


def test_numbers_are_clipped_to_their_bounds():
    assert named({"spent": 99, "age": 1e9})["age"] == 1.0
    assert named({"spent": 99, "age": -1e9})["age"] == -1.0


def test_log1p_is_even_in_orders_of_magnitude():
    scaled = [named({"spent": v}).get("spent", 0.0) for v in (0, 9, 99)]
    np.testing.assert_allclose(scaled, [-1.0, 0.0, 1.0], atol=1e-15)


@given(hour=st.floats(-1e3, 1e3), turns=st.integers(-3, 3))
def test_a_cycle_closes(hour: float, turns: int):
    encoder = Encoder(ContextSchema(fields=(SCHEMA.fields[4],)))
    two = encoder.encode(np.array([[hour], [hour + 24.0 * turns]]))
    np.testing.assert_allclose(two[0], two[1], atol=1e-9)
    np.testing.assert_allclose(np.hypot(two[:, 1], two[:, 2]), 1.0, rtol=1e-12)
