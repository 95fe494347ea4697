"""The commands of ``banditctl``, one module each."""

import os
import sys

import typer

from bandit.errors import BanditError
from server.commands import decisions, demo, experiments, export, replay, serve, verify

app = typer.Typer(
    name="banditctl",
    help="Decide what to say to a customer, where and when; learn from what they do.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("serve")(serve.serve)
app.command("demo")(demo.demo)
app.add_typer(experiments.app, name="experiments")
app.command("decide")(decisions.decide)
app.command("reward")(decisions.reward)
app.command("replay")(replay.replay)
app.command("verify")(verify.verify)
app.command("export")(export.export)


def run() -> int:
    """Run the command line; give its exit status."""
    try:
        app(standalone_mode=True)
    except BanditError as error:
        typer.echo(f"error: {error}", err=True)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0
