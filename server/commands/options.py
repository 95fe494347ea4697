"""Options that several commands share."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bandit import spec_file
from bandit.errors import InvalidInputError
from bandit.spec import ExperimentSpec

Address = Annotated[str, typer.Option(envvar="BANDIT_ADDRESS", help="host:port of the server.")]
DatabaseUrl = Annotated[
    str, typer.Option(envvar="BANDIT_DATABASE", help="SQLAlchemy URL, as given to the server.")
]
SecretFile = Annotated[
    Path | None,
    typer.Option(envvar="BANDIT_SECRET_FILE", help="As given to the server; else beside SQLite."),
]
DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_DATABASE = "sqlite:///bandit.db"


def read_spec(path: Path) -> ExperimentSpec:
    """Read a specification from a .toml, .yaml or .json file.

    Raises
    ------
    InvalidInputError
        Naming the file and the field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"can not be read: {error}", field=str(path)) from None
    try:
        return spec_file.parse(text, path.suffix.removeprefix(".").lower())
    except InvalidInputError as error:
        raise InvalidInputError(str(error), field=str(path)) from None


def read_context(text: str) -> dict[str, object]:
    """Read a context given as a JSON object.

    Raises
    ------
    InvalidInputError
        If it is none.
    """
    try:
        context = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidInputError(f"is not JSON: {error}", field="context") from None
    if not isinstance(context, dict):
        raise InvalidInputError('needs an object such as {"age": 41}', field="context")
    return context
