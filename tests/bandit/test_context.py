"""Contexts: what is accepted, what is refused and with which path, and what a row holds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.context import OTHER, ContextField, ContextSchema
from bandit.errors import InvalidInputError

AGE = ContextField(name="age", kind="number", bounds=(18, 90))
SPENT = ContextField(name="spent", kind="number", bounds=(0, 1e4), scale="log1p")
STRICT = ContextField(name="strict", kind="number", bounds=(0, 1), outside="reject")
PLAN = ContextField(name="plan", kind="category", levels=("free", "pro"))
VIP = ContextField(name="vip", kind="flag")
HOUR = ContextField(name="hour", kind="cyclic", period=24)
SCHEMA = ContextSchema(fields=(AGE, SPENT, STRICT, PLAN, VIP, HOUR))
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**9), 10**9)
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "age": NUMBERS,
        "spent": NUMBERS,
        "strict": st.floats(0, 1),
        "plan": st.sampled_from(["free", "pro"]),
        "vip": st.booleans(),
        "hour": st.floats(-1e9, 1e9),
    },
)


@given(values=VALUES)
def test_a_row_gives_its_values_back(values: dict[str, object]):
    row = np.array(SCHEMA.row(values))
    SCHEMA.check_rows(row[None, :])
    assert SCHEMA.values(row) == {f.name: values.get(f.name) for f in SCHEMA.fields}


@given(values=VALUES)
def test_reading_back_a_rows_values_gives_the_same_row(values: dict[str, object]):
    row = np.array(SCHEMA.row(values))
    np.testing.assert_array_equal(SCHEMA.row(SCHEMA.values(row)), row)


def test_missing_and_none_are_nan():
    assert all(math.isnan(cell) for cell in SCHEMA.row({}))
    assert all(math.isnan(cell) for cell in SCHEMA.row({"age": None, "plan": None, "vip": None}))


def test_a_category_never_declared_is_other():
    row = np.array(SCHEMA.row({"plan": "enterprise"}))
    assert row[3] == OTHER
    assert SCHEMA.values(row)["plan"] == "(other)"


def test_clipped_numbers_are_stored_as_they_came():
    assert SCHEMA.row({"age": 140})[0] == 140.0


@pytest.mark.parametrize("value", [0, 0.5, 1])
def test_rejecting_bounds_let_their_ends_pass(value: float):
    assert SCHEMA.row({"strict": value})[2] == value


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("age", math.nan, "finite"),
        ("age", math.inf, "finite"),
        ("hour", -math.inf, "finite"),
        ("age", 10**400, "finite"),
        ("age", True, "needs a number, got bool"),
        ("age", "41", "needs a number, got str"),
        ("age", [41], "needs a number, got list"),
        ("hour", "noon", "needs a number"),
        ("strict", 1.0001, "outside"),
        ("strict", -1, "outside"),
        ("plan", 1, "needs a text, got int"),
        ("plan", True, "needs a text"),
        ("plan", "x" * 257, "257 characters"),
        ("vip", 1, "needs true or false, got int"),
        ("vip", "true", "needs true or false"),
        ("vip", 1.0, "needs true or false"),
        ("ege", 1, "did you mean 'age'"),
        ("zzzzzz", 1, "known: age, spent"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_its_path(name: str, value: object, said: str):
    with pytest.raises(InvalidInputError) as caught:
        SCHEMA.row({"age": 40, name: value})
    assert caught.value.field == f'values["{name}"]'
    assert said in caught.value.message


def test_a_schema_without_fields_says_so():
    with pytest.raises(InvalidInputError, match="takes no context"):
        ContextSchema().row({"age": 1})


@pytest.mark.parametrize("values", [{}, {"age": None}])
def test_a_required_field_may_not_be_missing(values: dict[str, object]):
    schema = ContextSchema(
        fields=(ContextField(name="age", kind="number", bounds=(0, 1), required=True),)
    )
    with pytest.raises(InvalidInputError, match=r'values\["age"\]: is required'):
        schema.row(values)
    assert schema.row({"age": 0.5}) == [0.5]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, math.inf),
        (1, -math.inf),
        (2, 1.1),
        (3, 2.0),
        (3, 0.5),
        (3, -2.0),
        (4, 0.5),
        (5, math.inf),
    ],
)
def test_rows_no_context_could_give_are_refused_by_their_path(place: int, value: float):
    rows = np.full((3, 6), math.nan)
    rows[1, place] = value
    with pytest.raises(InvalidInputError) as caught:
        SCHEMA.check_rows(rows)
    assert caught.value.field == f'[1].values["{SCHEMA.fields[place].name}"]'


def test_rows_lacking_a_required_value_or_a_column_are_refused():
    schema = ContextSchema(fields=(ContextField(name="vip", kind="flag", required=True),))
    with pytest.raises(InvalidInputError, match=r'\[0\].values\["vip"\]'):
        schema.check_rows(np.array([[math.nan]]))
    for rows in (np.zeros((1, 2)), np.zeros(1)):
        with pytest.raises(InvalidInputError, match="shape"):
            schema.check_rows(rows)


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"kind": "text"}, "kind"),
        ({"kind": "number"}, "bounds"),
        ({"kind": "flag", "bounds": (0, 1)}, "bounds"),
        ({"kind": "number", "bounds": (1, 1)}, "bounds"),
        ({"kind": "number", "bounds": (2, 1)}, "bounds"),
        ({"kind": "number", "bounds": (0, math.inf)}, "bounds"),
        ({"kind": "number", "bounds": (math.nan, 1)}, "bounds"),
        ({"kind": "number", "bounds": (-1.7e308, 1.7e308)}, "bounds"),
        ({"kind": "number", "bounds": (-1, 1), "scale": "log1p"}, "bounds"),
        ({"kind": "number", "bounds": (0, 1), "scale": "log"}, "scale"),
        ({"kind": "number", "bounds": (0, 1), "outside": "drop"}, "outside"),
        ({"kind": "category"}, "levels"),
        ({"kind": "flag", "levels": ("a",)}, "levels"),
        ({"kind": "category", "levels": ("a", "a")}, "levels"),
        ({"kind": "category", "levels": ("",)}, "levels"),
        ({"kind": "category", "levels": ("x" * 257,)}, "levels"),
        ({"kind": "category", "levels": tuple(map(str, range(1001)))}, "levels"),
        ({"kind": "cyclic"}, "period"),
        ({"kind": "flag", "period": 24}, "period"),
        ({"kind": "cyclic", "period": 0}, "period"),
        ({"kind": "cyclic", "period": math.nan}, "period"),
        ({"kind": "cyclic", "period": math.inf}, "period"),
        ({"kind": "flag", "name": "a/b"}, "name"),
    ],
)
def test_a_field_checks_that_its_parts_fit_its_kind(parts: dict[str, object], field: str):
    with pytest.raises(InvalidInputError) as caught:
        ContextField(**{"name": "f", **parts})  # type: ignore[arg-type]
    assert caught.value.field == field


def test_a_schema_refuses_repeated_names_and_too_many_fields():
    with pytest.raises(InvalidInputError, match=r"\[2\].name: 'age' is repeated"):
        ContextSchema(fields=(AGE, VIP, AGE))
    with pytest.raises(InvalidInputError, match="257 fields"):
        ContextSchema(fields=tuple(ContextField(name=f"f{i}", kind="flag") for i in range(257)))
