"""Specifications as text: TOML, YAML or JSON in, JSON out, every error with its path.

Reading is pydantic's (strict types, no unknown fields); the dataclasses stay plain and check
themselves. See ``docs/decisions/0001-spec-reader.md``.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from bandit.errors import BanditError, InvalidInputError
from bandit.policy import PolicySpec
from bandit.spec import ExperimentSpec

MAX_BYTES = 1_000_000
_LEVELS = ("variants", "channels", "slots")


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    spec: ExperimentSpec


_EXPORT = TypeAdapter(ExperimentSpec)
_POLICY = TypeAdapter(PolicySpec)


def parse(text: str, form: str) -> ExperimentSpec:
    """Read a specification.

    Parameters
    ----------
    text
        At most 1 MB.
    form
        ``toml``, ``yaml`` or ``json``.

    Raises
    ------
    InvalidInputError
        Naming every offending field by its path, and what would be right.

    Examples
    --------
    >>> parse('name = "x"', "toml")
    Traceback (most recent call last):
    bandit.errors.InvalidInputError: 2 errors: actions: is required; outcome: is required
    """
    _check_size(text)
    parser = _PARSERS.get(form)
    if parser is None:
        raise InvalidInputError(f"{form!r} is none of toml, yaml, json")
    try:
        data = parser(text)
    except InvalidInputError:
        raise
    except (ValueError, yaml.YAMLError, RecursionError) as error:  # of all three parsers
        raise InvalidInputError(f"this is not {form}: {' '.join(str(error).split())}") from None
    return from_data(data)


def from_data(data: object) -> ExperimentSpec:
    """Read a specification from nested dicts and lists; see ``parse`` for errors."""
    try:
        text = json.dumps({"spec": _full_levels(data)})
        spec = _Document.model_validate_json(text).spec
    except InvalidInputError:
        raise
    except ValidationError as error:
        raise _readable(error) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"holds a value that no field takes: {error}") from None
    _check_size(to_json(spec))  # as it is stored, it can be read again
    return spec


def _check_size(text: str) -> None:
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise InvalidInputError(f"the specification is larger than {MAX_BYTES} bytes")


def to_data(spec: ExperimentSpec) -> dict[str, Any]:
    """Give a specification as nested dicts and lists; defaults are written out.

    That includes those derived from other parts (``ExperimentSpec.full_policy``), so what is stored
    decides the same for ever. Of a level only what is not the default, for there may be thousands.
    """
    data: dict[str, Any] = _EXPORT.dump_python(spec, mode="json", exclude_none=True)
    data["policy"] = _POLICY.dump_python(spec.full_policy, mode="json", exclude_none=True)
    for levels in map(data["actions"].get, _LEVELS):
        for level in levels:
            level["attributes"] = dict(level["attributes"])
            for name in ("attributes", "generation", "retired"):
                if not level[name]:
                    del level[name]
    return data


def to_json(spec: ExperimentSpec) -> str:
    """Write a specification as canonical JSON: the same spec gives the same text."""
    return json.dumps(to_data(spec), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(spec: ExperimentSpec) -> str:
    """Give the SHA-256 of a specification's canonical text: what a verdict is bound to."""
    return hashlib.sha256(to_json(spec).encode()).hexdigest()


def _full_levels(data: object) -> object:
    """Let a level be written as its bare name, and its attributes as a table."""
    if not isinstance(data, dict) or not isinstance(data.get("actions"), dict):
        return data
    actions = {
        key: [_full_level(v, f"actions.{key}[{i}]") for i, v in enumerate(value)]
        if key in _LEVELS and isinstance(value, list)
        else value
        for key, value in data["actions"].items()
    }
    return {**data, "actions": actions}


def _full_level(level: object, path: str) -> object:
    if isinstance(level, str):
        return {"name": level}
    if not isinstance(level, dict) or "attributes" not in level:
        return level
    table = level["attributes"]
    if not isinstance(table, dict):
        raise InvalidInputError("needs a table of numbers", field=f"{path}.attributes")
    for name, value in table.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidInputError(
                f"needs a number, got {str(value)[:60]!r}", field=f"{path}.attributes.{name}"[:200]
            )
    return {**level, "attributes": list(table.items())}


def _readable(error: ValidationError) -> InvalidInputError:
    violations = [_violation(e) for e in error.errors(include_url=False)]
    if len(violations) == 1:
        path, message = violations[0]
        return InvalidInputError(message, field=path)
    listed = "; ".join(f"{p}: {m}" if p else m for p, m in violations[:20])
    return InvalidInputError(f"{len(violations)} errors: {listed}")


def _violation(entry: Any) -> tuple[str, str]:  # noqa: ANN401  pydantic's ErrorDetails
    path = ""
    for part in entry["loc"][1:]:
        path += f"[{part}]" if isinstance(part, int) else f"{'.' if path else ''}{part}"
    cause = entry.get("ctx", {}).get("error")
    match entry["type"]:
        case "missing":
            return path, "is required"
        case "unexpected_keyword_argument" | "extra_forbidden":
            return path, "is not a field here" + _meant(entry["loc"])
        case "dataclass_type":
            return path, f"needs a table of fields, got {type(entry['input']).__name__}"
        case "value_error" if isinstance(cause, BanditError):
            return cause.under(path).field, cause.message
        case _:
            return path, f"{entry['msg'].lower()}, got {str(entry['input'])[:60]!r}"


def _meant(loc: tuple[str | int, ...]) -> str:
    if loc[-1] in _FIELD_NAMES:
        return ", it belongs to another table"
    close = get_close_matches(str(loc[-1]), _FIELD_NAMES, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _field_names(schema: object) -> set[str]:
    if isinstance(schema, list):
        return set[str]().union(*map(_field_names, schema))
    if not isinstance(schema, dict):
        return set()
    return set(schema.get("properties", {})).union(*map(_field_names, schema.values()))


_FIELD_NAMES = sorted(_field_names(_EXPORT.json_schema()))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a table; refuse a name that stands in it twice, of which one would be lost."""
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise InvalidInputError("stands twice in one table", field=str(twice)[:64])
    return table


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML with JSON's types only, and no anchors.

    YAML 1.1 would read ``18:00`` as 1080 and ``no`` as false; a few lines of anchors can
    unfold into gigabytes.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:  # noqa: ANN401
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("anchors and aliases are not allowed")
        return super().compose_node(parent, index)


def _table(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[str, Any]:
    pairs = [
        (loader.construct_object(k, deep=True), loader.construct_object(v, deep=True))
        for k, v in node.value
    ]
    if not all(isinstance(name, str) for name, _ in pairs):
        raise InvalidInputError("a name in a table must be a text")
    return _unique(pairs)


_PlainLoader.yaml_implicit_resolvers = {}
_PlainLoader.add_constructor("tag:yaml.org,2002:map", _table)
for _kind, _pattern, _first in (
    ("bool", r"(?:true|false)$", "tf"),
    ("null", r"(?:null|~|)$", "n~"),
    ("int", r"-?(?:0|[1-9]\d*)$", "-0123456789"),
    ("float", r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?$", "-0123456789"),
):
    _PlainLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), [*_first, *([""] * (_kind == "null"))]
    )


_PARSERS: dict[str, Callable[[str], object]] = {
    "toml": tomllib.loads,
    "yaml": lambda text: yaml.load(text, Loader=_PlainLoader),  # noqa: S506  a SafeLoader
    "yml": lambda text: yaml.load(text, Loader=_PlainLoader),  # noqa: S506
    "json": lambda text: json.loads(text, object_pairs_hook=_unique),
}
