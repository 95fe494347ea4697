"""``banditctl replay --log``: any uniform log, past the policy of a specification."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bandit.errors import InvalidInputError
from bandit.experiment import Experiment
from bandit.spec import ExperimentSpec
from server.commands import show
from sims.log import Log, batches
from sims.log.tables import Source
from sims.replay import Rejection, rejection

SHOWN = 20


def play(
    path: Path, spec: ExperimentSpec, secret: bytes, reading: Mapping[str, Any], *, every: int
) -> None:
    """Replay a log and show what was found.

    Raises
    ------
    InvalidInputError
        If the log is refused, or is no uniform one.
    """
    rows = Source(path).rows
    counts: dict[str, int] = {}
    found: Rejection | None = None
    with Progress(
        TextColumn("replay"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=show.progress_console,
        transient=True,
        disable=show.is_unseen,
    ) as progress:
        task = progress.add_task("replay", total=rows)

        def logs() -> Iterator[Log]:
            for log in batches(path, spec, **reading):
                for why, n in (*log.separated.items(), *log.excluded.items()):
                    counts[why] = counts.get(why, 0) + n
                yield log
                last = len(log) if log.places is None else int(log.places[-1])
                progress.update(task, completed=last)

        for latest in rejection(logs(), Experiment(spec, secret=secret), every=every):
            found = latest
    if found is None:
        raise InvalidInputError("holds no rows", field=str(path))
    _show(found, spec, counts)
    if found.withheld is not None:
        raise InvalidInputError(f"there is no estimate: {found.withheld}", field=str(path))
    low, high = found.matched.interval
    typer.echo(
        f"matched reward: {found.matched.mean:.4f} [{low:.4f}, {high:.4f}] on "
        f"{found.matched.n} of {found.rows} rows"
    )


def _show(found: Rejection, spec: ExperimentSpec, counts: Mapping[str, int]) -> None:
    show.console.print(left_out(counts))
    made = show.table(
        f"Replay of {found.rows} rows", ["policy", "chosen", "rows", "reward", "95 % interval"]
    )
    uniform = found.logged
    mean, interval = show.number(uniform.mean), show.interval(uniform.interval)
    made.add_row("uniform", "", str(uniform.n), mean, interval)
    for a, arm in list(enumerate(found.arms))[:SHOWN]:
        name = ", ".join(level.name for level in spec.actions.levels(a))
        share = f"{found.chosen[a] / max(found.rows, 1):.1%}"
        mean, interval = show.number(arm.mean), show.interval(arm.interval)
        made.add_row(name, share, str(arm.n), mean, interval)
    if len(found.arms) > SHOWN:
        made.add_row(f"and {len(found.arms) - SHOWN} actions more")
    if found.withheld is None:
        mean, interval = show.number(found.matched.mean), show.interval(found.matched.interval)
        made.add_row("this policy", "", str(found.matched.n), mean, interval)
    else:
        made.add_row("this policy", "", str(found.matched.n), "withheld", "")
    made.caption = (
        f"{found.share:.1%} of the rows matched; {found.publications} publications; "
        f"counts are uniform with p = {found.uniformity.p_value:.3g}"
    )
    show.console.print(made)


def left_out(counts: Mapping[str, int]) -> str:
    """Say in a line which rows of a log are not used."""
    if not counts:
        return "every row of the log is used"
    told = "; ".join(f"{n} {why}" for why, n in sorted(counts.items(), key=lambda c: -c[1]))
    return f"not used: {told}"
