"""Commands that are imported when they are called: help and small commands answer at once."""

import copy
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup


class Entry(NamedTuple):
    """Where a command is, and its line in the help.

    Attributes
    ----------
    name
        What is typed.
    place
        ``module:attribute`` in ``server.commands``; the attribute is a function, or a ``Typer`` of
        several.
    line
        What the command says of itself, so that the help need not import it.
    """

    name: str
    place: str
    line: str

    def stub(self) -> TyperCommand:
        """Give a command that can be listed, but not called."""
        return TyperCommand(self.name, help=self.line)

    def load(self) -> TyperCommand | TyperGroup:
        """Import the command."""
        module, attribute = self.place.split(":")
        found = getattr(import_module(f"server.commands.{module}"), attribute)
        holder = typer.Typer(add_completion=False)
        if isinstance(found, typer.Typer):
            holder.add_typer(found, name=self.name)
        else:
            holder.command(self.name)(found)
        command = typer.main.get_group(holder).commands[self.name]
        assert isinstance(command, TyperCommand | TyperGroup)  # noqa: S101  typer makes no others
        return command


class _Loaded(Mapping[str, TyperCommand | TyperGroup]):
    """Commands by name; reading one imports it."""

    def __init__(self, entries: tuple[Entry, ...]) -> None:
        self.entries = {entry.name: entry for entry in entries}
        self._loaded: dict[str, TyperCommand | TyperGroup] = {}

    def __getitem__(self, name: str) -> TyperCommand | TyperGroup:
        if name not in self._loaded:
            self._loaded[name] = self.entries[name].load()
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def group(entries: tuple[Entry, ...]) -> type[TyperGroup]:
    """Make the kind of group that holds these commands and imports the one that is called."""

    class Loading(TyperGroup):
        def __init__(self, **attributes: Any) -> None:  # noqa: ANN401  as typer gives them
            super().__init__(**attributes)
            self.commands = _Loaded(entries)  # type: ignore[assignment]

        def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401, ARG002
            return list(self.commands)

        def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
            listed = copy.copy(self)
            listed.commands = {entry.name: entry.stub() for entry in entries}
            TyperGroup.format_help(listed, ctx, formatter)

    return Loading
