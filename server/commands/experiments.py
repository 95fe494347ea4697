"""``banditctl experiments``: create, start, pause, archive, list and read experiments."""

from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToJson

from server.commands import options, revising, show
from server.commands.options import Override, Reason, Server

app = typer.Typer(help="Create, start, pause, list and read experiments.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of the experiment.")]


@app.command()
@options.calls_server()
def create(
    file: Annotated[Path, typer.Argument(help="Specification: .toml, .yaml or .json.")],
    server: Server,
    start: Annotated[bool, typer.Option("--start", help="Start it at once.")] = False,  # noqa: FBT002
    override: Override = "",
) -> None:
    """Create an experiment from a specification file."""
    spec = options.read_spec(file)
    with server.client() as client:
        client.create_experiment(spec)
        if start:
            client.start_experiment(spec.name, override=override)
        show.console.print(show.experiments([client.get_experiment(spec.name)]))


@app.command()
@options.calls_server()
def start(name: Name, server: Server, reason: Reason = "", override: Override = "") -> None:
    """Start a draft, which needs a passing verdict, or resume a paused experiment."""
    with server.client() as client:
        started = client.start_experiment(name, reason=reason, override=override)
        show.console.print(show.experiments([started]))


@app.command()
@options.calls_server()
def pause(name: Name, server: Server, reason: Reason = "") -> None:
    """Pause an experiment: decisions get the declared fallback."""
    with server.client() as client:
        show.console.print(show.experiments([client.pause_experiment(name, reason=reason)]))


@app.command()
@options.calls_server()
def archive(name: Name, server: Server, reason: Reason = "") -> None:
    """End an experiment for good."""
    with server.client() as client:
        show.console.print(show.experiments([client.archive_experiment(name, reason=reason)]))


@app.command("list")
@options.calls_server()
def list_all(server: Server) -> None:
    """List all experiments."""
    with server.client() as client:
        show.console.print(show.experiments(client.list_experiments()))


@app.command()
@options.calls_server()
def spec(name: Name, server: Server) -> None:
    """Print an experiment's specification as JSON: to keep, or to change and give to 'update'."""
    with server.client() as client:
        typer.echo(revising.written(client, name))


@app.command()
@options.calls_server()
def report(
    name: Name,
    server: Server,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,  # noqa: FBT002
) -> None:
    """Show traffic, reward and lift by group, and how single actions did."""
    with server.client(timeout=60.0) as client:
        found = client.report(name)
    if as_json:
        typer.echo(MessageToJson(found, preserving_proto_field_name=True))
        return
    for part in show.report(found):
        show.console.print(part)
