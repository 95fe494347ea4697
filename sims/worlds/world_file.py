"""Worlds as TOML: read with every error's path, and written."""

import json
import re
import tomllib
from dataclasses import replace
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
        world = _WORLD.validate_json(json.dumps(data, default=str))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInputError(" ".join(str(error).split()), field=str(path)) from None
    except ValidationError as error:
        listed = "; ".join(map(_violation, error.errors(include_url=False)[:10]))
        raise InvalidInputError(listed, field=str(path)) from None

    if world.contexts is None:
        return world
    beside = replace(world.contexts, file=str(path.parent / world.contexts.file))
    return replace(world, contexts=beside)


def write(path: Path, world: World) -> None:
    """Write a world as TOML, an effect a line; ``read`` gives the same world back.

    A file of contexts is named as if it lay beside.
    """
    data: dict[str, Any] = _WORLD.dump_python(world, mode="json", exclude_defaults=True)
    if world.contexts is not None:
        data["contexts"]["file"] = Path(world.contexts.file).name
    lines = []
    for name, value in data.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            lines += [f"{name} = [", *(f"  {_toml(one)}," for one in value), "]"]
        else:
            lines.append(f"{name} = {_toml(value)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _toml(value: object) -> str:
    """Write a value in one line; None stands nowhere, because it means left out."""
    if isinstance(value, dict):
        pairs = [f"{_key(k)} = {_toml(v)}" for k, v in value.items() if v is not None]
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


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
