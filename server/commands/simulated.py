"""Which experiment, and which customers, the commands that simulate are asked for."""

from pathlib import Path
from typing import Annotated

import typer

from bandit.errors import InvalidInputError
from sims.worlds import Preset, catalogue

Spec = Annotated[
    Path | None, typer.Argument(help="The experiment: .toml, .yaml or .json; or a --preset.")
]
WorldFile = Annotated[
    Path | None, typer.Option(help="How customers behave; else SPEC's name with .world.toml.")
]
PresetName = Annotated[
    str, typer.Option(help="A world that ships, and without SPEC the experiment made for it.")
]


def asked(spec: Path | None, world: Path | None, preset: str) -> Preset:
    """Read experiment and world: from files, from those that ship, or one of each.

    Raises
    ------
    InvalidInputError
        If too little or too much is named, or a file does not fit.
    """
    if preset:
        if world is not None:
            raise InvalidInputError("goes without --preset", field="world")
        if spec is None:
            return catalogue.preset(preset)
        world = catalogue.world_file_of(preset)
    if spec is None:
        raise InvalidInputError("name a file, or a --preset", field="spec")
    if world is None:
        world = spec.with_suffix(".world.toml")
        if spec.exists() and not world.exists():
            raise InvalidInputError(
                f"name one with --world, or a --preset: there is no {world.name} beside the "
                "experiment",
                field="world",
            )
    return catalogue.load(spec, world)
