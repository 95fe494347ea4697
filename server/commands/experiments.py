"""``banditctl experiments``: create, start, pause, archive, list and read experiments."""

from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToJson

from server.client import BanditClient
from server.commands import options, show
from server.commands.options import Address

app = typer.Typer(help="Create, start, pause, list and read experiments.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of the experiment.")]


@app.command()
def create(
    file: Annotated[Path, typer.Argument(help="Specification: .toml, .yaml or .json.")],
    address: Address = options.DEFAULT_ADDRESS,
    start: Annotated[bool, typer.Option("--start", help="Start it at once.")] = False,  # noqa: FBT002
) -> None:
    """Create an experiment from a specification file."""
    spec = options.read_spec(file)
    with BanditClient(address) as client:
        client.create_experiment(spec)
        if start:
            client.start_experiment(spec.name)
        show.console.print(show.experiments([client.get_experiment(spec.name)]))


@app.command()
def start(name: Name, address: Address = options.DEFAULT_ADDRESS) -> None:
    """Start a draft, or resume a paused experiment."""
    with BanditClient(address) as client:
        show.console.print(show.experiments([client.start_experiment(name)]))


@app.command()
def pause(name: Name, address: Address = options.DEFAULT_ADDRESS) -> None:
    """Pause an experiment: decisions get the declared fallback."""
    with BanditClient(address) as client:
        show.console.print(show.experiments([client.pause_experiment(name)]))


@app.command()
def archive(name: Name, address: Address = options.DEFAULT_ADDRESS) -> None:
    """End an experiment for good."""
    with BanditClient(address) as client:
        show.console.print(show.experiments([client.archive_experiment(name)]))


@app.command("list")
def list_all(address: Address = options.DEFAULT_ADDRESS) -> None:
    """List all experiments."""
    with BanditClient(address) as client:
        show.console.print(show.experiments(client.list_experiments()))


@app.command()
def report(
    name: Name,
    address: Address = options.DEFAULT_ADDRESS,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,  # noqa: FBT002
) -> None:
    """Show traffic, reward and lift by group, and how single actions did."""
    with BanditClient(address, timeout=60.0) as client:
        found = client.report(name)
    if as_json:
        typer.echo(MessageToJson(found, preserving_proto_field_name=True))
        return
    for part in show.report(found):
        show.console.print(part)
