"""The commands of ``banditctl``, one module each."""

import os
import sys
from importlib import metadata
from typing import Annotated

import typer
from sqlalchemy.exc import SQLAlchemyError

from bandit.errors import BanditError
from server.commands import (
    audit_log,
    campaigns,
    decisions,
    demo,
    experiments,
    export,
    ledger,
    replay,
    retain,
    serve,
    simulate,
    status,
    tokens,
    verify,
    worlds,
)
from server.database import storage_error

app = typer.Typer(
    name="banditctl",
    help="Decide what to say to a customer, where and when; learn from what they do.",
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def about(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,  # noqa: FBT002
) -> None:
    """Decide what to say to a customer, where and when; learn from what they do."""
    if version:
        typer.echo(f"banditctl {metadata.version('banditctl')}")
        raise typer.Exit


app.command("serve")(serve.serve)
app.command("status")(status.status)
app.command("demo")(demo.demo)
app.add_typer(experiments.app, name="experiments")
app.add_typer(tokens.app, name="tokens")
app.command("decide")(decisions.decide)
app.command("reward")(decisions.reward)
app.command("audit-log")(audit_log.audit_log)
app.command("decide-file")(campaigns.decide_file)
app.command("reward-file")(campaigns.reward_file)
app.command("expose")(ledger.expose)
app.command("rollback")(ledger.rollback)
app.add_typer(worlds.app, name="worlds")
app.command("replay")(replay.replay)
app.command("simulate")(simulate.simulate)
app.command("verify")(verify.verify)
app.command("retain")(retain.retain)
app.command("export")(export.export)


def run() -> int:
    """Run the command line; give its exit status."""
    try:
        app(standalone_mode=True)
    except BanditError as error:
        typer.echo(f"error: {error}", err=True)
        return 1
    except SQLAlchemyError as error:
        typer.echo(f"error: {storage_error(error)}", err=True)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0
