"""Worlds that ship: each with an experiment, for a common question."""

from pathlib import Path
from typing import NamedTuple

from bandit import spec_file
from bandit.errors import InvalidInputError, NotFoundError
from bandit.spec import ExperimentSpec
from sims.worlds import matching, world_file
from sims.worlds.world import World

PRESETS = Path(__file__).parent / "presets"
_WORLD = ".world.toml"


class Preset(NamedTuple):
    """A world and the experiment it is made for, whose description is the question."""

    name: str
    spec: ExperimentSpec
    world: World


def names() -> list[str]:
    """Give the names of the worlds that ship."""
    return sorted(path.name.removesuffix(_WORLD) for path in PRESETS.glob(f"*{_WORLD}"))


def preset(name: str) -> Preset:
    """Give a world that ships.

    Raises
    ------
    NotFoundError
        If there is none of that name.
    """
    if name not in names():
        raise NotFoundError(f"no world {name[:64]!r}; there are {', '.join(names())}", field="name")
    return load(PRESETS / f"{name}.toml", world_file_of(name))


def world_file_of(name: str) -> Path:
    """Give the file of a world that ships."""
    return PRESETS / f"{name}{_WORLD}"


def load(spec: Path, world: Path) -> Preset:
    """Read a world and the experiment it is for, and check that they fit.

    Raises
    ------
    InvalidInputError
        Naming the file and the field.
    """
    try:
        read = spec_file.parse(
            spec.read_text(encoding="utf-8"), spec.suffix.removeprefix(".").lower()
        )
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"can not be read: {error}", field=str(spec)) from None
    except InvalidInputError as error:
        raise InvalidInputError(str(error), field=str(spec)) from None
    made = world_file.read(world)
    try:
        matching.check(made, read)
    except InvalidInputError as error:
        raise InvalidInputError(str(error), field=str(world)) from None
    return Preset(world.name.removesuffix(_WORLD).removesuffix(".toml"), read, made)
