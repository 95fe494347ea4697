"""``banditctl decide-file`` and ``reward-file``: a whole campaign, from file to file."""

from pathlib import Path
from typing import Annotated

import typer

from bandit.errors import BanditError, InvalidInputError
from server import campaign as campaigns
from server import campaign_file
from server.campaign import Campaign, Pace, Report
from server.commands import options
from server.commands.options import Server

Chunk = Annotated[int, typer.Option(help="Rows of one request, 1 to 10000.")]
Flight = Annotated[int, typer.Option(min=1, max=16, help="Requests under way at a time.")]
Timeout = Annotated[
    float, typer.Option(min=0.1, help="Seconds that a chunk may take, retries included.")
]
_MOST_SHOWN = 10


@options.calls_server()
def decide_file(  # noqa: PLR0913
    source: Annotated[Path, typer.Argument(metavar="IN", help="Customers, .parquet.")],
    out: Annotated[Path, typer.Argument(help="File to write, .parquet.")],
    server: Server,
    experiment: Annotated[str, typer.Option(help="Name of a running experiment.")],
    id_column: Annotated[
        str, typer.Option(help="Column that tells rows apart; else their number.")
    ] = "",
    customer_column: Annotated[
        str, typer.Option(help="Column of your ids of the customers.")
    ] = "customer_id",
    time_zone: Annotated[str, typer.Option(help="IANA name, such as Europe/Berlin.")] = "",
    campaign: Annotated[
        str,
        typer.Option(help="Name in the request ids; else taken from the content of the file."),
    ] = "",
    chunk: Chunk = campaigns.CHUNK,
    flight: Flight = campaigns.FLIGHT,
    timeout: Timeout = 60.0,
) -> None:
    """Decide for every customer of a file; run it again to go on after an interruption."""

    def asked(fingerprint: str) -> Campaign:
        return Campaign(
            experiment=experiment,
            name=campaign or fingerprint[:16],
            customer_column=customer_column,
            id_column=id_column,
            time_zone=time_zone,
        )

    with server.client(timeout) as client:
        pace = Pace(chunk=chunk, flight=flight, progress=True)
        done = campaign_file.decide_file(client, source, out, asked, pace)
    before = f", {done.before} of them by an earlier run" if done.before else ""
    typer.echo(f"decided: {done.rows} rows{before}, campaign {done.campaign}, in {out}")


@options.calls_server()
def reward_file(  # noqa: PLR0913
    source: Annotated[Path, typer.Argument(metavar="IN", help="Events, .parquet.")],
    server: Server,
    experiment: Annotated[str, typer.Option(help="Name of the experiment.")],
    name: Annotated[
        str, typer.Option(help="Kind of event of all rows; else column name tells.")
    ] = "",
    id_column: Annotated[
        str,
        typer.Option(help="Column of event ids; else from the file's content and the row."),
    ] = "",
    chunk: Chunk = campaigns.CHUNK,
    flight: Flight = campaigns.FLIGHT,
    timeout: Timeout = 60.0,
) -> None:
    """Report an event for every row of a file; running it again changes nothing."""
    told = campaign_file.fingerprint(source)[:16]
    report = Report(experiment=experiment, name=told, kind=name, id_column=id_column)
    rows = campaign_file.read_table(source)
    with server.client(timeout) as client:
        try:
            pace = Pace(chunk=chunk, flight=flight, progress=True)
            found = campaigns.reward_many(client, report, rows, pace=pace)
        except InvalidInputError as error:
            where = f"{source}: {error.field}" if error.field else str(source)
            raise InvalidInputError(error.message, field=where) from None
    for row, why in found.refused[:_MOST_SHOWN]:
        typer.echo(f"{source}: row {row}: {why}", err=True)
    typer.echo(
        f"reported: {found.recorded} recorded, {found.duplicate} duplicate, {found.late} late, "
        f"{len(found.refused)} refused"
    )
    if found.refused:
        raise BanditError(f"{len(found.refused)} events were not recorded; all others are")
