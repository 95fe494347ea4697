"""``banditctl audit-log``: who changed what, when and why."""

from typing import Annotated

import typer
from google.protobuf.json_format import MessageToJson

from server.commands import options, show
from server.commands.options import Server


@options.calls_server()
def audit_log(
    server: Server,
    experiment: Annotated[str, typer.Option(help="Only changes of this experiment.")] = "",
    most: Annotated[int, typer.Option(min=1, max=100_000, help="The newest so many.")] = 50,
    as_json: Annotated[  # noqa: FBT002
        bool, typer.Option("--json", help="For machines, a line each, with before and after.")
    ] = False,
) -> None:
    """Show administrative changes, newest first."""
    with server.client(timeout=30.0) as client:
        found = client.audit_entries(experiment=experiment, most=most)
    if as_json:
        for entry in found:
            typer.echo(MessageToJson(entry, preserving_proto_field_name=True, indent=None))
        return
    show.console.print(show.audit_entries(found))
