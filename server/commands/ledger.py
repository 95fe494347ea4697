"""``banditctl expose`` and ``rollback``: what was shown, and what is not learned from any more."""

from datetime import datetime
from typing import Annotated

import typer

from bandit.errors import InvalidInputError
from server.commands import options
from server.commands.options import Server


@options.calls_server()
def expose(
    experiment: Annotated[str, typer.Argument(help="Name of the experiment.")],
    decision_id: Annotated[str, typer.Argument(help="The decision that was shown.")],
    server: Server,
    event_id: Annotated[str, typer.Option(help="Idempotency key; new if left out.")] = "",
    exposed_at: Annotated[
        str, typer.Option(help="When, such as 2026-01-31T18:00:00+01:00; now if left out.")
    ] = "",
) -> None:
    """Report that a decision was shown to its customer."""
    instant = _instant(exposed_at, "exposed-at")
    with server.client() as client:
        typer.echo(
            client.confirm_exposure(experiment, decision_id, event_id=event_id, exposed_at=instant)
        )


@options.calls_server()
def rollback(  # noqa: PLR0913
    experiment: Annotated[str, typer.Argument(help="Name of the experiment.")],
    server: Server,
    reason: Annotated[str, typer.Option(help="Why; it is kept in the log.")],
    to_snapshot: Annotated[
        int | None,
        typer.Option(min=0, help="Leave out only what follows this snapshot; 0 is the start."),
    ] = None,
    without_reporter: Annotated[
        str, typer.Option(help="Leave out this reporter's events; else all outcomes.")
    ] = "",
    since: Annotated[
        str, typer.Option(help="Only from this time on, such as 2026-01-31T18:00Z.")
    ] = "",
    until: Annotated[str, typer.Option(help="Only before this time.")] = "",
    request_id: Annotated[str, typer.Option(help="Idempotency key; new if left out.")] = "",
) -> None:
    """Fold the belief anew without what should not have been learned.

    The log keeps everything, and an entry says what is left out from now on, by whom and why.
    """
    with server.client(30.0) as client:
        found = client.rollback(
            experiment,
            reason=reason,
            to_snapshot=to_snapshot,
            without_reporter=without_reporter,
            since=_instant(since, "since"),
            until=_instant(until, "until"),
            request_id=request_id,
        )
    typer.echo(
        f"left out from log entry {found.sequence} on: {found.events} events, "
        f"{found.outcomes} outcomes; the next snapshot is folded without them"
    )


def _instant(text: str, field: str) -> datetime | None:
    """Read an instant with its offset; None for nothing."""
    if not text:
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise InvalidInputError(
            f"{text[:60]!r} is no instant with its offset, such as 2026-01-31T18:00:00Z",
            field=field,
        )
    return instant
