"""``banditctl decide`` and ``reward``: one decision, one reward event, by hand."""

from typing import Annotated

import typer

from server.client import Fact
from server.commands import options, show
from server.commands.options import Server


@options.calls_server()
def decide(  # noqa: PLR0913
    experiment: Annotated[str, typer.Argument(help="Name of a running experiment.")],
    customer: Annotated[str, typer.Argument(help="Your id of the customer.")],
    server: Server,
    context: Annotated[str, typer.Option(help='JSON object, such as {"age": 41}.')] = "{}",
    time_zone: Annotated[str, typer.Option(help="IANA name, such as Europe/Berlin.")] = "",
    request_id: Annotated[str, typer.Option(help="Idempotency key; new if left out.")] = "",
) -> None:
    """Ask for one decision."""
    with server.client() as client:
        answer = client.decide(
            experiment,
            customer,
            options.read_context(context),
            request_id=request_id,
            time_zone=time_zone,
        )
    show.console.print(show.answer(answer))


@options.calls_server()
def reward(  # noqa: PLR0913
    experiment: Annotated[str, typer.Argument(help="Name of the experiment.")],
    decision_id: Annotated[str, typer.Argument(help="The decision that earned it.")],
    name: Annotated[str, typer.Argument(help="Kind of event, such as click.")],
    server: Server,
    value: Annotated[float, typer.Argument(help="In the event's own unit.")] = 1.0,
    event_id: Annotated[str, typer.Option(help="Idempotency key; new if left out.")] = "",
) -> None:
    """Report one reward event."""
    fact = Fact(decision_id=decision_id, name=name, value=value, event_id=event_id)
    with server.client() as client:
        typer.echo(client.record_reward(experiment, fact))
