"""Run published results again: ``python -m sims.published``; the exit status is the verdict."""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bandit.errors import BanditError
from sims.published import delay, linear, logs, wheel
from sims.published.result import Result

Job = Callable[[], list[Result]]
DATA = Path(__file__).parents[3] / "shared" / "data"


def jobs(data: Path, *, is_short: bool) -> list[Job]:
    """Give what is run, the longest first; short runs are for tests."""
    few, many = (2, 3) if is_short else (10, 30)
    shuttle = data / linear.SHUTTLE
    found: list[Job] = [
        *(partial(wheel.fourier, delta, 1 if is_short else 3) for delta in wheel.NEURAL),
        *(partial(delay.items, steps, 1 if is_short else few) for steps in delay.PUBLISHED),
        partial(linear.shuttle, shuttle, many),
        *(partial(wheel.linear, delta, many) for delta in wheel.LINEAR),
        partial(linear.gaussian, few),
        partial(logs.synthetic, few),
        partial(logs.open_bandit, data),
    ]
    return found if is_short else [partial(linear.long_shuttle, shuttle, 3), *found]


def run(work: Sequence[Job], processes: int, tell: Callable[[], None]) -> list[Result]:
    """Run jobs in processes; results in the order of the jobs."""
    found: dict[int, list[Result]] = {}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        places = {pool.submit(job): place for place, job in enumerate(work)}
        for done in as_completed(places):
            found[places[done]] = done.result()
            tell()
    return [result for place in sorted(found) for result in found[place]]


def table(results: Sequence[Result]) -> Table:
    """Give the table: published, ours, interval, verdict."""
    made = Table(title="Published results, run again")
    for name in ("what", "published", "ours", "95 % interval", "must be", "verdict", "source"):
        made.add_column(name, justify="left" if name in ("what", "source") else "right")
    for one in results:
        verdict = "holds" if one.holds else "MISSED" if one.is_required else "worse"
        style = {"holds": "green", "MISSED": "bold red", "worse": "yellow"}[verdict]
        interval = f"+- {_figures(one.half_width)}" if one.half_width else ""
        published = "" if one.published is None else _figures(one.published)
        made.add_row(
            one.what, published, _figures(one.ours), interval, _range(one),
            f"[{style}]{verdict}", one.source,
        )  # fmt: skip
    return made


def _figures(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1_000 else f"{number:.4g}"


def _range(one: Result) -> str:
    if one.low == -float("inf"):
        return f"below {_figures(one.high)}"
    return f"{_figures(one.low)} to {_figures(one.high)}"


def main(
    data: Annotated[Path, typer.Option(help="Folder with the data sets.")] = DATA,
    processes: Annotated[int, typer.Option(min=1, help="How many at a time.")] = 2,
    short: Annotated[bool, typer.Option(help="Fewer runs, for a first look.")] = False,  # noqa: FBT002
) -> None:
    """Run published results again, and compare."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    work = jobs(data, is_short=short)
    try:
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("running", total=len(work))
            results = run(work, processes, lambda: bar.advance(task))
    except BanditError as error:
        console.print(f"error: {error}")
        raise typer.Exit(2) from None
    console.print(table(results))
    missed = [one.what for one in results if one.is_required and not one.holds]
    required = sum(one.is_required for one in results)
    console.print(f"{required - len(missed)} of {required} results hold")
    raise typer.Exit(bool(missed))


if __name__ == "__main__":
    typer.run(main)
