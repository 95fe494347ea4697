"""``banditctl status``: how a running server is, on one screen."""

import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterable
from typing import Annotated, NamedTuple

import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table

from bandit.errors import BanditError, UnavailableError
from server.commands import options, show
from server.commands.options import Server
from server.pb import bandit_pb2 as pb

Samples = dict[str, list[tuple[dict[str, str], float]]]
NOT_SHOWN = "-"


class Look(NamedTuple):
    """What the metrics port told at one moment."""

    at: float
    samples: Samples

    def total(self, name: str, **labels: str) -> float:
        """Give the sum of a metric over all samples with these labels."""
        wanted = labels.items()
        return sum(v for found, v in self.samples.get(name, ()) if wanted <= found.items())

    def one(self, name: str, **labels: str) -> float | None:
        """Give a metric's value, or None if there is none."""
        wanted = labels.items()
        values = [v for found, v in self.samples.get(name, ()) if wanted <= found.items()]
        return max(values) if values else None


@options.calls_server()
def status(
    server: Server,
    metrics: Annotated[
        str,
        typer.Option(
            envvar="BANDIT_METRICS_ADDRESS",
            help="host:port of the server's metrics; else fewer rows.",
        ),
    ] = "",
    seconds: Annotated[
        float, typer.Option(min=0.1, max=60.0, help="How long rates are measured.")
    ] = 1.0,
) -> None:
    """Show health, experiments, snapshots, lag and rates; status 1 if it is not ready."""
    with server.client() as client:
        is_ready = client.is_ready()
        try:
            found, refused = client.list_experiments(), ""
        except BanditError as error:
            found, refused = [], str(error)
    before = after = None
    if metrics:
        before = _look(metrics)
        time.sleep(seconds)
        after = _look(metrics)
    show.console.print(_server(server.address, is_ready, _reasons(metrics), before, after))
    if refused:
        typer.echo(f"error: {refused}", err=True)
    else:
        show.console.print(_experiments(found, before, after))
    if not metrics:
        typer.echo("rates and lag: serve with --metrics-port, and name --metrics HOST:PORT here")
    if refused or not is_ready:
        raise typer.Exit(1)


def _read(metrics: str, path: str) -> str:
    url = f"http://{metrics}{path}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"no metrics at {metrics}: {error}; the server's --metrics-port opens them",
            field="metrics",
        ) from None


def _look(metrics: str) -> Look:
    text = _read(metrics, "/metrics")
    samples: Samples = defaultdict(list)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name].append((sample.labels, sample.value))
    return Look(time.monotonic(), samples)


def _reasons(metrics: str) -> str:
    return " ".join(_read(metrics, "/readyz").split()) if metrics else ""


def _server(
    address: str,
    is_ready: bool,  # noqa: FBT001
    reasons: str,
    before: Look | None,
    after: Look | None,
) -> Table:
    made = show.table(f"Server {address}", ["what", "is"], left=1)
    made.add_row("ready", "yes" if is_ready else "NO")
    if not is_ready and reasons not in ("", "ok"):
        made.add_row("because", reasons)
    if before is None or after is None:
        return made
    seconds = after.at - before.at
    for what, name in (
        ("calls/s", "bandit_request_seconds_count"),
        ("decisions/s", "bandit_decisions_total"),
        ("rewards/s", "bandit_rewards_total"),
        ("shed/s", "bandit_requests_shed_total"),
    ):
        rate = (after.total(name) - before.total(name)) / seconds
        made.add_row(what, f"{rate:.1f}")
    made.add_row("shed since its start", f"{after.total('bandit_requests_shed_total'):.0f}")
    made.add_row("commits failed", f"{after.total('bandit_commit_failures_total'):.0f}")
    made.add_row("jobs waiting", f"{after.total('bandit_queue_jobs'):.0f}")
    memory = after.total("process_resident_memory_bytes")
    if memory:
        made.add_row("memory", f"{memory / 2**20:.0f} MB")
    return made


def _experiments(found: Iterable[pb.Experiment], before: Look | None, after: Look | None) -> Table:
    columns = ["name", "state", "snapshot", "age", "learned", "waiting", "behind", "decisions/s"]
    made = show.table("Experiments", columns, left=2)
    now = time.time()
    for one in found:
        snapshot = one.snapshot
        has_time = snapshot.HasField("published_at")
        age = now - snapshot.published_at.ToMicroseconds() / 1e6 if has_time else None
        made.add_row(
            one.spec.name,
            pb.State.Name(one.state).removeprefix("STATE_").lower(),
            str(snapshot.version),
            _duration(age),
            str(snapshot.outcomes),
            *_measured(one.spec.name, before, after),
        )
    return made


def _measured(name: str, before: Look | None, after: Look | None) -> list[str]:
    if before is None or after is None:
        return [NOT_SHOWN] * 3
    waiting = after.one("bandit_learner_lag_outcomes", experiment=name)
    behind = after.one("bandit_learner_lag_seconds", experiment=name)
    decided = "bandit_decisions_total"
    more = after.total(decided, experiment=name) - before.total(decided, experiment=name)
    return [
        NOT_SHOWN if waiting is None else f"{waiting:.0f}",
        _duration(behind),
        f"{more / (after.at - before.at):.1f}",
    ]


def _duration(seconds: float | None) -> str:
    """Show a duration in the unit that fits, or a dash for none."""
    if seconds is None:
        return NOT_SHOWN
    for unit, size in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0.0):.1f} s"
