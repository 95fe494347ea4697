"""Worlds as TOML: read with every error's path, and written."""

import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bandit.errors import BanditError, InvalidInputError
from sims.worlds.world import World

_WORLD = TypeAdapter(World)


def read(path: Path) -> World:
    """Read a world from a TOML file.

    Raises
    ------
    InvalidInputError
        Naming the file and every field that does not fit.
    """
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return _WORLD.validate_json(json.dumps(data, default=str))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInputError(" ".join(str(error).split()), field=str(path)) from None
    except ValidationError as error:
        listed = "; ".join(map(_violation, error.errors(include_url=False)[:10]))
        raise InvalidInputError(listed, field=str(path)) from None


def _violation(entry: Any) -> str:  # noqa: ANN401  pydantic's ErrorDetails
    path = ""
    for part in entry["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f"{'.' if path else ''}{part}"
    cause = entry.get("ctx", {}).get("error")
    match entry["type"]:
        case "missing":
            return f"{path}: is required"
        case "unexpected_keyword_argument" | "extra_forbidden":
            return f"{path}: is not a field here"
        case "dataclass_type":
            return f"{path}: needs a table of fields, got {type(entry['input']).__name__}"
        case "value_error" if isinstance(cause, BanditError):
            return str(cause.under(path))
        case _:
            return f"{path}: {entry['msg'].lower()}, got {str(entry['input'])[:60]!r}"
