"""Edits of a specification, from messages: what it is to become, and what that changes."""

from typing import Any

from google.protobuf.message import Message

from bandit import spec_file
from bandit.actions import FACTORS
from bandit.errors import ConflictError, InvalidInputError, NotFoundError
from bandit.spec import ExperimentSpec
from server import convert
from server.pb import bandit_pb2 as pb
from server.schema import AnyRow

MAX_PATHS = 100


def settled(spec: ExperimentSpec) -> ExperimentSpec:
    """Give a specification as it is read back once it is stored, derived defaults written out."""
    return spec_file.parse(spec_file.to_json(spec), "json")


def updated(old: ExperimentSpec, request: pb.UpdateExperimentRequest) -> ExperimentSpec:
    """Give the specification that an update asks for.

    Raises
    ------
    InvalidInputError
        If there is no such path, or the parts do not fit together; naming the path.
    """
    if not request.HasField("spec"):
        raise InvalidInputError("is required", field="spec")
    paths = request.update_mask.paths
    if len(paths) > MAX_PATHS:
        raise InvalidInputError(
            f"{len(paths)} paths, at most {MAX_PATHS} are allowed", field="update_mask.paths"
        )
    if not paths or list(paths) == ["*"]:
        whole = pb.ExperimentSpec()
        whole.CopyFrom(request.spec)
        whole.name = whole.name or old.name
        return convert.spec(whole)
    merged = convert.spec_message(old)
    for i, path in enumerate(paths):
        try:
            _take_over(merged, request.spec, path.split("."))
        except InvalidInputError as error:
            raise InvalidInputError(
                f"{path[:100]!r} {error.message}", field=f"update_mask.paths[{i}]"
            ) from None
    return convert.spec(merged)


def _take_over(target: Message, source: Message, path: list[str]) -> None:
    """Take one part of a message over from another; what is not set there is cleared."""
    field = target.DESCRIPTOR.fields_by_name.get(path[0])
    if field is None:
        listed = ", ".join(one.name for one in target.DESCRIPTOR.fields)
        raise InvalidInputError(f"is no path in a specification: here may stand {listed}")
    if len(path) > 1:
        if field.message_type is None or field.is_repeated:
            raise InvalidInputError(f"goes on behind {field.name}, which is taken over whole")
        _take_over(getattr(target, field.name), getattr(source, field.name), path[1:])
        return
    target.ClearField(field.name)
    for found, value in source.ListFields():
        if found.name != field.name:
            continue
        if field.is_repeated:
            getattr(target, field.name).MergeFrom(value)
        elif field.message_type is not None:
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def with_level(
    old: ExperimentSpec, request: pb.AddLevelRequest, *, is_draft: bool
) -> ExperimentSpec:
    """Give the specification with one level more, behind the others of its factor.

    Its generation is the next one, so that indices of actions stay; in a draft, where nothing
    has an index yet, it is that of the others.

    Raises
    ------
    ConflictError
        If the factor has a level of this name.
    InvalidInputError
        If the level does not fit; naming the path.
    """
    plural = _plural(request.factor)
    if not request.HasField("level"):
        raise InvalidInputError("is required", field="level")
    name = convert.text(request.level.name, "level.name", 64)
    if request.level.generation:
        raise InvalidInputError("is chosen by the server: leave it out", field="level.generation")
    if request.level.retired:
        raise InvalidInputError("makes no sense in a level that is added", field="level.retired")
    levels = getattr(old.actions, plural)
    for one in levels:
        if one.name == name:
            told = "; it is retired: set retired = false in an update" if one.retired else ""
            raise ConflictError(f"there is a {request.factor} {name!r}{told}", field="level.name")
    latest = max(level.generation for factor in old.actions.factors for level in factor)
    merged = convert.spec_message(old)
    added = getattr(merged.actions, plural).add()
    added.CopyFrom(request.level)
    added.generation = latest + (not is_draft)
    try:
        return convert.spec(merged)
    except InvalidInputError as error:
        path = f"spec.actions.{plural}[{len(levels)}]"
        if error.field.startswith(path):
            where = "level" + error.field.removeprefix(path)
            raise InvalidInputError(error.message, field=where) from None
        raise InvalidInputError(f"does not fit: {error}", field="level") from None


def without_level(old: ExperimentSpec, request: pb.RetireLevelRequest) -> ExperimentSpec:
    """Give the specification with a level retired.

    Raises
    ------
    NotFoundError
        If the factor has no such level.
    InvalidInputError
        If it is needed: it is the last one, or the baseline or fallback uses it.
    """
    plural = _plural(request.factor)
    name = convert.text(request.level, "level", 64)
    merged = convert.spec_message(old)
    found = next((one for one in getattr(merged.actions, plural) if one.name == name), None)
    if found is None:
        raise NotFoundError(f"no {request.factor} {name!r}", field="level")
    found.retired = True
    try:
        return convert.spec(merged)
    except InvalidInputError as error:
        raise InvalidInputError(
            f"{name!r} can not be retired alone ({error}): pause the experiment, or name others "
            "instead in the same update",
            field="level",
        ) from None


def _plural(factor: str) -> str:
    if factor not in FACTORS:
        raise InvalidInputError(
            f"must be one of {', '.join(FACTORS)}, got {factor[:64]!r}", field="factor"
        )
    return f"{factor}s"


def only_stops(old: ExperimentSpec, new: ExperimentSpec) -> bool:
    """Whether an edit does no more than to retire levels and change the description."""
    before, after = spec_file.to_data(old), spec_file.to_data(new)
    before["description"] = after["description"]
    for factor, levels in before["actions"].items():
        for was, is_now in zip(levels, after["actions"].get(factor, ()), strict=False):
            if factor != "exclusions" and is_now.get("retired"):
                was["retired"] = True
    return before == after


Parts = dict[str, object]


def differences(old: ExperimentSpec, new: ExperimentSpec) -> tuple[Parts, Parts]:
    """Give what an edit changes, before and after, by path; levels by their name."""
    before: Parts = {}
    after: Parts = {}
    _compare("", spec_file.to_data(old), spec_file.to_data(new), (before, after))
    return before, after


def _compare(path: str, was: Any, is_now: Any, told: tuple[Parts, Parts]) -> None:  # noqa: ANN401
    if was == is_now:
        return
    if isinstance(was, dict) and isinstance(is_now, dict):
        for name in sorted({*was, *is_now}):
            inner = f"{path}.{name}" if path else name
            _compare(inner, was.get(name), is_now.get(name), told)
    elif _is_named(was) and _is_named(is_now):
        old, new = ({one["name"]: one for one in each} for each in (was, is_now))
        for name in {**old, **new}:
            _tell(f'{path}["{name}"]', old.get(name), new.get(name), told)
    else:
        _tell(path, was, is_now, told)


def _tell(path: str, was: object, is_now: object, told: tuple[Parts, Parts]) -> None:
    if was != is_now:
        told[0][path], told[1][path] = was, is_now


def _is_named(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) and "name" in one for one in value)


def revision_message(row: AnyRow) -> pb.Revision:
    """Give a stored revision as a message."""
    return pb.Revision(
        number=row.number,
        snapshot_version=row.version,
        who=row.made_by,
        at=convert.timestamp(row.made_at),
        reason=row.reason,
    )
