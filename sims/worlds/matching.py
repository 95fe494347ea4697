"""Whether a world fits an experiment: fields, levels, rewards, and always something to send."""

from collections.abc import Iterable

from bandit.actions import FACTORS, Exclusion
from bandit.context import ContextField
from bandit.errors import InvalidInputError
from bandit.spec import ExperimentSpec
from sims.worlds.effects import WEEKDAYS
from sims.worlds.traits import Trait
from sims.worlds.world import World

NOT_YET, GONE = "not there yet", "no longer there"


def check(world: World, spec: ExperimentSpec) -> None:
    """Refuse an experiment that a world was not made for.

    Raises
    ------
    InvalidInputError
        Naming the part of the world, and the field, level or reward that does not fit.
    """
    fields = {field.name: field for field in spec.context}
    for name in (world.reward, world.unsubscribes and world.unsubscribes.reward):
        if name is not None and name not in spec.outcome.by_name:
            raise InvalidInputError(
                f"no reward {name!r} in the experiment{_known(spec.outcome.by_name)}",
                field="reward",
            )
    for i, trait in enumerate(world.traits):
        _check_trait(trait, fields, f"traits[{i}]")
    for j, segment in enumerate(world.segments):
        for i, trait in enumerate(segment.traits):
            _check_trait(trait, fields, f"segments[{j}].traits[{i}]")
    _check_effects(world, spec, fields)
    _check_unsubscribes(world, spec)
    _check_wheel(world, spec, fields)
    _check_availability(world, spec)
    _check_required(world, spec)


def exclusions(world: World, day: float) -> tuple[Exclusion, ...]:
    """Give the rules of one moment: levels that are not there yet, or no longer."""
    rules = []
    for one in world.availability:
        names = {factor: getattr(one, factor) for factor in FACTORS}
        if one.appears is not None and day < one.appears:
            rules.append(Exclusion(**names, reason=NOT_YET))
        elif one.retires is not None and day >= one.retires:
            rules.append(Exclusion(**names, reason=GONE))
    return tuple(rules)


def changes(world: World) -> list[float]:
    """Give the days on which a level appears or retires, in order."""
    days = {day for one in world.availability for day in (one.appears, one.retires)}
    return sorted(day for day in days if day is not None)


def _known(names: Iterable[str], most: int = 10) -> str:
    """Give what could have been meant, to end a message with."""
    listed = list(names)
    if not listed:
        return "; there is none"
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    verb = "is" if len(listed) == 1 else "are"
    return f"; there {verb} {', '.join(listed[:most])}{more}"


def _check_trait(trait: Trait, fields: dict[str, ContextField], path: str) -> None:
    field = fields.get(trait.field)
    if field is None:
        raise InvalidInputError(f"no {trait.field!r} in the context{_known(fields)}", field=path)
    forms = {
        "low": ("number", "cyclic"), "mean": ("number", "cyclic"), "levels": ("category",),
        "share": ("flag",), "clock": ("number", "cyclic", "category"),
    }  # fmt: skip
    form = next(name for name in forms if getattr(trait, name) is not None)
    if field.kind not in forms[form]:
        raise InvalidInputError(
            f"{trait.field!r} is a {field.kind}, which {form!r} does not draw", field=path
        )
    wanted = list(trait.levels or ())
    if form == "clock" and field.kind == "category":
        wanted = list(WEEKDAYS)
        if trait.clock == "hour":
            raise InvalidInputError(f"{trait.field!r} is a category, no hour", field=path)
    for name in wanted:
        if name not in field.levels:
            raise InvalidInputError(
                f"no level {name!r} of {trait.field!r}{_known(field.levels)}", field=path
            )
    if field.outside == "reject" and not _is_inside(trait, field):
        raise InvalidInputError(
            f"draws outside of {field.bounds}, which {trait.field!r} rejects", field=path
        )
    if field.required and trait.missing:
        raise InvalidInputError(f"{trait.field!r} is required", field=f"{path}.missing")


def _is_inside(trait: Trait, field: ContextField) -> bool:
    """Whether all that is drawn for a number lies in its bounds."""
    low, high = field.bounds or (0.0, 0.0)
    if trait.low is not None and trait.high is not None:
        return low <= trait.low and trait.high <= high
    return trait.clock is not None and low <= 0 and high >= (24 if trait.clock == "hour" else 6)


def _check_effects(world: World, spec: ExperimentSpec, fields: dict[str, ContextField]) -> None:
    for i, effect in enumerate(world.effects):
        path = f"effects[{i}]"
        for factor in FACTORS:
            _check_level(spec, factor, getattr(effect, factor), path)
        for name, wanted in (effect.when or {}).items():
            field = fields.get(name)
            if field is None:
                raise InvalidInputError(
                    f"no {name!r} in the context{_known(fields)}", field=f"{path}.when"
                )
            kinds = {bool: ("flag",), str: ("category",), tuple: ("number", "cyclic")}
            if field.kind not in kinds[type(wanted)]:
                raise InvalidInputError(
                    f"{name!r} is a {field.kind}, which can not be {wanted!r}",
                    field=f"{path}.when",
                )
            if isinstance(wanted, str) and wanted not in field.levels:
                raise InvalidInputError(
                    f"no level {wanted!r} of {name!r}{_known(field.levels)}", field=f"{path}.when"
                )
        if effect.slope is not None:
            kind = fields[effect.slope].kind if effect.slope in fields else "field of another"
            if kind not in ("number", "flag"):
                raise InvalidInputError(
                    f"{effect.slope!r} is a {kind}; a slope needs a number or a flag",
                    field=f"{path}.slope",
                )


def _check_level(spec: ExperimentSpec, factor: str, name: str | None, path: str) -> None:
    levels = dict(zip(FACTORS, spec.actions.factors, strict=True))[factor]
    names = [level.name for level in levels]
    if name is not None and name not in names:
        raise InvalidInputError(f"no {factor} {name!r}{_known(names)}", field=path)


def _check_unsubscribes(world: World, spec: ExperimentSpec) -> None:
    if world.unsubscribes is None:
        return
    for name in world.unsubscribes.channels:
        _check_level(spec, "channel", name, "unsubscribes.channels")
    if world.unsubscribes.reward is not None and (
        spec.outcome.aggregation != "sum" or spec.outcome.default != 0.0
    ):
        raise InvalidInputError(
            "needs an outcome that is a sum, with default 0", field="unsubscribes.reward"
        )


def _check_wheel(world: World, spec: ExperimentSpec, fields: dict[str, ContextField]) -> None:
    if world.wheel is None:
        return
    if spec.actions.size != 5:
        raise InvalidInputError(f"needs 5 actions, there are {spec.actions.size}", field="wheel")
    for name in world.wheel.fields:
        if name not in fields or fields[name].kind != "number":
            raise InvalidInputError(f"no number {name!r} in the context", field="wheel.fields")


def _check_availability(world: World, spec: ExperimentSpec) -> None:
    for i, one in enumerate(world.availability):
        for factor in FACTORS:
            _check_level(spec, factor, getattr(one, factor), f"availability[{i}]")
    for day in (0.0, *changes(world)):
        if not spec.actions.eligible(exclusions(world, day)).any():
            raise InvalidInputError(f"leaves no action on day {day:g}", field="availability")


def _check_required(world: World, spec: ExperimentSpec) -> None:
    drawn = {trait.field for trait in world.traits} | set(world.wheel.fields if world.wheel else ())
    has_all = world.contexts is not None or world.generated is not None
    for field in spec.context:
        if field.required and field.name not in drawn and not has_all:
            raise InvalidInputError(f"needs one of the required {field.name!r}", field="traits")
