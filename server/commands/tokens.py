"""``banditctl tokens``: make, list and revoke the tokens that callers need."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from sqlalchemy.engine import Connection

from server import tokens
from server.clock import system_clock
from server.commands import options, show
from server.commands.options import DatabaseUrl
from server.convert import timestamp
from server.database import Database
from server.settings import read as read_settings
from server.tokens import Role
from server.turn import beside

app = typer.Typer(
    help="Make, list and revoke the tokens that callers need. They work on the database, also "
    "while the server runs; it takes notice within two seconds.",
    no_args_is_help=True,
)

DAY = 86_400_000_000
Reason = Annotated[str, typer.Option(help="Why, for the audit log.")]


@app.command()
def create(  # noqa: PLR0913
    name: Annotated[str, typer.Argument(help="Who will bear it, such as mailer.")],
    role: Annotated[list[Role], typer.Option(help="What it allows; may be given several times.")],
    tenant: Annotated[str, typer.Option(help="Whose experiments it reaches.")] = "default",
    expires: Annotated[
        float | None, typer.Option(min=0.0, help="Days until it expires; never if left out.")
    ] = None,
    reason: Reason = "",
    database: DatabaseUrl = options.DEFAULT_DATABASE,
) -> None:
    """Make a token and print it, this once: only its hash is kept."""
    now = system_clock()
    with _writing(database) as connection:
        number, token = tokens.create(
            connection,
            name=name,
            tenant=tenant,
            roles=role,
            who=options.operator(),
            now=now,
            expires_at=None if expires is None else now + round(expires * DAY),
            reason=reason,
        )
    typer.echo(f"token {number} of {name!r}, shown only now; give it as BANDIT_TOKEN:", err=True)
    typer.echo(token)


@app.command("list")
def list_all(
    tenant: Annotated[str, typer.Option(help="Only of this tenant.")] = "",
    database: DatabaseUrl = options.DEFAULT_DATABASE,
) -> None:
    """List all tokens, also those that are no longer in force; never the tokens themselves."""
    now = system_clock()
    opened = Database(read_settings(database=database).database, read_only=True)
    try:
        with opened.reader.connect() as connection:
            found = tokens.list_tokens(connection, tenant)
    finally:
        opened.close()
    columns = ["id", "name", "tenant", "roles", "created", "expires", "state"]
    made = show.table("Tokens", columns, left=len(columns))
    for row in found:
        is_expired = row.expires_at is not None and row.expires_at <= now
        state = "revoked" if row.revoked_at else "expired" if is_expired else "in force"
        ends = "never" if row.expires_at is None else show.moment(timestamp(row.expires_at))
        begun = show.moment(timestamp(row.created_at))
        made.add_row(str(row.id), row.name, row.tenant, row.roles, begun, ends, state)
    show.console.print(made)


@app.command()
def revoke(
    number: Annotated[int, typer.Argument(metavar="ID", help="As shown by 'tokens list'.")],
    reason: Reason = "",
    database: DatabaseUrl = options.DEFAULT_DATABASE,
) -> None:
    """Revoke a token for good."""
    with _writing(database) as connection:
        was = tokens.revoke(
            connection, number, who=options.operator(), now=system_clock(), reason=reason
        )
    typer.echo(f"token {number} is revoked" + ("" if was else ", and was so before"))


@contextmanager
def _writing(database: str) -> Iterator[Connection]:
    """Open a transaction on a database that exists, whether or not a server holds it."""
    opened = Database(read_settings(database=database).database, read_only=True)
    opened.close()
    with beside(opened.url) as connection:
        yield connection
