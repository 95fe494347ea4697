"""``banditctl sample-size``: how many customers a test needs to see a given lift."""

from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bandit.spec import ExperimentSpec
from server.commands import show, simulated
from server.commands.simulated import PresetName, Spec, WorldFile
from sims.rollouts import SampleSize
from sims.rollouts import sample_size as find
from sims.worlds import Course, World

SHOWN = 8
"""Sizes of the curve that are shown: the last ones."""
_PROBE = 20_000
"""Customers who tell how long a test takes."""


def sample_size(  # noqa: PLR0913  one per option
    spec: Spec = None,
    world: WorldFile = None,
    preset: PresetName = "",
    lift: Annotated[float, typer.Option(help="To be seen, such as 0.05 for 5 % more.")] = 0.05,
    power: Annotated[float, typer.Option(help="Share of tests that are to see it.")] = 0.8,
    tests: Annotated[
        int, typer.Option(help="Simulated tests; four times as many halve the interval.")
    ] = 400,
    most: Annotated[int, typer.Option(help="Customers of each arm to look at.")] = 1_000_000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same figures.")] = 1,
) -> None:
    """Find how many customers a test needs to see a lift, by simulated tests.

    Both arms get the experiment's baseline; in one of them every expected outcome is raised by the
    lift. A test sees it when its 95 % interval of the difference lies above zero.
    """
    _, experiment, of = simulated.asked(spec, world, preset)
    with Progress(
        TextColumn("power"),
        BarColumn(),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
        console=show.progress_console,
        transient=True,
        disable=show.is_unseen,
    ) as progress:
        task = progress.add_task("sample-size", total=power, told="the first tests")

        def passed(size: int, share: float) -> None:
            told = f"{share:.0%} of the tests see it with {size:,} customers of each arm"
            progress.update(task, completed=min(share, power), told=told)

        found = find(
            experiment, of, lift=lift, power=power, seed=seed, tests=tests, most=most,
            progress=passed,
        )  # fmt: skip
    _show(found, tests)
    typer.echo(
        f"{found.customers:,} customers of each arm, {2 * found.customers:,} together "
        f"({found.low:,} to {found.high:,} of each, by {tests} tests), show {lift:+.1%} in "
        f"{power:.0%} of the tests"
    )
    typer.echo(_how_long(experiment, of, 2 * found.customers, seed))


def _show(found: SampleSize, tests: int) -> None:
    columns = ["customers of each arm", "tests that see it", "95 % interval"]
    made = show.table(f"A lift of {found.lift:+.1%}, {tests} simulated tests", columns, left=0)
    for point in found.curve[-SHOWN:]:
        made.add_row(
            f"{point.customers:,}", f"{point.power:.1%}", f"[{point.low:.1%}, {point.high:.1%}]"
        )
    if len(found.curve) > SHOWN:
        made.caption = f"{len(found.curve) - SHOWN} smaller sizes are not shown"
    show.console.print(made)


def _how_long(spec: ExperimentSpec, of: World, customers: int, seed: int) -> str:
    """Say how long a test takes at the world's traffic."""
    assert spec.baseline is not None  # noqa: S101  the tests were made with it
    action = [spec.baseline.variant, spec.baseline.channel, spec.baseline.slot]
    times = Course(of, spec, seed=seed).arrivals(0, min(customers, _PROBE)).times
    days = float(times[-1] - times[0]) / (len(times) - 1) * customers / 86_400.0
    return (
        f"both arms get the baseline, {'/'.join(part for part in action if part)}; at the world's "
        f"traffic such a test takes about {days:,.{1 if days > 9 else 2}f} days"
    )
