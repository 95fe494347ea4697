"""Errors carry the path of what is wrong, and a path can be put under another."""

import pytest

from bandit.errors import BanditError, CorruptionError, InvalidInputError


def test_the_path_leads_the_message():
    error = InvalidInputError("is wrong", field="groups.random")
    assert str(error) == "groups.random: is wrong"
    assert (error.message, error.field) == ("is wrong", "groups.random")
    assert str(InvalidInputError("is wrong")) == "is wrong"


@pytest.mark.parametrize(
    ("prefix", "field", "path"),
    [
        ("context", "name", "context.name"),
        ("context", "[2].name", "context[2].name"),
        ("context", "", "context"),
        ("", "name", "name"),
        ("", "", ""),
    ],
)
def test_under_puts_a_prefix_before_the_path(prefix: str, field: str, path: str):
    error = CorruptionError("broken", field=field).under(prefix)
    assert error.field == path
    assert type(error) is CorruptionError


def test_bad_input_is_also_a_value_error():
    assert issubclass(InvalidInputError, ValueError)
    assert all(issubclass(kind, Exception) for kind in BanditError.__subclasses__())
